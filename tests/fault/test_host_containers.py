"""Containers and their zygote are killed under a working host: right error or right answer, and nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import workflows_for_tests as w

from dataflower.errors import InvocationFailed
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Fanout, Retry, Scaling, Workflow

pytestmark = pytest.mark.fault
AGAIN = Retry(max_attempts=100, interval_s=0.01, backoff_rate=1.0, jitter="none")


@pytest.fixture
async def host() -> AsyncIterator[Runtime]:
    async with Runtime(HostConfig(code_path=w.CODE_PATH, cpus=2, cancel_grace_s=0.3, stop_grace_s=2.0)) as running:
        await running.apply(flow(), "flow")
        yield running
        await settle(running)
        running._core.check_integrity()
        assert (await (await running.invoke("flow", {"n": 2, "nbytes": 10})).result()) == {"sums": [0, 10]}
        await settle(running)
        core = running.statistics().core
        assert (core.slots, core.invocations, core.tasks, core.queued) == (0, 0, 0, 0)


async def settle(host: Runtime) -> None:
    """Wait until cancelled tasks have been given up."""
    end = time.monotonic() + 60.0
    while host.statistics().core.invocations and time.monotonic() < end:
        await asyncio.sleep(0.01)


def flow() -> Workflow:
    """A stream of arrays, summed one by one, every stage tried again and again."""
    stages = [
        w.stage("make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True, retry=AGAIN),
        w.stage(
            "sum", "checksum", {"x": w.edge("make.out", Fanout.EACH)}, retry=AGAIN, scaling=Scaling(max_replicas=2)
        ),
    ]
    ports = (w.Port("n", w.INT), w.Port("nbytes", w.INT))
    return w.workflow("flow", stages, {"sums": w.edge("sum.out", Fanout.GATHER)}, ports)


async def test_containers_killed_under_a_stream_are_made_good(host: Runtime) -> None:
    invocation = await host.invoke("flow", {"n": 250, "nbytes": 400_000})
    result = asyncio.ensure_future(invocation.result())
    kills = 0
    while not result.done() and kills < 6:
        await asyncio.sleep(0.05)
        pids = sorted(host.container_pids().values())
        if pids:
            os.kill(pids[kills % len(pids)], signal.SIGKILL)
            kills += 1
    assert (await result)["sums"] == [400_000 * (i % 256) for i in range(250)]
    assert kills


async def test_a_caller_that_leaves_in_the_middle_leaves_nothing(host: Runtime) -> None:
    invocation = await host.invoke("flow", {"n": 10_000, "nbytes": 400_000})
    result = asyncio.ensure_future(invocation.result())
    while not host.workflow("flow").stages[1].done:
        await asyncio.sleep(0.01)
    result.cancel()
    await asyncio.gather(result, return_exceptions=True)
    assert host.statistics().cancelled == 1


async def test_a_zygote_killed_with_orders_waiting_is_replaced(host: Runtime) -> None:
    result = asyncio.ensure_future((await host.invoke("flow", {"n": 5, "nbytes": 1000})).result())
    (zygote,) = host.zygote_pids()
    os.kill(zygote, signal.SIGKILL)
    assert (await result)["sums"] == [1000 * i for i in range(5)]
    assert host.statistics().engine.launcher.zygotes_lost == 1


async def test_a_stopped_container_is_killed_when_its_task_is_out_of_time(host: Runtime) -> None:
    await host.apply(w.single("sleep"), "sleep")
    await (await host.invoke("sleep", {"x": 0.0})).result()
    (pid,) = host.container_pids().values()
    os.kill(pid, signal.SIGSTOP)
    invocation = await host.invoke("sleep", {"x": 0.0}, deadline=time.monotonic() + 0.2)
    with pytest.raises(InvocationFailed, match="DeadlineExceeded"):
        await invocation.result()
    while pid in host.container_pids().values():
        await asyncio.sleep(0.01)
    assert await (await host.invoke("sleep", {"x": 0.0})).result() == {"y": 0.0}
