"""The outputs of several invocations as one sequence, in the order in which they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dataflower.host.api import Invocation, OutputItem

_Entry = tuple[int, OutputItem | BaseException | None]


async def merged(invocations: Sequence[Invocation], port: str) -> AsyncGenerator[tuple[int, Any], None]:
    """(index of the invocation, value) of each item of `port`; raises what an invocation raises.

    Whoever takes the items sets the pace of all.
    """
    if len(invocations) == 1:
        async with contextlib.aclosing(_only(invocations[0], port)) as items:
            async for value in items:
                yield 0, value
        return
    queue: asyncio.Queue[_Entry] = asyncio.Queue(1)
    readers = [asyncio.ensure_future(_read(i, each, port, queue)) for i, each in enumerate(invocations)]
    left = len(readers)
    try:
        while left:
            index, output = await queue.get()
            if output is None:
                left -= 1
            elif isinstance(output, BaseException):
                raise output
            else:
                yield index, output.value
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def _only(invocation: Invocation, port: str) -> AsyncGenerator[Any, None]:
    async for output in invocation.outputs():
        if output.port == port:
            yield output.value


async def _read(index: int, invocation: Invocation, port: str, queue: asyncio.Queue[_Entry]) -> None:
    try:
        async for output in invocation.outputs():
            if output.port == port:
                await queue.put((index, output))
        await queue.put((index, None))
    except Exception as error:  # for whoever reads the queue
        await queue.put((index, error))
