"""Stages measured in company: the other cores of the machine are busy, as they are where a plan fills it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from dataflower.clock import Clock
from dataflower.loadgen.profiling.measure import Bench, ProfilingHost
from dataflower.spec.workflow import Stage

MOST = 7
"""Containers that keep company at most: memory and caches are crowded by then."""


def room_beside(stages: Sequence[Stage], heaviest: Stage) -> int:
    """How many containers of the heaviest stage the cores have room for beside any one of the stages."""
    free = len(os.sched_getaffinity(0)) - max(stage.resources.cpu for stage in stages)
    return max(0, min(MOST, int(free // heaviest.resources.cpu)))


class Company:
    """`count` containers of a stage that run one batch after the other, as long as the context lasts."""

    def __init__(
        self,
        host: ProfilingHost,
        stage: Stage,
        tasks: Sequence[Mapping[str, Any]],
        clock: Clock,
        *,
        size: int,
        count: int,
    ) -> None:
        """`tasks`: recorded inputs, at least one. `size`: tasks in each batch."""
        self._benches = [Bench(host, stage, tasks, clock, name=f"beside-{i}") for i in range(count)]
        self._size = size
        self._over = False
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Company:
        for bench in self._benches:
            await bench.start(self._size)
        self._running = [asyncio.create_task(self._keep_busy(bench)) for bench in self._benches]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises what user code failed with, unless something else has failed already."""
        self._over = True
        ends = await asyncio.gather(*self._running, return_exceptions=True)
        for bench in self._benches:
            await bench.stop()
        failed = next((end for end in ends if isinstance(end, BaseException)), None)
        if failed is not None and error is None:
            raise failed

    async def _keep_busy(self, bench: Bench) -> None:
        while not self._over:
            await bench.run(self._size)
