"""Failure, retry, catch, cancellation and deadline of docs/semantics.md, a story each."""

import pytest

from dataflower import wire
from dataflower.core.commands import FinishInvocation
from dataflower.core.events import CancelArrived, InvocationReleased
from dataflower.core.trace import InvocationTrace
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Catch, Retry, Scaling
from dataflower.testing.story import Story, stage, workflow

AGAIN = Retry(errors=("ValueError", "ContainerCrashed", "Timeout"), max_attempts=2, interval_s=1.0, jitter="none")


def one(**fields) -> Story:
    story = Story(workflow([stage("a", {"x": "inputs.x"}, ["out", "t*"], **fields)], {"r": "a.out", "s": "a.t"}))
    story.invoke(x=1)
    return story


def test_a_failure_that_nobody_catches_ends_the_invocation_and_cancels_the_rest():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}), stage("b", {"x": "inputs.x"})], {"r": "a.out", "s": "b.out"}),
    )
    story.invoke(x=1)
    story.fail("a")
    assert story.failure is not None
    assert (story.failure.stage, story.failure.kind, story.failure.attempt) == ("a", "ValueError", 1)
    assert len(story.told(wire.CancelTask)) == 1


def test_retry_waits_and_tries_again():
    story = one(retry=AGAIN)
    story.fail("a")
    assert not story.is_running("a")
    story.wake()
    assert story.running["a", ()][1].attempt == 2
    story.done("a", out=5)
    assert story.outputs == {"r": 5}
    assert story.failure is None


def test_retry_does_not_forgive_other_kinds():
    story = one(retry=AGAIN)
    story.fail("a", kind="OSError")
    assert story.failure is not None
    assert story.failure.attempt == 1


def test_the_last_attempt_is_the_last():
    story = one(retry=AGAIN)
    story.fail("a")
    story.wake()
    story.fail("a")
    assert story.failure is not None
    assert story.failure.attempt == 2


def test_items_emitted_before_a_retry_are_not_delivered_twice():
    story = one(retry=AGAIN)
    story.emit("a", t="first")
    story.fail("a")
    story.wake()
    story.emit("a", t="again")
    story.emit("a", t="second")
    story.done("a", out=1)
    assert story.outputs == {"r": 1, "s": ["first", "second"]}


def test_a_lost_container_is_a_typed_failure():
    story = one()
    story.crash("a")
    assert story.failure is not None
    assert (story.failure.stage, story.failure.kind) == ("a", "ContainerCrashed")


def test_a_lost_container_is_replaced_if_retry_allows():
    story = one(retry=AGAIN)
    story.crash("a")
    story.wake()
    assert story.running["a", ()][1].attempt == 2
    assert story.running["a", ()][0] == 2


def test_a_lost_container_takes_all_its_tasks_along_and_is_told_nothing_more():
    story = Story(
        workflow(
            [
                stage("a", {"x": "inputs.x"}, ["t*"]),
                stage("b", {"t": "each a.t"}, scaling=Scaling(1, 1, concurrency=2)),
            ],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=1)
    story.emit("a", t=1)
    story.emit("a", t=2)
    lost, _ = story.running["b", (1,)]
    before = len(story.said)
    story.crash("b", 0)
    assert story.failure is not None
    assert not [c for c in story.said[before:] if getattr(c, "container", None) == lost]


def test_timeout_is_per_attempt():
    story = one(timeout_s=2.0, retry=AGAIN)
    story.wait(1.9)
    assert story.told(wire.CancelTask) == []
    story.wait(0.2)
    assert len(story.told(wire.CancelTask)) == 1
    story.fail("a", kind="Cancelled", code=Code.CANCELLED)
    story.wait(1.1)
    assert story.running["a", ()][1].attempt == 2
    story.wait(2.0)
    story.fail("a", kind="Cancelled", code=Code.CANCELLED)
    assert story.failure is not None
    assert (story.failure.kind, story.failure.attempt) == ("Timeout", 2)


def test_catch_output_stands_in_and_streams_end_where_they_are():
    story = one(catch=(Catch(errors=("OSError",)), Catch(output={"out": 99})))
    story.emit("a", t=1)
    story.fail("a")
    assert story.outputs == {"r": 99, "s": [1]}
    assert story.ended["s"] is False
    assert story.failure is None


def test_catch_goto_runs_the_named_stage_with_the_error():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, catch=(Catch(goto="h"),)), stage("h", {"e": "a.error", "x": "inputs.x"})],
            {"r": "a.out", "h": "h.out"},
        )
    )
    story.invoke(x=1)
    story.fail("a")
    seen = story.inputs_of("h")
    assert seen == {"x": 1, "e": {"kind": "ValueError", "message": "on purpose", "stage": "a", "attempt": 1}}
    story.done("h", out=2)
    assert story.ended == {"r": True}
    assert story.outputs == {"h": 2}


