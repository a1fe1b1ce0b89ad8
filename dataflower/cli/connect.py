"""The connection of a client verb to its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataflower.gateway.client import Client


def connect(server: str | None) -> Client:
    """A client for `--server`, or for the configured one; its owner closes it."""
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr what we say ourselves
    from dataflower.config.compose import compose
    from dataflower.gateway.client import Client

    config = compose({"server": server}).config
    return Client(config.server, api_key=config.api_key or None, ca_file=config.tls_ca_file)
