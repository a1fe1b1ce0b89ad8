"""When batches leave, with whom, and what becomes of their members."""

from __future__ import annotations

from typing import Any

import pytest

from dataflower import wire
from dataflower.core import commands, events
from dataflower.errors import Code
from dataflower.spec.workflow import Batch, Retry, Scaling, Workflow
from dataflower.testing.payloads import plain
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import TensorRef, Value


def fan(batch: Batch, replicas: int = 1, **fields: Any) -> Workflow:
    """A stage that takes the items of a stream input in batches."""
    return workflow(
        [stage("b", {"t": "each inputs.s"}, batch=batch, scaling=Scaling(max_replicas=replicas), **fields)],
        {"out": "gather b.out"},
        inputs=["s*"],
    )


def told(batch: Batch, *items: Any, replicas: int = 1, **fields: Any) -> Story:
    """The story up to the moment when the items have come."""
    story = Story(fan(batch, replicas, **fields))
    story.invoke(streams=["s"])
    story.feed("s", *items)
    return story


def test_without_a_wait_the_first_goes_alone_and_the_others_together_behind_it() -> None:
    story = told(Batch(max_size=4), *range(7))
    assert story.batches == [[(0,)]]
    story.done_together("b", (0,))
    assert story.batches[1:] == [[(1,), (2,), (3,), (4,)]]
    story.done_together("b", (1,), (2,), (3,), (4,))
    assert story.batches[2:] == [[(5,), (6,)]]


def test_a_full_batch_leaves_at_once_and_a_partial_one_after_its_wait() -> None:
    story = told(Batch(max_size=3, wait_ms=50.0), 0, 1, 2, 3, replicas=2)
    assert story.batches == [[(0,), (1,), (2,)]]
    story.wait(0.04)
    assert len(story.batches) == 1
    story.wait(0.02)
    assert story.batches[1:] == [[(3,)]]


def test_a_deadline_cuts_the_wait() -> None:
    story = Story(fan(Batch(max_size=3, wait_ms=500.0)))
    start = story.clock.monotonic()
    story.invoke(streams=["s"], deadline=start + 0.2)
    story.feed("s", 1, 2)
    assert story.batches == []
    assert story.wake_at <= start + 0.2


def test_the_most_urgent_go_first() -> None:
    story = told(Batch(max_size=2), 0)
    story.invoke("late", streams=["s"], deadline=story.clock.monotonic() + 100)
    story.feed("s", 10, 11, invocation="late")
    story.invoke("soon", streams=["s"], deadline=story.clock.monotonic() + 50)
    story.feed("s", 20, 21, invocation="soon")
    story.done_together("b", (0,))
    last = next(c.message for c in reversed(story.said) if isinstance(c, commands.Tell))
    assert isinstance(last, wire.RunBatch)
    assert [task.invocation for task in last.tasks] == ["soon", "soon"]


def test_weights_limit_a_batch_and_a_heavy_task_goes_alone() -> None:
    story = told(Batch(max_size=9, wait_ms=1000.0, cost="t", max_cost=10.0), 4, 5, 20, 3, 3, 3, 3, replicas=9)
    assert story.batches == [[(0,), (1,)], [(2,)], [(3,), (4,), (5,)]]
    story.wait(2)
    assert story.batches[3:] == [[(6,)]]


@pytest.mark.parametrize(("cost", "items"), [("t / 0", [1]), ("t.size", [1]), ("-t", [1]), ("t > 0", [1])])
def test_a_cost_that_is_no_weight_fails_the_invocation(cost: str, items: list[int]) -> None:
    story = told(Batch(max_size=9, cost=cost, max_cost=10.0), *items)
    assert story.failure is not None
    assert (story.failure.code, story.failure.kind) == (Code.INVALID_ARGUMENT, "CostError")


def tensor(*shape: int, dtype: str = "FP32") -> Value:
    return Value(b"\xd4\x01\x00", (TensorRef(1 << 16, 64 * shape[0], 0, 4, dtype, shape),))


