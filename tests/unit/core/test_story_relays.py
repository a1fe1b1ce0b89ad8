"""Outputs that go straight to the next container: when that is promised, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from dataflower import wire
from dataflower.core import events
from dataflower.core.commands import FinishInvocation
from dataflower.core.config import CoreConfig
from dataflower.core.relay import MOST_POSTING
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Retry, Scaling
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import TensorRef, Value

AGAIN = Retry(max_attempts=3, interval_s=0.0)


def told(cpus: int = 2, **fields: Any) -> Story:
    """a -> b -> c, each with one warm container of which it is known that it takes next to no time."""
    one = Scaling(min_replicas=1, max_replicas=1)
    stages = [
        stage("a", {"x": "inputs.x"}, scaling=one, **fields),
        stage("b", {"x": "a.out"}, scaling=one, **fields),
        stage("c", {"x": "b.out"}, scaling=one, **fields),
    ]
    story = Story(workflow(stages, {"y": "c.out"}), config=CoreConfig(cpus=cpus))
    story.invoke("first", x=0)
    for name in "abc":
        story.done(name, took=0.0001, out=0)
    story.release("first")
    return story


def tensor_of(story: Story, name: str) -> tuple[Value, events.Slot]:
    """A value in the memory of a stage's container."""
    (number,) = story.containers_of(name)
    arena = number << 16
    story.tell(events.ContainerSaid(number, wire.ArenaMade(arena, 1 << 20)))
    return Value(b"\xd4\x01\x00", (TensorRef(arena, 0, 0, 8, "UINT8", (8,)),)), (arena, 0)


def then_of(story: Story, name: str) -> wire.Next:
    """The promise that came with a running task."""
    then = story.running[name, ()][1].then
    assert then is not None
    return then


def test_a_chain_of_brief_stages_is_promised_as_far_as_places_are_free() -> None:
    story = told()
    story.invoke("i", x=1)
    (b,), (c,) = story.containers_of("b"), story.containers_of("c")
    first = then_of(story, "a")
    assert (first.container, first.ports) == (b, (("x", "out"),))
    assert first.then is not None
    assert (first.then.container, first.then.then) == (c, None)
    story.hand_on("a", out=1)
    story.invoke("j", x=2)
    assert story.running["a", ()][1].then is None  # b is taken
    story.invoke("k", x=3)  # waits for a, in its container
    assert story.running["a", ()][1].then is None


@pytest.mark.parametrize(("cpus", "may_post"), [(1, True), (2, False)])
def test_a_report_that_nobody_waits_for_may_be_posted_where_the_host_shares_its_core(cpus: int, may_post: bool) -> None:
    story = told(cpus)
    story.invoke("i", x=1)
    first = then_of(story, "a")
    assert first.then is not None
    assert (first.may_post, first.then.may_post) == (may_post, may_post)


def test_a_report_is_sent_where_somebody_else_reads_the_outputs() -> None:
    one = Scaling(min_replicas=1, max_replicas=1)
    stages = [stage("a", {"x": "inputs.x"}, scaling=one), stage("b", {"x": "a.out"}, scaling=one)]
    story = Story(workflow(stages, {"y": "b.out", "seen": "a.out"}), config=CoreConfig(cpus=1))
    story.invoke("first", x=0)
    for name in "ab":
        story.done(name, took=0.0001, out=0)
    story.release("first")
    story.invoke("i", x=1)
    assert not then_of(story, "a").may_post


def test_with_many_invocations_reports_are_sent() -> None:
    story = told(cpus=1)
    allowed = []
    for number in range(MOST_POSTING + 1):
        story.invoke(f"i{number}", x=1)
        allowed.append(then_of(story, "a").may_post)
        story.hand_on("a", out=1)
        story.done("b", out=1)  # and c is busy with the first
    assert allowed == [True] * MOST_POSTING + [False]


def test_the_trace_shows_when_outputs_left_and_not_when_that_was_heard_of() -> None:
    story = told()
    story.invoke("i", x=1)
    start = story.clock.monotonic()
    story.wait(0.004)
    story.hand_on("a", out=1, ended=start + 0.001)
    story.done("b", out=1)
    story.done("c", out=1)
    (trace,) = (said.trace for said in story.said if isinstance(said, FinishInvocation) and said.invocation == "i")
    first, second = trace.tasks[:2]
    assert first.sent == second.queued == second.dispatched == start + 0.001


def test_a_stage_that_takes_long_or_was_never_measured_promises_nothing() -> None:
    story = told()
    story.invoke("slow", x=1)
    story.done("a", took=60.0, out=1)
    story.done("b", out=1)
    story.done("c", out=1)
    story.invoke("i", x=2)
    assert story.running["a", ()][1].then is None


def test_what_was_handed_on_runs_without_another_word_and_gives_the_result() -> None:
    story = told()
    ran = len(story.told(wire.RunTask))
    story.invoke("i", x=1)
    story.hand_on("a", out=1)
    story.hand_on("b", out=2)
    story.done("c", out=3)
    assert len(story.told(wire.RunTask)) == ran + 1
    assert story.outputs["y"] == 3
    assert story.failure is None
    assert story.core.statistics().tasks == 0


