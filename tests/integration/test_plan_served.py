"""A plan in a running host: containers to the plan, batches to the plan, overload refused, kept over a restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import workflows_for_tests as w

from dataflower.errors import Code, DataflowerError, InvalidArgument, ResourceExhausted
from dataflower.host.plans import read_plan
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.function import Port
from dataflower.spec.workflow import Batch, Output, Workflow

PLAN = """apiVersion: dataflower/v1
kind: Plan
workflow: served
rate_per_s: 20
slo_ms: SLO
percentile: 100
arrivals: paced
billing: integer
cost_per_hour: 1
cost_per_1000: 0.01
worst_ms: 390
stages:
  b:
    budget_ms: SLO
    rate_per_s: 20
    groups:
      - {device: cpu, batch: 4, machines: 2, replicas: REPLICAS, rate_per_s: 20, duration_ms: 200, timeout_ms: 100,
         worst_ms: 390}
"""


def plan(replicas: int = 2, slo_ms: int = 400) -> str:
    return PLAN.replace("REPLICAS", str(replicas)).replace("SLO", str(slo_ms))


def served(function: str = "pids_slowly") -> Workflow:
    stage = w.stage("b", function, {"x": "inputs.x"}, batch=Batch(max_size=8))
    return Workflow("served", {"b": stage}, (Port("x"),), (Output("y", w.edge("b.out")),))


def config(**settings: Any) -> HostConfig:
    return HostConfig(code_path=w.CODE_PATH, cpus=2, **settings)


async def call(host: Runtime, x: float) -> int:
    result = await (await host.invoke("served", {"x": x})).result()
    return int(result["y"])


async def test_containers_are_there_before_the_first_call_and_batches_keep_to_the_plan() -> None:
    async with Runtime(config()) as host:
        status = await host.apply(served(), "s", plan=plan())
        assert status.plan == plan()
        await host.wait_ready("served")
        (stage,) = host.workflow("served").stages
        assert (stage.idle, stage.busy) == (2, 0)
        handles = [await host.invoke("served", {"x": 0.0}) for _ in range(8)]
        await asyncio.gather(*(handle.result() for handle in handles))
        sizes = [task.batch for handle in handles for task in (handle.trace.tasks if handle.trace else ())]
        assert sizes == [4] * 8


async def test_a_plan_is_changed_and_taken_back_while_it_runs() -> None:
    async with Runtime(config()) as host:
        await host.apply(served(), "s", plan=plan(1))
        await host.wait_ready("served")
        assert (await host.apply(served(), "s")).plan == plan(1)
        changed = await host.apply(served(), "s", plan=plan(2))
        assert (changed.version, changed.plan) == (1, plan(2))
        await host.wait_ready("served")
        assert host.workflow("served").stages[0].idle == 2
        assert (await host.apply(served(), "s", plan="")).plan == ""
        handles = [await host.invoke("served", {"x": 0.0}) for _ in range(9)]
        await asyncio.gather(*(handle.result() for handle in handles))
        sizes = [task.batch for handle in handles for task in (handle.trace.tasks if handle.trace else ())]
        assert max(sizes) > 4


async def test_what_would_be_late_is_refused_with_the_time_to_come_back() -> None:
    async with Runtime(config()) as host:
        await host.apply(served(), "s", plan=plan(1))
        await host.wait_ready("served")
        handles, refusals = [], []
        for _ in range(40):
            try:
                handles.append(await host.invoke("served", {"x": 0.2}))
            except ResourceExhausted as error:
                refusals.append(error)
        assert refusals
        assert all(error.code is Code.RESOURCE_EXHAUSTED and error.retry_after_s for error in refusals)
        assert all(0.01 <= (error.retry_after_s or 0) < 5 for error in refusals)
        assert 4 <= len(handles) <= 12
        await asyncio.gather(*(handle.result() for handle in handles))


async def test_a_plan_is_swapped_under_running_tasks_and_kept_over_a_restart(tmp_path: Path) -> None:
    async with Runtime(config(state_dir=tmp_path)) as host:
        await host.apply(served(), "s", plan=plan(1, 2000))
        await host.wait_ready("served")
        registry = host._registry
        deployed = registry.find("served")
        former = deployed.planned
        assert former is not None
        larger = read_plan(plan(3, 2000), "plan", served())
        handles = [await host.invoke("served", {"x": 0.3}) for _ in range(6)]
        assert await registry.swap(deployed, former, larger)
        assert not await registry.swap(deployed, former, read_plan(plan(2), "plan", served())), "it has another by now"
        assert len(await asyncio.gather(*(handle.result() for handle in handles))) == 6
        assert all(trace.attempt == 1 for h in handles for trace in (h.trace.tasks if h.trace else ()))
        await host.wait_ready("served")
        assert host.workflow("served").stages[0].idle == 3
        with pytest.raises(InvalidArgument, match="keeps 65 containers"):
            await registry.swap(deployed, larger, read_plan(plan(65), "plan", served()))
    async with Runtime(config(state_dir=tmp_path), load=lambda _text, _file: served()) as host:
        assert host.workflow("served").plan == plan(3, 2000)


async def test_plans_of_several_workflows_share_the_containers_of_the_host() -> None:
    other = replace(served(), name="other")
    async with Runtime(config(max_containers=3)) as host:
        await host.apply(served(), "s", plan=plan(2))
        with pytest.raises(InvalidArgument, match=r"keeps 2 containers .*other workflows keep 2: .* at most 3"):
            await host.apply(other, "o", plan=plan(2).replace("workflow: served", "workflow: other"))
        await host.apply(other, "o", plan=plan(1).replace("workflow: served", "workflow: other"))
        await host.apply(served(), "s", plan="")
        await host.apply(other, "o", plan=plan(3).replace("workflow: served", "workflow: other"))


async def test_a_plan_survives_a_restart(tmp_path: Path) -> None:
    async with Runtime(config(state_dir=tmp_path)) as host:
        await host.apply(served(), "s", plan=plan())
    async with Runtime(config(state_dir=tmp_path), load=lambda _text, _file: served()) as host:
        assert host.workflow("served").plan == plan()
        await host.wait_ready("served")
        assert host.workflow("served").stages[0].idle == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Plan", "workflow"),
        (plan().replace("workflow: served", "workflow: other"), "the plan is for workflow 'other', not 'served'"),
        (plan().replace("batch: 4", "batch: 16").replace("rate_per_s: 20,", "rate_per_s: 2,"), "max_size is 8"),
        (plan(65), "keeps 65 containers .* for stage 'b'.*: this host runs at most 64 .*raise `max_containers`"),
        (plan().replace("device: cpu", "device: v100"), "stage 'b' is planned on 'v100', .* it has cpu .*--device cpu"),
    ],
)
async def test_a_bad_plan_changes_nothing(text: str, message: str) -> None:
    async with Runtime(config()) as host:
        with pytest.raises(InvalidArgument, match=message):
            await host.apply(served(), "s", plan=text)
        with pytest.raises(DataflowerError, match="no workflow"):
            host.workflow("served")
