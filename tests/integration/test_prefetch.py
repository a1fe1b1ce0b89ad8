"""While a function computes, what the next task will read comes to it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import workflows_for_tests as w
from hosts_rig import PATIENCE_S, config, pair

from dataflower.host.runtime import Runtime
from dataflower.host.settings import DefaultIsolation
from dataflower.spec.workflow import Resources, Scaling, Workflow

BYTES = 8 << 20
SPIN_S = 2.0


def spinning(**rest: object) -> Workflow:
    """One container that computes in pure Python."""
    return w.single("spin", scaling=Scaling(max_replicas=1), **rest)


def mapped(pid: int) -> int:
    """Bytes of the host's arena that are present in the address space of a process."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            ours = "dataflower-arena-0 " in f"{line} "
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


async def test_the_next_tasks_bytes_come_to_the_other_host_while_the_function_spins() -> None:
    async with pair() as hosts:
        await hosts.call(spinning(resources=Resources(host="b")), x={"seconds": 0.0})
        first = await hosts.owner.invoke("spin", {"x": {"seconds": SPIN_S}})
        await hosts.until(lambda: hosts.owner.workflow("spin").stages[0].busy == 1)
        second = await hosts.owner.invoke("spin", {"x": {"seconds": 0.0, "data": np.ones(BYTES, np.uint8)}})
        await hosts.until(lambda: hosts.lender.peers()[0].bytes_in >= BYTES)
        assert not first.is_over, "they came while it was spinning"
        assert hosts.owner.workflow("spin").stages[0].queued == 1
        assert (await second.result())["y"] == BYTES
        await first.result()
        await hosts.settled()
        assert hosts.owner.peers()[0].bytes_out == BYTES, "and they came once"


async def test_the_next_tasks_memory_is_mapped_while_the_function_spins() -> None:
    async with Runtime(config(isolation=DefaultIsolation.PROCESS)) as host:
        await host.apply(spinning(), "spin")
        await (await host.invoke("spin", {"x": {"seconds": 0.0}})).result()
        (pid,) = host.container_pids().values()
        assert not mapped(pid)
        first = await host.invoke("spin", {"x": {"seconds": SPIN_S}})
        second = await host.invoke("spin", {"x": {"seconds": 0.0, "data": np.ones(BYTES, np.uint8)}})
        end = time.monotonic() + PATIENCE_S
        while mapped(pid) < BYTES:
            assert time.monotonic() < end, f"{mapped(pid)} bytes are mapped"
            await asyncio.sleep(0.005)
        assert not first.is_over, "it was mapped while the function was spinning"
        assert (await second.result())["y"] == BYTES


async def test_who_is_cancelled_before_its_turn_leaves_nothing_behind() -> None:
    async with pair() as hosts:
        await hosts.call(spinning(resources=Resources(host="b")), x={"seconds": 0.0})
        first = await hosts.owner.invoke("spin", {"x": {"seconds": 0.5}})
        await hosts.until(lambda: hosts.owner.workflow("spin").stages[0].busy == 1)
        hosts.way.piece = 1 << 12
        second = await hosts.owner.invoke("spin", {"x": {"seconds": 0.0, "data": np.ones(64 << 20, np.uint8)}})
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_out > 0)
        second.cancel()
        await first.result()
        await hosts.settled()
        hosts.way.piece = 1 << 16
        third = await hosts.owner.invoke("spin", {"x": {"seconds": 0.0, "data": np.ones(BYTES, np.uint8)}})
        assert (await third.result())["y"] == BYTES
