"""Is anything lost, doubled or left behind when containers are killed at random under load?

1,000 SIGKILLs of random containers while four callers stream arrays through a fan-out; every item of every invocation
is held against what it must be. What is left is counted afterwards: bytes in slots, descriptors and processes beyond
those of the quiet host before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from argparse import Namespace

import numpy as np
import uvloop

from bench.engine import call, document, engine
from bench.processes import descendants
from bench.report import Report, arguments, finish
from dataflower.errors import DataflowerError
from dataflower.host.runtime import Runtime

NBYTES = 100_000
CALLERS = 4
SETTLE_S = 30.0


def workflow() -> str:
    """A stream of arrays, each through a stage of its own, in order again; tried until it works."""
    again = (
        "retry: {errors: [ContainerCrashed], max_attempts: 100000, interval_s: 0.005, backoff_rate: 1, jitter: none}"
    )
    return document(
        "storm",
        "{n: int, nbytes: int}",
        f"  make: {{function: 'bench.functions:numbered', inputs: {{n: inputs.n, nbytes: inputs.nbytes}}, {again}}}\n"
        f"  pass: {{function: 'bench.functions:forward', inputs: {{x: {{each: make.chunk}}}}, {again}}}",
        "{all: {gather: pass.out}, made: make.chunk}",
    )


class Storm:
    """Callers, a killer, and their counts."""

    def __init__(self, host: Runtime, kills: int) -> None:
        self.host = host
        self.left = kills
        self.lost = self.doubled = self.items = self.calls = 0
        self._random = random.Random(7)

    async def kill(self) -> None:
        """Kill random containers until enough have been."""
        while self.left:
            await asyncio.sleep(self._random.uniform(0.0, 0.1))
            pids = sorted(self.host.container_pids().values())
            with contextlib.suppress(ProcessLookupError, IndexError):  # gone already; none is there
                os.kill(self._random.choice(pids), signal.SIGKILL)
                self.left -= 1

    async def load(self) -> None:
        """Call until the killing is over, and look at everything that comes."""
        while self.left:
            n = self._random.randrange(2, 30)
            seen: dict[str, list[int]] = {"made": [], "all": []}
            try:
                invocation = await self.host.invoke("storm", {"n": n, "nbytes": NBYTES})
                async for item in invocation.outputs():
                    seen[item.port].append(_number(item.value))
            except DataflowerError as error:
                print(f"lost: {type(error).__name__}: {error}")
            self.calls += 1
            self.items += 2 * n
            for found in seen.values():
                self.lost += len(set(range(n)) - set(found))
                self.doubled += len(found) - len(set(found))


def _number(value: np.ndarray) -> int:  # type: ignore[type-arg]
    """Which item it is; -1 if it is not whole."""
    number = int.from_bytes(value[:8].tobytes(), "little")
    whole = value.nbytes == NBYTES and bool((value[8:] == number % 251).all())
    return number if whole else -1


def left_over(host: Runtime) -> dict[str, int]:
    """What a host holds: slots, tasks, descriptors, processes other than containers that are ready."""
    core = host.statistics().core
    return {
        "slots": core.slots,
        "tasks": core.tasks + core.queued + core.invocations,
        "arena slots": host._engine.arena.statistics().slots,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(descendants(os.getpid())),
    }


async def quiet(host: Runtime) -> dict[str, int]:
    """What the host holds once its containers have left for being idle."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end and (host.container_pids() or host.statistics().core.slots):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)
    return left_over(host)


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    kills = 60 if options.quick else 1000
    text = workflow().replace("retry:", "scaling: {keep_alive_s: 1, max_replicas: 3}, retry:")
    async with engine(text, max_containers=16) as host:
        await call(host, "storm", {"n": 4, "nbytes": NBYTES})
        before = await quiet(host)
        storm = Storm(host, kills)
        async with asyncio.TaskGroup() as tasks:
            for work in (storm.kill(), *(storm.load() for _ in range(CALLERS))):
                tasks.create_task(work)
        after = await quiet(host)
        host._core.check_integrity()
    leaked = {name: count - before[name] for name, count in after.items() if count > before[name]}
    if leaked:
        print("left behind:", leaked)
    words = f"{kills} kills, {storm.calls} invocations, {storm.items} items"
    report.add("kill_lost", f"{words}: lost", storm.lost, at_most=0)
    report.add("kill_doubled", f"{words}: twice", storm.doubled, at_most=0)
    report.add("kill_leaked", f"{words}: slots, tasks, descriptors, processes left", sum(leaked.values()), at_most=0)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("killstorm")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
