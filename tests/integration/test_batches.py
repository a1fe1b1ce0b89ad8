"""Functions that take several tasks at once, in real containers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import workflows_for_tests as w

from dataflower.errors import Code, InvocationFailed
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.function import Kind, Port, PortType
from dataflower.spec.workflow import Batch, Fanout, Output, Retry, Scaling, Workflow


@pytest.fixture
async def host() -> AsyncIterator[Runtime]:
    config = HostConfig(code_path=w.CODE_PATH, cpus=2, cancel_grace_s=0.3, stop_grace_s=2.0)
    async with Runtime(config) as running:
        yield running
        end = time.monotonic() + 60
        while (core := running.statistics().core).slots or core.invocations or core.tasks:
            assert time.monotonic() < end, core
            await asyncio.sleep(0.01)


def fanned(function: str, batch: Batch, **rest: Any) -> Workflow:
    """The items of a stream input, each a task, gathered again."""
    given = w.stage("b", function, {"x": w.edge("inputs.x", Fanout.EACH)}, batch=batch, **rest)
    outputs = (Output("y", w.edge("b.out", Fanout.GATHER)),)
    return Workflow("batched", {"b": given}, (Port("x", stream=True),), outputs)


def single(function: str, batch: Batch, **rest: Any) -> Workflow:
    """One task for each invocation."""
    given = w.stage("b", function, {"x": "inputs.x"}, batch=batch, scaling=Scaling(max_replicas=1), **rest)
    return Workflow("batched", {"b": given}, (Port("x"),), (Output("y", w.edge("b.out")),))


async def call(host: Runtime, workflow: Workflow, **inputs: Any) -> dict[str, Any]:
    await host.apply(workflow, workflow.name)
    return await (await host.invoke(workflow.name, inputs)).result()


WARM = Batch(max_size=4, wait_ms=20.0)


async def test_every_task_gets_its_own_output(host: Runtime) -> None:
    found = (await call(host, fanned("double_together", WARM), x=list(range(10))))["y"]
    assert [item["twice"] for item in found] == [2 * n for n in range(10)]
    assert {item["together"] for item in found} <= {1, 2, 3, 4}
    assert max(item["together"] for item in found) == 4


async def test_arrays_are_stacked_by_shape(host: Runtime) -> None:
    arrays = [np.full((2 + n % 2, 3000), n, dtype="float32") for n in range(8)]
    found = (await call(host, fanned("Stacked", WARM, params={"plus": 2}), x=arrays))["y"]
    assert all(np.array_equal(out, given + 2) for out, given in zip(found, arrays, strict=True))
    small = [np.full((1 + n % 2,), n, dtype="int64") for n in range(8)]
    found = await (await host.invoke("batched", {"x": small})).result()
    assert [out.tolist() for out in found["y"]] == [(given + 2).tolist() for given in small]


async def test_an_exception_in_the_list_fails_one_task(host: Runtime) -> None:
    await host.apply(single("double_together", WARM), "s")
    running = [await host.invoke("batched", {"x": x}) for x in (1, 13, 3)]
    ends = await asyncio.gather(*(handle.result() for handle in running), return_exceptions=True)
    assert (ends[0]["y"]["twice"], ends[2]["y"]["twice"]) == (2, 6)
    assert isinstance(ends[1], InvocationFailed)
    assert (ends[1].failure.kind, ends[1].failure.message) == ("ValueError", "not 13")


@pytest.mark.parametrize(("bad", "kind"), [(99, "ValueError"), (666, "TypeMismatch")])
async def test_a_batch_that_fails_is_tried_again_one_by_one(host: Runtime, bad: int, kind: str) -> None:
    retry = Retry(max_attempts=2, interval_s=0.0)
    await host.apply(single("double_together", WARM, retry=retry), "s")
    running = [await host.invoke("batched", {"x": x}) for x in (1, bad, 3)]
    ends = await asyncio.gather(*(handle.result() for handle in running), return_exceptions=True)
    assert [end["y"] for end in (ends[0], ends[2])] == [{"twice": n, "together": 1} for n in (2, 6)]
    assert isinstance(ends[1], InvocationFailed)
    assert ends[1].failure.kind == kind


async def test_a_value_of_the_wrong_type_fails_alone(host: Runtime) -> None:
    workflow = single("double_together", WARM)
    typed = replace(workflow.stages["b"], input_ports=(Port("x", PortType(Kind.INT)),))
    await host.apply(replace(workflow, stages={"b": typed}), "t")
    running = [await host.invoke("batched", {"x": x}) for x in (1, "two", 3)]
    ends = await asyncio.gather(*(handle.result() for handle in running), return_exceptions=True)
    assert (ends[0]["y"]["twice"], ends[2]["y"]["twice"]) == (2, 6)
    assert isinstance(ends[1], InvocationFailed)
    assert ends[1].failure.code is Code.INVALID_ARGUMENT


async def test_a_cancelled_member_is_told_and_the_others_go_on(host: Runtime) -> None:
    await host.apply(single("cancelled_members", Batch(max_size=3, wait_ms=1000.0)), "s")
    running = [await host.invoke("batched", {"x": 0.0}) for _ in range(3)]
    await wait_busy(host)
    await host.cancel(running[1].id)
    assert [(await running[n].result())["y"] for n in (0, 2)] == [2, 2]
    with pytest.raises(InvocationFailed, match="cancelled on request"):
        await running[1].result()


async def test_a_batch_that_nobody_wants_is_interrupted(host: Runtime) -> None:
    await host.apply(single("pids_slowly", Batch(max_size=2, wait_ms=1000.0)), "s")
    running = [await host.invoke("batched", {"x": 0.0}) for _ in range(2)]
    before = {(await handle.result())["y"] for handle in running}
    running = [await host.invoke("batched", {"x": 30.0}) for _ in range(2)]
    await wait_busy(host)
    for handle in running:
        await host.cancel(handle.id)
    ends = await asyncio.gather(*(handle.result() for handle in running), return_exceptions=True)
    assert all(isinstance(end, InvocationFailed) for end in ends)
    assert len(before) == 1


@pytest.mark.fault
async def test_kill_9_of_a_container_that_holds_a_batch(host: Runtime) -> None:
    retry = Retry(("ContainerCrashed",), max_attempts=3, interval_s=0.0)
    await host.apply(single("pids_slowly", Batch(max_size=3, wait_ms=500.0), retry=retry), "s")
    running = [await host.invoke("batched", {"x": 0.5}) for _ in range(3)]
    await wait_busy(host)
    (victim,) = host.container_pids().values()
    os.kill(victim, signal.SIGKILL)
    ends = [(await handle.result())["y"] for handle in running]
    assert victim not in ends
    await host.apply(single("pids_slowly", Batch(max_size=3, wait_ms=500.0)), "without retry")
    before = begun(host)
    running = [await host.invoke("batched", {"x": 0.5}) for _ in range(3)]
    await wait_begun(host, before)
    for pid in host.container_pids().values():
        os.kill(pid, signal.SIGKILL)
    crashed = await asyncio.gather(*(handle.result() for handle in running), return_exceptions=True)
    assert [end.failure.kind for end in crashed if isinstance(end, InvocationFailed)] == ["ContainerCrashed"] * 3


async def test_outputs_that_fill_the_arena_leave_before_the_rest() -> None:
    """Eight outputs of a megabyte in an arena for three: those that are done must leave for the rest to find room."""
    config = HostConfig(code_path=w.CODE_PATH, cpus=2, container_arena_bytes=3 << 20, spill_dir=None)
    async with Runtime(config) as host:
        given = w.stage("b", "Stacked", {"x": w.edge("inputs.x", Fanout.EACH)}, batch=Batch(max_size=8, wait_ms=200.0))
        after = w.stage("c", "checksum", {"x": "b.out"})
        outputs = (Output("y", w.edge("c.out", Fanout.GATHER)),)
        workflow = Workflow("batched", {"b": given, "c": after}, (Port("x", stream=True),), outputs)
        arrays = [np.full(1 << 20, n, dtype="uint8") for n in range(8)]
        found = await asyncio.wait_for(call(host, workflow, x=arrays), 30)
        assert found["y"] == [(n + 1) << 20 for n in range(8)]


def begun(host: Runtime) -> set[int]:
    """The last task of each container that has had one."""
    return {task for process in host._engine._launcher._processes.values() for task in process.board.begun()}


async def wait_begun(host: Runtime, before: set[int]) -> None:
    """Return when a container has begun another task: one killed before that would run elsewhere, at no attempt."""
    end = time.monotonic() + 60
    while begun(host) <= before:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def wait_busy(host: Runtime) -> None:
    """Return when a container runs something."""
    end = time.monotonic() + 60
    while not host.statistics().core.tasks:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
