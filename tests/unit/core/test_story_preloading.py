"""Preloading seen from outside: what the core asks for ahead of calls, what it lets go, and that calls come first."""

from __future__ import annotations

import math
from typing import Any

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Scaling, Workflow
from dataflower.testing.story import Story, stage, workflow

MIB = 1024 * 1024
GIB = 1024 * MIB


def one(name: str = "w", **fields: Any) -> Workflow:
    """A stage with libraries and weights."""
    made = workflow(
        [stage("a", {"x": "inputs.x"}, model=f"{name}-weights", preload=("torch",), **fields)], {"r": "a.out"}
    )
    return Workflow(name, made.stages, made.inputs, made.outputs)


class Slow(Story):
    """Its containers take a second to start, and say so."""

    def hello(self) -> None:
        while self.starting:
            self.tell(events.ContainerSaid(self.starting.pop(0), wire.Hello(wire.VERSION, 1, 0.3, 0.7)))


def story(
    *workflows: Workflow, memory_bytes: int = 8 * GIB, device_bytes: int = 8 * GIB, containers: int = 64
) -> Story:
    config = CoreConfig(
        preload=True,
        preload_memory_bytes=memory_bytes,
        preload_device_bytes=device_bytes,
        max_containers=containers,
    )
    return Slow(*workflows, config=config)


def said(told: Story, kind: type) -> list[Any]:
    return [command for command in told.said if isinstance(command, kind)]


def size(told: Story, model: str = "w-weights", nbytes: int = GIB) -> None:
    told.tell(events.WeightsSized(model, nbytes))
    told.wait(1.1)


def test_everything_that_fits_is_ready_before_the_first_call() -> None:
    told = story(one())
    assert said(told, commands.SizeWeights) == [commands.SizeWeights("w-weights")]
    size(told)
    assert said(told, commands.Preload)[-1].modules == ("torch",)
    (hold,) = said(told, commands.HoldWeights)[-1].models
    assert hold[0] == "w-weights"
    assert len(said(told, commands.StartContainer)) == 1
    told.tell(events.ZygoteStarted(("torch",), 2.0, 100 * MIB))
    told.tell(events.WeightsSized("w-weights", GIB, 0.7, held=True))
    rows = told.core.prepared(told.clock.monotonic())
    assert {row.kind.name: (row.held, ready) for row, ready in rows} == dict.fromkeys(
        ("LIBRARY", "BACKBONE", "KERNELS"), (True, True)
    )
    told.invoke(x=1)
    assert told.ran == ["a"]
    assert len(said(told, commands.StartContainer)) == 1


def test_without_preloading_only_libraries_are_ready() -> None:
    told = Story(one())
    assert [type(command) for command in told.said] == [commands.Preload]
    assert told.core.prepared(0.0) == ()


def test_cap_leaves_out_what_has_no_room() -> None:
    told = story(one(), memory_bytes=300 * MIB)  # libraries are thought to take 200, a container 256
    size(told)
    assert said(told, commands.Preload)
    assert said(told, commands.HoldWeights) == []
    assert said(told, commands.StartContainer) == []


def test_weights_on_a_device_count_there_and_not_in_main_memory() -> None:
    told = story(one(params={"device": "cuda:0"}), one("v"), memory_bytes=300 * MIB)
    assert said(told, commands.SizeWeights)[0] == commands.SizeWeights("w-weights on cuda:0")
    size(told, "w-weights on cuda:0")
    size(told, "v-weights")
    assert [name for name, _ in said(told, commands.HoldWeights)[-1].models] == ["w-weights on cuda:0"]
    told.tell(events.WeightsSized("w-weights on cuda:0", GIB, 0.7, held=True))
    rows = {row.name: (row.held, ready) for row, ready in told.core.prepared(told.clock.monotonic())}
    assert rows["weights w-weights on cuda:0"] == (True, True)
    assert rows["weights v-weights"] == (False, False)


def test_each_device_has_a_cap_of_its_own() -> None:
    placed = [one(name, params={"device": f"cuda:{n}"}) for n, name in enumerate("uvw")]
    also = one("x", params={"device": "cuda"})
    told = story(*placed, also, device_bytes=1500 * MIB)
    for n, name in enumerate("uvw"):
        size(told, f"{name}-weights on cuda:{n}")
    size(told, "x-weights on cuda:0")
    held = [name for name, _ in said(told, commands.HoldWeights)[-1].models]
    assert sorted(name.partition(" on ")[2] for name in held) == ["cuda:0", "cuda:1", "cuda:2"], "one on each"
    nothing = story(one(params={"device": "cuda:0"}), device_bytes=GIB - 1)
    size(nothing, "w-weights on cuda:0")
    assert said(nothing, commands.HoldWeights) == []


def test_what_nobody_calls_is_let_go_and_the_host_comes_to_rest() -> None:
    told = story(one())
    size(told)
    for _ in range(200):
        if told.wake_at == math.inf:
            break
        told.wait(max(0.0, told.wake_at - told.clock.monotonic()) + 0.001)
    assert told.wake_at == math.inf
    assert said(told, commands.HoldWeights)[-1].models == ()
    assert said(told, commands.Unload)[-1].modules == ("torch",)
    assert len(said(told, commands.StopContainer)) == 1


def test_warm_container_makes_room_for_a_call_of_another_function() -> None:
    told = story(one(), one("v", scaling=Scaling(max_replicas=1)), memory_bytes=460 * MIB, containers=1)
    told.wait(1.1)
    assert len(said(told, commands.StartContainer)) == 1
    warm = told.stages and next(iter(told.stages))
    cold = "v1@1" if said(told, commands.StartContainer)[0].key == "w@1" else "w@1"
    told.invoke(key=cold, x=1)
    assert told.leaving == [warm]
    told.leave()
    told.hello()
    assert told.ran == ["a"]


