"""Load for storms of kills: callers that look at everything that comes, and what hosts still hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.footprint import Footprint, footprint
from bench.storm_flows import FLOWS, Flow, Tally, number
from dataflower.errors import DataflowerError
from dataflower.host.runtime import Runtime

NBYTES = 100_000
ARENA_BYTES = 1 << 20
"""Memory of a container: so little that a gather of more than ten arrays goes to disk."""
CALLERS = 4
MAX_ITEMS = 30
SETTLE_S = 30.0
MOST_EVENTS = 150
"""Between two kills: what the host hears and does meanwhile."""
STILL_S = 1.0
CALL_S = 120.0
"""A call that takes longer counts as lost."""


class Load:
    """Callers of all flows in turn, and what came of it."""

    def __init__(self, host: Runtime, seed: int, flows: Sequence[Flow] = FLOWS) -> None:
        self.tally = Tally()
        self._host = host
        self._flows = flows
        self._random = random.Random(seed)

    async def run(self, goes_on: Callable[[], bool]) -> None:
        """`CALLERS` at a time, for as long as it `goes_on`."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(self._call_on(goes_on))

    async def _call_on(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            flow = self._random.choice(self._flows)
            for _ in range(flow.times):
                if goes_on():
                    await self.call(flow, self._random.randrange(2, MAX_ITEMS))

    async def call(self, flow: Flow, n: int) -> None:
        """One invocation."""
        found: dict[str, list[int]] = {}
        error = ""
        try:
            async with asyncio.timeout(CALL_S):
                invocation = await self._host.invoke(flow.name, {"n": n, "nbytes": NBYTES})
                async for item in invocation.outputs():
                    for value in item.value if isinstance(item.value, list) else [item.value]:
                        found.setdefault(item.port, []).append(number(value, NBYTES))
        except (DataflowerError, TimeoutError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        self.tally.add(flow, n, found, error)


def kill(pid: int) -> bool:
    """SIGKILL to a process that runs; False if it had ended before."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "ZX":
            return False
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


async def progress(host: Runtime, rng: random.Random) -> None:
    """Return at a random moment after the host has got on, or when nothing moves: not all load may die at its start."""
    end = time.monotonic() + STILL_S
    goal = host.statistics().engine.events + rng.randrange(MOST_EVENTS)
    while host.statistics().engine.events < goal and time.monotonic() < end:  # noqa: ASYNC110 - random moments
        await asyncio.sleep(rng.uniform(0.0, 0.02))


def spills(host: Runtime) -> bool:
    """Whether outputs lie on the disk now."""
    views = host._engine.views
    return any(views.is_on_disk(arena) for arena in host._engine._sizes)


async def idle(host: Runtime) -> None:
    """Return once its containers have left for being idle; at most `SETTLE_S` later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while host.container_pids() or host.statistics().core.slots:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)


async def left_behind(pid: int, before: Footprint, without: int = 0) -> dict[str, int]:
    """What a process holds beyond what it held `before`, once that does not get less any more, by name."""
    end = time.monotonic() + SETTLE_S
    while (more := footprint(pid, without).beyond(before)) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    return more