@pytest.mark.parametrize(("same_shape", "expected"), [(True, [[0, 3], [1, 2]]), (False, [[0, 1, 2, 3]])])
def test_tensors_of_one_shape_share_a_batch(same_shape: bool, expected: list[list[int]]) -> None:
    story = told(Batch(max_size=4, same_shape=same_shape, wait_ms=10.0), replicas=2)
    for value in (tensor(2, 2), tensor(3, 2), tensor(3, 2), tensor(2, 2)):
        story.tell(events.InputArrived("i", "s", value))
    story.wait(1.0)
    assert [[tag[0] for tag in batch] for batch in story.batches] == expected


def test_a_task_that_is_tried_again_runs_alone() -> None:
    story = told(Batch(max_size=3, wait_ms=10.0), 0, 1, 2, retry=Retry(max_attempts=2, interval_s=0.0))
    number, _ = story.running["b", (0,)]
    error = wire.ErrorRecord(Code.INTERNAL, "ValueError", "on purpose")
    results = tuple(wire.TaskFailed(story.running.pop(("b", (n,)))[1].task, error, wire.Times()) for n in range(3))
    story.tell(events.ContainerSaid(number, wire.BatchDone(results)))
    for n in range(3):
        assert story.batches[1 + n :] == [[(n,)]]
        story.done_together("b", (n,), out=n)
    story.end("s")
    assert story.outputs["out"] == [0, 1, 2]


def test_a_member_that_nobody_wants_is_told_and_the_batch_goes_on() -> None:
    story = Story(fan(Batch(max_size=2, wait_ms=10.0)))
    for name, item in (("a", 0), ("b", 1)):
        story.invoke(name, streams=["s"])
        story.feed("s", item, invocation=name)
    batch = story.told(wire.RunBatch)[0].tasks
    story.release("a")
    assert [message.task for message in story.told(wire.CancelTask)] == [batch[0].task]
    story.wait(60)
    assert not any(isinstance(c, commands.KillContainer) for c in story.said)
    story.release("b")
    story.wait(60)
    assert any(isinstance(c, commands.KillContainer) for c in story.said)


def test_the_batch_of_a_dead_container_is_lost_as_a_whole() -> None:
    story = told(Batch(max_size=2, wait_ms=10.0), 0, 1, 2, 3, replicas=2)
    assert story.batches == [[(0,), (1,)], [(2,), (3,)]]
    story.crash("b", 0)
    assert story.failure is not None
    assert (story.failure.kind, story.failure.stage) == ("ContainerCrashed", "b")


def test_traces_tell_size_and_wait() -> None:
    story = told(Batch(max_size=3, wait_ms=50.0), 0, 1)
    story.end("s")
    story.wait(0.1)
    story.done_together("b", (0,), (1,))
    (end,) = [c for c in story.said if isinstance(c, commands.FinishInvocation)]
    assert [trace.batch for trace in end.trace.tasks] == [2, 2]
    waits = [trace.batch_wait_s for trace in end.trace.tasks]
    assert waits[0] == pytest.approx(0.05, abs=0.002)
    assert waits[0] > waits[1] > 0.04


def test_containers_are_started_for_batches_not_for_tasks() -> None:
    story = Story(fan(Batch(max_size=4), 8), deaf=True)
    story.invoke(streams=["s"])
    story.feed("s", *range(9))
    assert len(story.starting) == 3


def test_what_was_accepted_before_is_not_refused_for_want_of_room() -> None:
    full = workflow([stage("s", {"x": "inputs.x"}, scaling=Scaling(max_replicas=1, max_queued=1))], {"y": "s.out"})
    story = Story(full)
    for name in ("running", "queued", "refused"):
        story.invoke(name, x=1)
    failure = story.finished["refused"]
    assert failure is not None
    assert failure.kind == "QueueFull"
    story.tell(events.InvocationArrived("again", "w@1", {"x": plain(1)}, accepted=True))
    assert "again" not in story.finished
