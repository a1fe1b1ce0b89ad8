"""The connection of a client verb to its server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataflower.config.settings import Config
    from dataflower.gateway.client import Client


def client_config(server: str | None, file: Path | None = None) -> Config:
    """The configuration with `--server` in it; says which variables set nothing.

    Raises:
        WrongUsage: that is no address.
    """
    from dataflower.cli.exits import WrongUsage
    from dataflower.cli.settings import composed
    from dataflower.config.compose import read

    if server is not None:
        try:
            read("server", server)
        except ValueError as error:
            raise WrongUsage(f"--server: {error}") from None
    return composed({"server": server}, file).config


def connect(server: str | None) -> Client:
    """A client for `--server`, or for the configured one; its owner closes it."""
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr what we say ourselves
    from dataflower.gateway.client import Client

    config = client_config(server)
    return Client(config.server, api_key=config.api_key or None, ca_file=config.tls_ca_file)
