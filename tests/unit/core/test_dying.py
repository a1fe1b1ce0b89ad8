"""A container that is dead while its last outputs are on their way: they count, and nothing else waits for them."""

from __future__ import annotations

from dataflower import wire
from dataflower.core import events
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Retry, Scaling
from dataflower.testing.payloads import plain
from dataflower.testing.story import Story, stage, workflow


def dying(attempts: int = 3) -> tuple[Story, int, wire.RunTask]:
    """The first of two calls has ended in container 1 and sends; the second runs there when it dies."""
    retry = Retry(max_attempts=attempts, interval_s=0.01, jitter="none")
    far = stage("a", {"x": "inputs.x"}, retry=retry, scaling=Scaling(max_replicas=1))
    story = Story(workflow([far], {"y": "a.out"}))
    story.invoke("i", x=1)
    (first,) = story.told(wire.RunTask)
    (number,) = story.containers_of("a")
    story.tell(events.ContainerSending(number, 1000, 1000, 1e9, (first.task,), 0.01))
    story.invoke("j", x=2)
    (_, second) = story.told(wire.RunTask)
    died = events.ContainerDied(number, "was killed", frozenset({first.task, second.task}), frozenset({first.task}))
    story.tell(died)
    story.wait(0.02)
    story.hello()
    return story, number, first


def test_its_running_task_is_tried_again_at_once_and_what_it_handed_over_counts() -> None:
    story, number, first = dying()
    assert len(story.containers_of("a")) == 2
    assert len(story.told(wire.RunTask)) == 3, "the second task, once more, in another container"
    story.tell(events.ContainerSaid(number, wire.TaskDone(first.task, {"out": plain(7)}, 1, wire.Times())))
    assert story.finished == {"i": None}
    story.exit(number)
    assert len(story.told(wire.RunTask)) == 3, "and the first one not"
    story.core.check_integrity()


def test_what_it_handed_over_and_never_comes_is_made_again() -> None:
    story, number, _ = dying()
    story.exit(number)
    story.wait(0.02)
    assert not story.finished
    assert story.core.statistics().queued + len(story.told(wire.RunTask)) == 4, "each of the two once more"
    story.core.check_integrity()


def test_a_call_that_is_cancelled_meanwhile_is_over_when_the_container_is() -> None:
    story, number, first = dying(attempts=1)
    assert set(story.finished) == {"j"}, "it had no attempt left"
    story.tell(events.CancelArrived("i", Failure(Code.CANCELLED, "Cancelled", "on purpose")))
    assert story.told(wire.CancelTask) == [wire.CancelTask(first.task, "Cancelled")]
    story.exit(number)
    assert set(story.finished) == {"i", "j"}
    assert story.core.statistics().tasks == 0
    story.core.check_integrity()