def test_what_was_not_handed_on_goes_the_usual_way() -> None:
    story = told()
    story.invoke("i", x=1)
    story.done("a", out=1)
    assert story.inputs_of("b") == {"x": 1}
    assert story.core.statistics().tasks == 2  # b, and c which is promised to it


def test_a_failed_task_frees_the_places_that_were_kept_for_its_outputs() -> None:
    story = told(retry=AGAIN)
    story.invoke("i", x=1)
    promised = then_of(story, "a").task
    story.fail("a")
    assert then_of(story, "a").task != promised  # the second attempt has a promise of its own
    story.hand_on("a", out=1)
    story.hand_on("b", out=2)
    story.done("c", out=3)
    assert story.failure is None


@pytest.mark.parametrize("handed", [True, False])
def test_the_next_container_dies_while_the_task_before_runs(handed: bool) -> None:
    story = told(retry=AGAIN)
    story.invoke("i", x=1)
    (b,) = story.containers_of("b")
    story.exit(b)
    if handed:
        story.hand_on("a", out=1)
    else:
        story.done("a", out=1)
    assert story.running["b", ()][1].attempt == (2 if handed else 1)
    assert story.inputs_of("b") == {"x": 1}
    assert "i" not in story.finished


def test_tasks_handed_to_a_container_that_dies_before_it_begins_wait_in_the_order_in_which_it_had_them() -> None:
    """They never stood in the queue before."""
    two = Scaling(min_replicas=1, max_replicas=1, concurrency=2)
    stages = [stage("a", {"x": "inputs.x"}, scaling=two), stage("b", {"x": "a.out"}, scaling=two)]
    story = Story(workflow(stages, {"y": "b.out"}))
    story.invoke("first", x=0)
    for name in "ab":
        story.done(name, took=0.0001, out=0)
    story.release("first")
    for name, x in (("i", 1), ("j", 2)):
        story.invoke(name, x=x)
        story.hand_on("a", out=x)
    (b,) = story.containers_of("b")
    ran = len(story.told(wire.RunTask))
    story.gone.append(b)
    story.tell(events.ContainerExited(b, "was killed by signal 9", frozenset()))
    again = story.told(wire.RunTask)[ran:]
    assert [message.inputs[0].value.body for message in again] == [b"\x01", b"\x02"]
    assert [message.attempt for message in again] == [1, 1]


def test_a_task_lost_with_its_container_fails_without_a_retry() -> None:
    story = told()
    story.invoke("i", x=1)
    (b,) = story.containers_of("b")
    story.exit(b)
    story.hand_on("a", out=1)
    assert story.failure is not None
    assert (story.failure.stage, story.failure.kind, story.failure.attempt) == ("b", "ContainerCrashed", 1)
    assert story.core.statistics().tasks == 0


def test_a_giver_that_dies_unheard_is_tried_again_and_what_it_gave_counts_for_nothing() -> None:
    story = told(retry=AGAIN)
    story.invoke("i", x=1)
    orphan = then_of(story, "a").task
    (b,) = story.containers_of("b")
    value, slot = tensor_of(story, "b")
    story.crash("a")
    story.tell(events.ContainerSaid(b, wire.TaskDone(orphan, {"out": value}, 0, wire.Times())))
    assert story.given_back == [slot]
    assert story.inputs_of("a") == {"x": 1}
    story.done("a", out=1)
    story.done("b", out=2)
    story.done("c", out=3)
    assert story.outputs["y"] == 3
    assert story.core.statistics().slots == 0


def test_cancelling_reaches_what_is_only_promised_and_keeps_what_it_may_read() -> None:
    story = told()
    value, slot = tensor_of(story, "a")
    story.invoke("i", x=1)
    running, first = story.running["a", ()][1], then_of(story, "a")
    assert first.then is not None
    story.tell(events.CancelArrived("i", Failure(Code.CANCELLED, "Cancelled", "not wanted")))
    assert [m.task for m in story.told(wire.CancelTask)] == [running.task, first.task, first.then.task]
    story.hand_on("a", out=value)
    assert story.given_back == []  # b may be reading it
    story.fail("b", kind="Cancelled", code=Code.CANCELLED)
    assert story.given_back == [slot]
    story.release("i")
    assert story.core.statistics().invocations == 0
    assert story.core.statistics().tasks == 0


def test_a_cancelled_task_that_handed_nothing_on_frees_everything() -> None:
    story = told()
    story.invoke("i", x=1)
    story.tell(events.CancelArrived("i", Failure(Code.CANCELLED, "Cancelled", "not wanted")))
    story.fail("a", kind="Cancelled", code=Code.CANCELLED)
    story.release("i")
    assert story.core.statistics().tasks == 0
    assert story.core.statistics().invocations == 0


def test_who_claims_to_have_handed_on_what_it_has_not_is_not_believed() -> None:
    story = told()
    story.invoke("i", x=1)
    story.hand_on("a")  # without the output that b needs
    assert story.finished["i"] is None
    assert story.ended == {"y": True}
    assert story.core.statistics().tasks == 0
