"""One asyncio loop per thread, made when first needed and kept: what `setup` opens on it is there for every task."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_local = threading.local()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on the calling thread's loop. Background tasks of earlier ones go on meanwhile."""
    loop: asyncio.AbstractEventLoop | None = getattr(_local, "loop", None)
    if loop is None:
        loop = _local.loop = asyncio.new_event_loop()
    return loop.run_until_complete(coroutine)


def settle(result: Any) -> Any:
    """The result itself, or, of a coroutine, what it returns."""
    return run(result) if inspect.iscoroutine(result) else result


def close() -> None:
    """Close the calling thread's loop, if there is one; what still runs on it is cancelled."""
    loop: asyncio.AbstractEventLoop | None = getattr(_local, "loop", None)
    if loop is None:
        return
    del _local.loop
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
