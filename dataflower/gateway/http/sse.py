"""Server-sent events (the HTML standard, section 9.2): answers that come piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dataflower.errors import DataflowerError, InvocationFailed
from dataflower.gateway.http.presence import STOPPING, gone

PING_S = 15.0
"""A comment is sent after so long a silence, so that no proxy takes the connection for dead."""
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_encode = msgspec.json.Encoder().encode


def event(data: Any, name: str = "", ident: str = "") -> bytes:
    """One event; `data` is sent as JSON (which has no line breaks)."""
    head = (f"id: {ident}\n" if ident else "") + (f"event: {name}\n" if name else "")
    return head.encode() + b"data: " + _encode(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they are made, each only once the one before is on its way.

    The status waits for the first event: an error before it is an ordinary answer with its own status. `on_error`
    writes one that comes later. The generator is closed when the caller leaves, or the server stops.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_error: Callable[[DataflowerError], bytes],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._on_error = on_error
        self._started = False
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        writer = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(gone(receive))
        pinger = asyncio.ensure_future(self._ping(send))
        try:
            await asyncio.wait((writer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        except asyncio.CancelledError:
            await _end(writer, pinger)
            await self._stop(send)
        finally:
            await _end(writer, leaving, pinger)

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            try:
                async for data in events:
                    await self._send(send, data)
            except DataflowerError as error:
                if not self._started:
                    raise
                await self._send(send, self._on_error(error))
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._quiet = False
        await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _stop(self, send: Send) -> None:
        """The server ends before the stream does."""
        if not self._started:
            raise InvocationFailed(STOPPING)
        await self._send(send, self._on_error(InvocationFailed(STOPPING)))
        await self._send(send, b"", more=False)

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(PING_S)
            if self._started and self._quiet:
                await self._send(send, b":\n\n")
            self._quiet = True


async def _end(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: what matters of it was raised before
