"""Stream inputs that a caller gave whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from dataflower.errors import DataflowerError
from dataflower.host.invocations import RunningInvocation
from dataflower.host.records import failure_of


async def pump(handle: RunningInvocation, streams: Mapping[str, list[Any]]) -> None:
    """Feed streams that were given whole, side by side, at the pace at which they are taken."""

    async def feed_one(name: str, items: list[Any]) -> None:
        for item in items:
            await handle.feed(name, item)
        await handle.end_input(name)

    try:
        async with asyncio.TaskGroup() as group:
            for name, items in streams.items():
                group.create_task(feed_one(name, items))
    except* DataflowerError as errors:
        error = errors.exceptions[0]
        if not handle.is_over and isinstance(error, DataflowerError):
            handle.stop(failure_of(error))
