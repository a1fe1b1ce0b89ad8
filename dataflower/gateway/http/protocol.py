"""uvicorn's HTTP/1.1 protocol with limits on what a peer may send before a request is one."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

HEAD_BYTES = 64 * 1024
"""Request line and headers (and trailers) of one request."""
HEAD_S = 30.0
"""A new connection, or a begun head, must be complete within so long."""


class Connections(ServerState):
    """The connections of a server; `emptied` wakes whoever waits for the last one to go."""

    def __init__(self) -> None:
        super().__init__()
        self.emptied = asyncio.Event()


class Protocol(HttpToolsProtocol):
    """A connection. A head that is too long is a bad request, one that does not come ends the connection."""

    server_state: Connections
    _head: asyncio.TimerHandle | None = None
    _seen = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """As asyncio has it."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._came()
        super().connection_lost(exc)
        if not self.server_state.connections:
            self.server_state.emptied.set()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        super().on_message_begin()
        self._seen = 0
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, perhaps with parts."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._came()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._seen += size
        if self._seen > HEAD_BYTES:
            raise ValueError("the head is too long")  # httptools makes its own error of it: 400

    def _begin(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.abort)

    def _came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
