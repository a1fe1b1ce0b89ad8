"""Work for a caller who may leave: it goes on as long as the connection does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from dataflower.errors import Code, Failure, InvocationFailed
from dataflower.host.api import Invocation

T = TypeVar("T")

LEFT = Failure(Code.CANCELLED, "Cancelled", "the caller left")
STOPPING = Failure(Code.UNAVAILABLE, "ShuttingDown", "the server stops", retry_after_s=1.0)


async def gone(receive: Receive) -> None:
    """Return when the caller has left. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, work: Coroutine[Any, Any, T], leave: Callable[[Failure], object]) -> T:
    """What `work` gives; if the caller leaves, or this task is cancelled, `leave` is told why and `work` cancelled.

    Raises:
        InvocationFailed: the caller left (CANCELLED).
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        leave(LEFT)
        raise InvocationFailed(LEFT)
    except asyncio.CancelledError:
        leave(STOPPING)
        raise
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
        if not working.cancelled():
            working.exception()  # seen, also where it is the caller who left


async def result_of(invocation: Invocation, receive: Receive) -> dict[str, Any]:
    """All outputs; the invocation is cancelled if its caller leaves or the server stops.

    Raises:
        InvocationFailed: as `Invocation.result`, or the caller left.
    """
    return await while_there(receive, invocation.result(), invocation.cancel)
