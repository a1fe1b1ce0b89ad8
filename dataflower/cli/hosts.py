"""Other hosts, as plain values, as a table, and as a question to the network."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dataflower.cli.sizes import human

if TYPE_CHECKING:
    from rich.table import Table

    from dataflower.host.api import PeerStatus


def peer_data(peer: PeerStatus) -> dict[str, Any]:
    """A host for JSON and YAML."""
    return {
        "name": peer.name,
        "address": peer.address,
        "state": peer.state.value,
        "reason": peer.reason,
        "containers": peer.containers,
        "bytes_out": peer.bytes_out,
        "bytes_in": peer.bytes_in,
    }


def peer_table(peers: Iterable[PeerStatus]) -> Table:
    """Hosts, one a row."""
    from rich.table import Table
    from rich.text import Text

    table = Table("host", "address", "state", "containers", "sent", "received", "why", box=None, pad_edge=False)
    for peer in peers:
        row = (peer.name, peer.address, peer.state.value, str(peer.containers))
        table.add_row(*map(Text, (*row, human(peer.bytes_out), human(peer.bytes_in), peer.reason)))
    return table


def reach(address: str, timeout_s: float = 2.0) -> float:
    """Seconds that it takes to connect to `host:port`. Raises OSError."""
    host, _, port = address.rpartition(":")
    began = time.perf_counter()
    with socket.create_connection((host.strip("[]"), int(port)), timeout_s):
        return time.perf_counter() - began