def test_removed_workflow_keeps_nothing() -> None:
    told = story(one())
    size(told)
    told.tell(events.WorkflowRemoved("w@1"))
    told.wait(1.1)
    told.leave()
    assert said(told, commands.HoldWeights)[-1].models == ()
    assert said(told, commands.Unload)
    assert told.core.prepared(told.clock.monotonic()) == ()
    assert told.core.statistics().containers == 0


def test_newer_version_takes_over_what_is_known() -> None:
    told = story(one())
    size(told)
    told.tell(events.WorkflowAdded("w@2", compile_program(one())))
    told.tell(events.WorkflowRemoved("w@1"))
    told.wait(1.1)
    told.leave()
    assert told.core.statistics().containers == 1
    rows = told.core.prepared(told.clock.monotonic())
    assert sorted(row.kind.name for row, _ in rows) == ["BACKBONE", "KERNELS", "LIBRARY"]
    assert said(told, commands.HoldWeights)[-1].models[0][0] == "w-weights"


def test_weights_are_learned_from_what_a_start_has_opened() -> None:
    plain = workflow([stage("a", {"x": "inputs.x"})], {"r": "a.out"})
    told = Story(plain, config=CoreConfig(preload=True, preload_memory_bytes=8 * GIB), deaf=True)
    phase = wire.StartPhase(wire.StartKind.WEIGHTS, "/models/m", 0.5, GIB)
    told.tell(events.ContainerSaid(told.starting.pop(0), wire.Hello(wire.VERSION, 1, 0.1, 0.8, (phase,))))
    told.wait(1.1)
    assert said(told, commands.HoldWeights)[-1].models[0][0] == "/models/m"
    rows = {row.kind.name: row for row, _ in told.core.prepared(told.clock.monotonic())}
    assert rows["BACKBONE"].saved_s == 0.5
    assert round(rows["KERNELS"].saved_s, 6) == 0.4


def test_container_that_dies_is_started_again_but_not_at_once() -> None:
    told = story(one())
    size(told)
    told.exit(next(iter(told.stages)))
    assert len(said(told, commands.StartContainer)) == 1
    told.wait(1.1)
    assert len(said(told, commands.StartContainer)) == 2


def counting_on(prewarm: bool = True) -> DispatchPlan:
    """A plan for a container of stage `a`."""
    group = GroupPlan(batch=1, replicas=1, duration_s=0.1, rate=5.0)
    return DispatchPlan(1.0, 5.0, (StageDispatch("a", (group,), until_s=0.1, worst_s=0.1, prewarm=prewarm),))


class Opening(Story):
    """Its containers open weights when they start."""

    def hello(self) -> None:
        phase = wire.StartPhase(wire.StartKind.WEIGHTS, "w-weights", 0.6, GIB)
        while self.starting:
            self.tell(events.ContainerSaid(self.starting.pop(0), wire.Hello(wire.VERSION, 1, 0.3, 0.7, (phase,))))


def test_weights_that_a_plan_counts_on_are_held_without_preloading() -> None:
    told = Opening(one(), one("v"), config=CoreConfig(preload_memory_bytes=8 * GIB))
    told.tell(events.PlanChanged("w@1", counting_on()))
    assert len(said(told, commands.StartContainer)) == 1
    told.wait(1.1)
    (held,) = said(told, commands.HoldWeights)[-1].models
    assert held[0] == "w-weights"
    assert held[1] > 0
    told.tell(events.WeightsSized("w-weights", GIB, 0.0, held=True))
    rows = {row.name: ready for row, ready in told.core.prepared(told.clock.monotonic()) if row.held}
    assert rows == {"weights w-weights": True, "container w/a": True}
    told.wait(36000)
    assert said(told, commands.HoldWeights)[-1].models == (held,), "what a plan counts on does not fade"
    told.tell(events.PlanChanged("w@1", None))
    told.wait(1.1)
    assert said(told, commands.HoldWeights)[-1].models == ()
    assert told.core.prepared(told.clock.monotonic()) == ()
    assert not said(told, commands.Unload), "fork servers are there for all workflows"


def test_a_plan_that_can_wait_for_weights_holds_none() -> None:
    told = Opening(one(), config=CoreConfig(preload_memory_bytes=8 * GIB))
    told.tell(events.PlanChanged("w@1", counting_on(prewarm=False)))
    told.wait(1.1)
    assert not said(told, commands.HoldWeights)
    assert told.core.prepared(told.clock.monotonic()) == ()


def test_a_workflow_that_is_removed_takes_its_planned_weights_along() -> None:
    told = Opening(one(), config=CoreConfig(preload_memory_bytes=8 * GIB))
    told.tell(events.PlanChanged("w@1", counting_on()))
    told.wait(1.1)
    told.tell(events.WorkflowRemoved("w@1"))
    told.wait(1.1)
    assert said(told, commands.HoldWeights)[-1].models == ()


def test_with_preloading_a_plan_counts_more_than_the_calls_so_far() -> None:
    told = story(one(), one("v"), memory_bytes=2 * GIB)  # libraries and one of two
    size(told)
    size(told, "v-weights")
    told.tell(events.PlanChanged("v1@1", counting_on()))
    told.wait(1.1)
    assert [model for model, _ in said(told, commands.HoldWeights)[-1].models] == ["v-weights"]