def test_the_handler_is_skipped_when_nothing_fails():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, catch=(Catch(goto="h"),)), stage("h", {"x": "inputs.x"})],
            {"r": "a.out", "h": "h.out"},
        )
    )
    story.invoke(x=1)
    story.done("a", out=1)
    assert story.ended == {"h": True}
    assert story.ran == ["a"]


def test_cancellation_starts_nothing_more():
    story = Story(workflow([stage("a", {"x": "inputs.x"}), stage("b", {"a": "a.out"})], {"r": "b.out"}))
    story.invoke(x=1)
    wanted = Failure(Code.CANCELLED, "Cancelled", "left")
    story.tell(CancelArrived("i", wanted))
    assert story.failure == wanted
    assert len(story.told(wire.CancelTask)) == 1
    story.done("a", out=1)
    assert story.ran == ["a"]
    story.tell(InvocationReleased("i"))
    assert story.core.statistics().invocations == 0


def test_the_deadline_ends_it():
    story = Story(workflow([stage("a", {"x": "inputs.x"})], {"r": "a.out"}))
    story.invoke(x=1, deadline=1005.0)
    assert story.running["a", ()][1].deadline_s == 1005.0
    story.wake()
    assert story.clock.monotonic() >= 1005.0
    assert story.failure is not None
    assert story.failure.code is Code.DEADLINE_EXCEEDED


def test_a_missed_deadline_says_what_ran_and_what_waited():
    stages = [stage("a", {"x": "inputs.x"}), stage("b", {"x": "inputs.x", "y": "a.out"}), stage("c", {"y": "b.out"})]
    story = Story(workflow(stages, {"r": "c.out"}))
    story.invoke(x=1, deadline=1005.0)
    story.wake()
    assert story.failure is not None
    assert story.failure.message.endswith(" (running: a; waiting: b)")


def test_a_deadline_that_had_passed_before_allowed_no_time():
    story = Story(workflow([stage("a", {"x": "inputs.x"})], {"r": "a.out"}))
    story.invoke(x=1, deadline=999.9)
    story.wake()
    assert story.failure is not None
    assert story.failure.message.startswith("not finished within its 0.000 ms")


def test_no_retry_past_the_deadline():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, retry=AGAIN)], {"r": "a.out"}))
    story.invoke(x=1, deadline=1000.5)
    story.fail("a")
    assert story.failure is not None
    assert story.failure.kind == "ValueError"


@pytest.mark.parametrize(("left_s", "kind"), [(0.5, "DeadlineExceeded"), (60.0, None)])
def test_a_host_whose_clock_is_a_little_ahead_ends_the_call_and_costs_no_attempts(
    left_s: float, kind: str | None
) -> None:
    retry = Retry(max_attempts=3, interval_s=0.0, jitter="none")
    story = Story(workflow([stage("a", {"x": "inputs.x"}, retry=retry)], {"r": "a.out"}))
    story.invoke(x=1, deadline=story.clock.monotonic() + left_s)
    story.fail("a", kind="DeadlineExceeded", code=Code.DEADLINE_EXCEEDED)
    assert story.is_running("a") is (kind is None)
    if kind is not None:
        assert story.failure is not None
        assert (story.failure.kind, story.failure.stage) == (kind, "")


def ending(story: Story) -> InvocationTrace:
    (found,) = (said.trace for said in story.said if isinstance(said, FinishInvocation))
    return found


def test_a_stage_that_still_streams_when_another_fails_shows_what_came_of_it():
    stages = [stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"x": "inputs.x"})]
    story = Story(workflow(stages, {"r": "a.t", "s": "b.out"}))
    story.invoke(x=1)
    before = story.clock.monotonic()
    story.emit("a", t=1)
    first = story.clock.monotonic()
    story.emit("a", t=2)
    story.emit("a", t=3)
    last = story.clock.monotonic()
    story.fail("b")
    (cut,) = (task for task in ending(story).tasks if task.stage == "a")
    assert before < cut.first_output <= first < cut.last_output <= last
    assert (cut.items, cut.ended, cut.sent) == (3, 0.0, 0.0)


def test_a_stage_that_fails_in_the_middle_of_its_stream_keeps_the_count_of_its_items():
    story = one()
    story.emit("a", t=1)
    story.emit("a", t=2)
    story.fail("a")
    (failed,) = ending(story).tasks
    assert failed.items == 2
    assert failed.last_output > 0
