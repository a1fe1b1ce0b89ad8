"""Is anything lost, doubled or left behind when containers and hosts are killed at random under load?

1,000 SIGKILLs of random containers while four callers send arrays through fan-outs, streams, batches and chains that
hand on directly, with so little memory that much goes to disk; the last third on one core, where reports are posted.
Besides, containers die by themselves at set points of their work: while they write, before and after they hand on.
Every item is held against what it must be. What is left is counted afterwards, by the kernel and by the host's own
books: bytes, descriptors and processes beyond those of the quiet host before.

Then servers themselves are killed that have a lender and a journal (see `owner_storm`); it counts with the rest.

Then the same over two hosts (`hosts_kill_*`): containers of both are killed, their connection is broken, and the second
host's server is killed and started anew.

`--quick` leaves servers and second hosts to the tests (`tests/fault`), which go through the same storms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from argparse import Namespace
from collections.abc import Iterator

import uvloop

from bench import host_storm, owner_storm
from bench.engine import engine
from bench.footprint import footprint
from bench.report import Report, arguments, finish
from bench.storm import ARENA_BYTES, NBYTES, Load, idle, kill, left_behind, progress, spills
from bench.storm_flows import FLOWS, Tally
from dataflower.host.runtime import Runtime
from dataflower.testing.leaks import held

POINTS = (
    "container.mid_write:kill:stage=pass:hit=40,container.mid_compute:kill:stage=make:hit=150,"
    "container.mid_handover:kill:stage=b:hit=9,container.after_handover:kill:stage=c:hit=15,"
    "container.before_run:kill:stage=some:hit=25"
)
"""Where containers die by themselves: each in its n-th passage."""


@contextlib.contextmanager
def armed() -> Iterator[None]:
    """Containers that are started meanwhile die at `POINTS`."""
    os.environ["DATAFLOWER_FAILPOINTS"] = POINTS
    try:
        yield
    finally:
        del os.environ["DATAFLOWER_FAILPOINTS"]


class Storm:
    """A killer, and what it has met."""

    def __init__(self, host: Runtime, kills: int, seed: int) -> None:
        self.left = kills
        self.under_load = self.spilling = 0
        self._host = host
        self._random = random.Random(seed)

    async def kill(self) -> None:
        """Kill random containers until enough have been."""
        while self.left:
            await progress(self._host, self._random)
            pids = sorted(self._host.container_pids().values())
            if pids and kill(self._random.choice(pids)):
                self.left -= 1
                self.under_load += bool(self._host.statistics().core.tasks)
                self.spilling += spills(self._host)


async def storm(kills: int, cpus: int) -> tuple[Tally, dict[str, int], str]:
    """One host under fire: what came, what was left behind, and what there was of it, in words."""
    sources = [flow.source for flow in FLOWS]
    settings = {"cpus": cpus, "max_containers": 32, "container_arena_bytes": ARENA_BYTES}
    with armed():
        async with engine(*sources, **settings) as host:
            for flow in FLOWS:
                await Load(host, 0).call(flow, 2)
            await idle(host)
            before, own = footprint(os.getpid()), held(host)
            load, killer = Load(host, seed=cpus), Storm(host, kills, seed=7 + cpus)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(killer.kill())
                tasks.create_task(load.run(lambda: killer.left > 0))
            await idle(host)
            left = await left_behind(os.getpid(), before)
            left |= {name: count - own[name] for name, count in held(host).items() if count > own[name]}
            host._core.check_integrity()
            counts = host.statistics().engine
    words = (
        f"cpus {cpus}: {kills} kills, {killer.under_load} of them under load, {killer.spilling} while outputs were on "
        f"disk; {load.tally.calls} invocations, {counts.relayed} tasks handed on, {counts.posted} reports posted"
    )
    return load.tally, left, words


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    kills = 36 if options.quick else 1000
    begun = time.monotonic()
    whole, leaked = Tally(), 0
    for share, cpus in ((kills - kills // 3, 2), (kills // 3, 1)):
        tally, left, words = await storm(share, cpus)
        print(words, *tally.words, f"left behind: {left}" if left else "nothing left behind", sep="\n  ")
        whole.join(tally)
        leaked += sum(left.values())
    if not options.quick:
        owners = await owner_storm.measure(report)
        whole.join(owners.tally)
        leaked += sum(owners.left.values())
    some = "" if options.quick else " and some of servers"
    took = f"{kills} kills{some} in {time.monotonic() - begun:.0f} s, {whole.items} arrays of {NBYTES} bytes"
    report.add("kill_lost", f"{took}: lost", whole.lost, at_most=0)
    report.add("kill_doubled", f"{took}: twice", whole.doubled, at_most=0)
    report.add("kill_leaked", f"{took}: bytes, descriptors, processes, slots left", leaked, at_most=0)
    if not options.quick:
        await host_storm.measure(report)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("killstorm")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
