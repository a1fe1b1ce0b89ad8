"""Stages that share their containers (`isolation: shared`): who shares with whom, and that each task keeps its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.device.artifact import Kind
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Isolation, Scaling, Stage, Workflow
from dataflower.testing.story import Story, stage, workflow

SCALING = Scaling(max_replicas=1, concurrency=4)


def member(name: str = "a", adapter: str = "", scaling: Scaling = SCALING, **fields: Any) -> Stage:
    """A stage that shares; `fields` as of `Stage`."""
    own = {"model": "m", "params": {"model": "m", "adapter": adapter}} | fields
    made = stage(name, {"x": "inputs.x"}, adapter=adapter, scaling=scaling, isolation=Isolation.SHARED, **own)
    return replace(made, function="functions:chat")


def one(name: str, adapter: str = "", owner: str = "acme", **fields: Any) -> Workflow:
    made = workflow([member("a", adapter, **fields)], {"r": "a.out"})
    return replace(made, name=name, owner=owner)


def story(*workflows: Workflow, **config: Any) -> Story:
    """Their keys are `{name}@1`."""
    told = Story(config=CoreConfig(**config))
    for item in workflows:
        told.tell(events.WorkflowAdded(f"{item.name}@1", compile_program(item)))
    return told


def runs(told: Story) -> list[tuple[int, wire.RunTask]]:
    return [(c.container, c.message) for c in told.said if isinstance(c, commands.Tell) and _is_run(c)]


def _is_run(command: commands.Tell) -> bool:
    return isinstance(command.message, wire.RunTask)


def done(told: Story, number: int, task: int) -> None:
    told.tell(events.ContainerSaid(number, wire.TaskDone(task, {}, 0, wire.Times())))


def starts(told: Story) -> list[commands.StartContainer]:
    return [command for command in told.said if isinstance(command, commands.StartContainer)]


def test_tasks_of_two_workflows_meet_in_one_container_and_each_brings_its_adapter() -> None:
    told = story(one("hot", "sentiment"), one("cold", "contacts"), one("bare"))
    for number, name in enumerate(("hot", "cold", "bare")):
        told.invoke(f"i{number}", key=f"{name}@1", x=1)
    (start,) = starts(told)
    assert (start.key, start.stage.name, start.stage.isolation) == ("acme@0", "shared-1", None)
    assert start.stage.params == {"model": "m"}  # none of the adapters: it belongs to nobody
    assert {number for number, _ in runs(told)} == {start.container}
    assert [message.served for _, message in runs(told)] == [
        wire.Served("hot", 1, "a", "sentiment"),
        wire.Served("cold", 1, "a", "contacts"),
        wire.Served("bare", 1, "a", ""),
    ]


def test_who_has_another_owner_weights_or_parameters_has_another_container() -> None:
    told = story(
        one("w"),
        one("other-owner", owner="globex"),
        one("no-owner", owner=""),
        one("nobody-either", owner=""),
        one("other-weights", model="n"),
        one("other-params", params={"max_tokens": 8}),
        one("other-places", scaling=Scaling(concurrency=8)),
    )
    names = ("w", "other-owner", "no-owner", "nobody-either", "other-weights", "other-params", "other-places")
    for name in names:
        told.invoke(name, key=f"{name}@1", x=1)
    assert len(starts(told)) == len(names)
    assert len({number for number, _ in runs(told)}) == len(names)
    assert [start.key for start in starts(told)[:4]] == ["acme@0", "globex@0", "no-owner@0", "nobody-either@0"]


def test_two_stages_of_a_workflow_share_without_an_owner_and_the_second_is_reached_by_the_host() -> None:
    chain = workflow(
        [member("a", "x"), replace(member("b", "y"), inputs=stage("b", {"x": "a.out"}).inputs)], {"r": "b.out"}
    )
    told = story(chain)
    for number in range(3):  # the second and third know how long the stage takes
        told.invoke(f"i{number}", x=1)
        for name in ("a", "b"):
            container, message = runs(told)[-1]
            assert message.served is not None
            assert (message.served.stage, message.then) == (name, None)
            told.tell(
                events.ContainerSaid(
                    container, wire.TaskDone(message.task, {"out": wire.Value(b"\x01")}, 0, wire.Times(1.0, 1.0, 1.001))
                )
            )
        assert told.finished[f"i{number}"] is None
    assert len(starts(told)) == 1


def test_the_container_stays_until_the_last_workflow_is_gone() -> None:
    told = story(one("hot"), one("cold"))
    told.invoke("i", key="hot@1", x=1)
    container, message = runs(told)[0]
    done(told, container, message.task)
    told.tell(events.WorkflowRemoved("hot@1"))
    assert not told.leaving
    told.invoke("j", key="cold@1", x=1)
    assert runs(told)[1][0] == container
    told.tell(events.WorkflowRemoved("cold@1"))
    assert not told.leaving  # its call still runs
    done(told, container, runs(told)[1][1].task)
    assert told.leaving == [container]


def test_a_crash_fails_what_all_of_them_had_there_and_the_next_call_starts_another() -> None:
    told = story(one("hot"), one("cold"))
    told.invoke("i", key="hot@1", x=1)
    told.invoke("j", key="cold@1", x=1)
    told.exit(runs(told)[0][0])
    failures = [told.finished["i"], told.finished["j"]]
    assert [(f.kind, f.stage) for f in failures if f is not None] == [("ContainerCrashed", "a")] * 2
    told.invoke("k", key="cold@1", x=1)
    assert len(starts(told)) == 2
    assert runs(told)[-1][0] == starts(told)[1].container


def test_a_new_version_takes_over_the_container_and_tells_its_number() -> None:
    told = story(one("hot", "sentiment"))
    told.invoke("i", key="hot@1", x=1)
    container, message = runs(told)[0]
    done(told, container, message.task)
    told.tell(events.WorkflowAdded("hot@2", compile_program(one("hot", "better"))))
    told.tell(events.WorkflowRemoved("hot@1"))
    told.invoke("j", key="hot@2", x=1)
    assert runs(told)[1][0] == container
    assert runs(told)[1][1].served == wire.Served("hot", 2, "a", "better")


def test_the_most_demanding_of_them_says_how_many_containers_there_are() -> None:
    told = story(one("hot", scaling=replace(SCALING, min_replicas=1, keep_alive_s=5)))
    assert len(starts(told)) == 1
    told.tell(events.WorkflowAdded("cold@1", compile_program(one("cold", scaling=replace(SCALING, max_replicas=3)))))
    for number in range(9):
        told.invoke(f"i{number}", key="cold@1", x=1)
    assert len(starts(told)) == 3
    told.tell(events.WorkflowRemoved("hot@1"))
    for container, message in runs(told):
        done(told, container, message.task)
    told.wait(100)
    assert sorted(told.leaving) == [1, 2, 3]  # nobody needs one always any more


def test_plans_add_up() -> None:
    told = story(one("hot"), one("cold"), cpus=4)
    for key, replicas in (("hot@1", 1), ("cold@1", 2)):
        group = GroupPlan(1, replicas, 1.0, 1.0)
        dispatch = DispatchPlan(1.0, 1.0, (StageDispatch("a", (group,), 1.0, 1.0),), admission=False)
        told.tell(events.PlanChanged(key, dispatch))
    assert len(starts(told)) == 2  # what one of them needs at least
    for number in range(12):
        told.invoke(f"i{number}", key="hot@1", x=1)
    assert len(starts(told)) == 3  # and all of them at most
    told.tell(events.PlanChanged("cold@1", None))
    told.tell(events.PlanChanged("hot@1", None))
    for container, message in runs(told):
        done(told, container, message.task)
    told.wait(100)
    assert len(told.leaving) == 3


def test_who_shares_is_told_to_people() -> None:
    told = story(
        one("hot"),
        one("cold"),
        one("alone", owner=""),
        replace(one("own"), stages={"a": stage("a", {"x": "inputs.x"})}),
    )
    told.invoke("i", key="hot@1", x=1)
    (hot,) = told.core.stages("hot@1")
    assert (hot.stage, hot.busy, hot.key, hot.containers_of, hot.shares) == ("a", 1, "acme@0", "shared-1", ("cold/a",))
    (alone,) = told.core.stages("alone@1")
    assert (alone.is_shared, alone.shares) == (True, ())
    (own,) = told.core.stages("own@1")
    assert (own.is_shared, own.key, own.containers_of) == (False, "own@1", "a")


def test_a_full_queue_names_the_stage_of_the_caller() -> None:
    told = story(
        one("hot", scaling=replace(SCALING, concurrency=1, max_queued=1)),
        one("cold", scaling=replace(SCALING, concurrency=1)),
    )
    for number in range(3):
        told.invoke(f"i{number}", key="hot@1", x=1)
    told.invoke("j", key="cold@1", x=1)
    failure = told.finished["i2"]
    assert failure is not None
    assert (failure.kind, "'a'" in failure.message) == ("QueueFull", True)
    assert "j" not in told.finished  # it may wait longer


def test_a_shared_pool_has_the_calls_of_all_when_it_is_about_preloading() -> None:
    gib = 1024**3
    told = story(one("hot"), one("cold"), preload=True, preload_memory_bytes=8 * gib)
    told.tell(events.WeightsSized("m", gib))
    told.wait(1.1)
    assert len(starts(told)) == 1  # kept ready once for both
    rows = told.core.prepared(told.clock.monotonic())
    assert rows is not None
    (container,) = (row for row, _ in rows if row.users == ("acme/shared-1",) and row.kind is Kind.KERNELS)
    for number in range(20):
        told.invoke(f"i{number}", key="hot@1", x=1)
    one_more = told.core.prepared(told.clock.monotonic())
    assert one_more is not None
    assert next(row.value for row, _ in one_more if row.name == container.name) > container.value
    told.tell(events.WorkflowRemoved("hot@1"))
    told.wait(1.1)
    left = told.core.prepared(told.clock.monotonic())
    assert left is not None
    assert container.name in [row.name for row, _ in left]
    told.tell(events.WorkflowRemoved("cold@1"))
    told.wait(1.1)
    assert told.core.prepared(told.clock.monotonic()) == ()


def test_it_takes_turns_on_a_device_as_one_function() -> None:
    told = story(one("hot"), one("cold"), device_batches=1)
    told.invoke("i", key="hot@1", x=1)
    told.invoke("j", key="cold@1", x=1)
    assert [(sharer.workflow, sharer.stage) for sharer in told.core.devices()[0].sharers] == [("acme", "shared-1")]
    container, message = runs(told)[0]
    done(told, container, message.task)
    served = [message.served for _, message in runs(told)]
    assert [s and s.workflow for s in served] == ["hot", "cold"]
