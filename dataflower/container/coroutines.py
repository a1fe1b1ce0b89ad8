"""Waiting and driving for functions that are asynchronous.

A module of its own because it must not be compiled: a compiled coroutine that ended by an error and awaits in a
`finally` hands that error on to the next call (mypy 2.4).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Protocol

from dataflower.container.failure import Cancelled

if TYPE_CHECKING:
    from dataflower.container.running import RunningTask

Ports = dict[str, Any]


class Items(Protocol):
    """A stream of which items can be taken."""

    def before_wait(self) -> bool:
        """Whether there is nothing to take yet; the producer is told then."""
        ...

    def is_ready(self) -> bool:
        """Whether there is something to take, or the end."""
        ...

    def take(self, end: type[Exception]) -> Any:
        """The next item; raises `end` at the end."""
        ...


async def settle(task: RunningTask, awaitable: Any) -> Any:
    """Await what a function returned."""
    task.bind(asyncio.current_task())
    return await awaitable


async def hand_out(task: RunningTask, awaitable: Any, hand_out: Callable[[Any], Ports]) -> Ports:
    """Await what a function returned, and hand it out."""
    return hand_out(await settle(task, awaitable))


async def drive(
    task: RunningTask, generator: AsyncGenerator[Any, Any], sort: Callable[[Any], Ports], send: Callable[[Ports], None]
) -> Ports:
    """Hand out each item before user code goes on: sort it into its ports, wait for credit, send it."""
    if task.pace is not None:
        task.pace.goes_on()
    task.bind(asyncio.current_task())
    try:
        async for item in generator:
            ports = sort(item)
            del item
            if not task.has_credit():
                await wait(task, task.has_credit)
            send(ports)
            del ports
    finally:
        await generator.aclose()
    return {}


async def take(task: RunningTask, items: Items) -> Any:
    """The next item of a stream, once it is there."""
    if items.before_wait():
        await wait(task, items.is_ready)
    return items.take(StopAsyncIteration)


async def wait(task: RunningTask, condition: Callable[[], bool]) -> None:
    """`RunningTask.wait` for coroutines: their loop goes on meanwhile. Raises Cancelled."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(event.set)

    with task.lock:
        if condition():
            return
        task.wakers.append(wake)
    try:
        while True:
            with task.lock:
                if condition():
                    return
                if task.reason is not None:
                    raise Cancelled(task.reason)
                event.clear()
            pace = task.own_pace()
            if pace is not None:
                pace.waits()
            await event.wait()
            if pace is not None:
                pace.woken()
    finally:
        with task.lock:
            task.wakers.remove(wake)
