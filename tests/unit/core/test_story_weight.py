"""Admission counts what waits by its weight: a long prompt before one is more to wait for than a short one."""

from __future__ import annotations

import pytest

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Batch, Scaling
from dataflower.testing.story import Story, stage, workflow

PLAN = DispatchPlan(1.0, 10.0, (StageDispatch("b", (GroupPlan(1, 1, 0.05, 20.0),), 1.0, 0.2),))


def told(*weights: int, cost: str | None = "t") -> Story:
    """A container with invocations of these weights: one runs, the others wait."""
    batch = Batch(max_size=1, cost=cost, max_cost=None if cost is None else 1000.0)
    one = stage("b", {"t": "inputs.t"}, batch=batch, scaling=Scaling(max_replicas=1))
    story = Story(workflow([one], {"out": "b.out"}, inputs=["t"]))
    story.tell(events.PlanChanged("w@1", PLAN))
    for number, weight in enumerate(weights):
        story.invoke(f"i{number}", t=weight)
    return story


def is_taken(story: Story) -> bool:
    story.invoke("last", t=1)
    return "last" not in story.finished


def test_heavy_tasks_fill_the_time_that_as_many_usual_ones_leave() -> None:
    assert is_taken(told(2, 2, 2, 2))
    story = told(2, 60, 60, 60)
    assert not is_taken(story)
    refused = story.finished["last"]
    assert refused is not None
    assert refused.retry_after_s > 0


def test_light_ones_take_less_and_what_has_no_weight_counts_as_a_task() -> None:
    assert is_taken(told(2, 2, 2, 60, cost=None))
    assert is_taken(told(0, 0, 0, 0))


def test_what_has_left_the_queue_weighs_nothing() -> None:
    story = told(2, 60, 60, 60)
    for number in range(4):
        story.tell(events.CancelArrived(f"i{number}", Failure(Code.CANCELLED, "Cancelled", "enough")))
    story.hello()
    assert is_taken(story)


@pytest.mark.parametrize("weights", [(2, 8, 8), (5, 5, 5, 5)])
def test_the_load_is_in_usual_tasks(weights: tuple[int, ...]) -> None:
    story = told(*weights)
    (pool,) = story.core._deployments["w@1"].named_pools().values()
    usual = float(weights[0])
    for weight in weights[1:]:
        usual += (weight - usual) / 64
    assert pool.backlog == len(weights) - 1
    assert pool.load == pytest.approx(sum(weights[1:]) / usual)


def taken_by(replicas: int, *, planned: bool) -> set[int]:
    """The containers that get four tasks, at rest before, if each takes four at a time."""
    one = stage("b", {"t": "inputs.t"}, scaling=Scaling(min_replicas=replicas, max_replicas=replicas, concurrency=4))
    story = Story(workflow([one], {"out": "b.out"}, inputs=["t"]))
    if planned:
        groups = (GroupPlan(4, replicas, 0.05, 20.0),)
        story.tell(events.PlanChanged("w@1", DispatchPlan(1.0, 10.0, (StageDispatch("b", groups, 1.0, 0.2),))))
    story.hello()
    for number in range(4):
        story.invoke(f"i{number}", t=number)
    told = [c for c in story.said if isinstance(c, commands.Tell) and isinstance(c.message, wire.RunTask)]
    assert len(told) == 4
    return {command.container for command in told}


def test_a_plan_counts_on_an_even_load_of_containers_that_take_several() -> None:
    assert len(taken_by(2, planned=True)) == 2
    assert len(taken_by(2, planned=False)) == 1  # so that the other one may leave
