"""Tasks in a container beyond its places: who gets them, who has them back, and what they cost if it dies."""

from __future__ import annotations

from typing import Any

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.ahead import MOST, PATIENCE_S
from dataflower.core.tasks import MOST_DISPLACED
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Scaling
from dataflower.testing.story import Story, plain, stage, workflow

QUICK_S = 0.0002
"""Takes five tasks ahead."""


class Ahead(Story):
    """One stage, of which it is known how long it takes; invocations are known by their names."""

    def __init__(self, took: float = QUICK_S, **scaling: int) -> None:
        given = Scaling(**{"min_replicas": 1, "max_replicas": 1, **scaling})
        super().__init__(workflow([stage("a", {"x": "inputs.x"}, scaling=given)], {"y": "a.out"}))
        self.invoke("first", x=0)
        self.done("a", took=took, out=0)
        self.release("first")

    def where(self, invocation: str) -> tuple[int, wire.RunTask]:
        """Container and message of an invocation's task, the latest if there were several."""
        found = [(c.container, c.message) for c in self.said if isinstance(c, commands.Tell)]
        return next((n, m) for n, m in reversed(found) if isinstance(m, wire.RunTask) and m.invocation == invocation)

    def given(self) -> list[str]:
        """Invocations whose tasks were given out, in order."""
        return [message.invocation for message in self.told(wire.RunTask)][1:]

    def end(self, invocation: str) -> None:  # type: ignore[override]
        """Its task returns."""
        container, message = self.where(invocation)
        times = wire.Times(started=1.0, ended=1.0 + QUICK_S)
        self.tell(events.ContainerSaid(container, wire.TaskDone(message.task, {"out": plain(1)}, 0, times)))

    def withdrawn(self, *invocations: str) -> None:
        """Its container gives their tasks back."""
        container, _ = self.where(invocations[0])
        tasks = tuple(self.where(name)[1].task for name in invocations)
        self.tell(events.ContainerSaid(container, wire.Withdrawn(tasks)))

    def dies(self, begun: str) -> None:
        """The container dies that has begun with this invocation's task."""
        container, message = self.where(begun)
        self.gone.append(container)
        self.tell(events.ContainerExited(container, "was killed", frozenset({message.task})))

    def failure_of(self, invocation: str) -> tuple[str, int] | None:
        failure = self.finished[invocation]
        return None if failure is None else (failure.kind, failure.attempt)


def calls(story: Story, *names: str, **options: Any) -> None:
    for number, name in enumerate(names):
        story.invoke(name, x=number, **options)


def test_a_container_of_a_brief_stage_gets_what_it_can_do_in_a_moment() -> None:
    story = Ahead()
    calls(story, *"abcdefgh")
    assert story.given() == list("abcdef")
    story.end("a")
    assert story.given() == list("abcdefg")


def test_never_more_than_a_few() -> None:
    story = Ahead(took=1e-6)
    calls(story, *(str(n) for n in range(MOST + 5)))
    assert len(story.given()) == 1 + MOST


def test_one_that_takes_long_gets_no_task_before_it_can_run_it() -> None:
    story = Ahead(took=0.01)
    calls(story, *"abc")
    assert story.given() == ["a"]


def test_who_has_a_free_place_comes_first_and_then_who_has_least() -> None:
    story = Ahead(min_replicas=2, max_replicas=2)
    calls(story, *"abcde")
    first, second, third, fourth, fifth = (story.where(name)[0] for name in "abcde")
    assert first != second
    assert {third, fourth} == {first, second}
    story.end("a")
    calls(story, "f")
    assert story.where("f")[0] == first
    assert fifth in (first, second)


def test_what_waits_in_a_container_calls_for_another_one() -> None:
    story = Ahead(max_replicas=3)
    calls(story, "a")
    assert len(story.containers_of("a")) == 1
    calls(story, "b")
    assert len(story.containers_of("a")) == 2
    assert story.core.stages("w@1")[0].queued == 1  # b waits, as people are told
    calls(story, "c", "d", "e")
    assert len(story.containers_of("a")) == 3


def test_a_full_queue_counts_what_waits_in_containers() -> None:
    story = Ahead(max_queued=3)
    calls(story, *"abcde")
    refused = story.finished["e"]
    assert refused is not None
    assert refused.kind == "QueueFull"
    assert "3 tasks" in refused.message


def test_the_most_urgent_goes_ahead_first() -> None:
    story = Ahead()
    calls(story, *"abcdef")
    now = story.clock.monotonic()
    story.invoke("later", x=1, deadline=now + 10)
    story.invoke("sooner", x=2, deadline=now + 5)
    story.end("a")
    assert story.given()[-1] == "sooner"


def test_what_is_cancelled_before_it_begins_never_runs_and_is_forgotten() -> None:
    story = Ahead()
    calls(story, *"ab")
    story.release("b")
    (told,) = story.told(wire.Withdraw)
    assert told == wire.Withdraw((story.where("b")[1].task,), "Cancelled")
    assert not story.told(wire.CancelTask)
    story.withdrawn("b")
    assert story.core.statistics().invocations == 1
    story.end("a")
    assert story.failure_of("a") is None


def test_a_cancelled_task_that_had_begun_after_all_ends_as_ever() -> None:
    story = Ahead()
    calls(story, *"ab")
    story.release("b")
    story.end("a")
    container, message = story.where("b")
    error = wire.ErrorRecord(Code.CANCELLED, "Cancelled", "told to stop")
    story.tell(events.ContainerSaid(container, wire.TaskFailed(message.task, error, wire.Times())))
    assert story.core.statistics().tasks == 0


def test_a_deadline_that_passes_ahead_takes_the_task_back() -> None:
    story = Ahead()
    calls(story, "a")
    story.invoke("b", x=1, deadline=story.clock.monotonic() + 0.005)
    story.wait(0.01)
    assert story.told(wire.Withdraw) == [wire.Withdraw((story.where("b")[1].task,), "DeadlineExceeded")]


def test_only_what_had_begun_pays_for_the_death_of_its_container() -> None:
    story = Ahead()
    calls(story, *"abc")
    story.dies(begun="a")
    assert story.failure_of("a") == ("ContainerCrashed", 1)
    assert story.given()[3:] == ["b", "c"]
    assert [story.where(name)[1].attempt for name in "bc"] == [1, 1]
    story.end("b")
    story.end("c")
    assert story.failure_of("b") is story.failure_of("c") is None


def test_where_nobody_knows_what_had_begun_all_of_it_had() -> None:
    story = Ahead()
    calls(story, *"ab")
    story.exit(story.where("a")[0])
    assert story.failure_of("b") == ("ContainerCrashed", 1)


def test_a_task_whose_containers_keep_dying_before_it_has_a_hand_in_that() -> None:
    story = Ahead()
    calls(story, "a")
    for _ in range(MOST_DISPLACED + 1):
        assert "a" not in story.finished
        container, _ = story.where("a")
        story.gone.append(container)
        story.tell(events.ContainerExited(container, "was killed", frozenset()))
        story.wait(40.0)
    assert story.failure_of("a") == ("ContainerCrashed", 1)


def test_what_waits_behind_one_that_does_not_move_goes_to_one_that_is_free() -> None:
    story = Ahead(min_replicas=2, max_replicas=2)
    calls(story, *"abcd")
    stuck, moving = story.where("a")[0], story.where("b")[0]
    behind = [name for name in "cd" if story.where(name)[0] == stuck]
    for name in "bcd":
        if story.where(name)[0] == moving:
            story.end(name)
    story.wait(2.5 * PATIENCE_S)
    assert story.told(wire.Withdraw) == [wire.Withdraw((story.where(behind[0])[1].task,))]
    story.withdrawn(behind[0])
    assert story.where(behind[0])[0] == moving
    assert story.where(behind[0])[1].attempt == 1
    calls(story, "e")  # it does not move, so it gets nothing ahead
    assert story.where("e")[0] == moving


def test_nothing_is_had_back_where_nobody_else_could_run_it() -> None:
    story = Ahead()
    calls(story, *"abc")
    story.wait(10 * PATIENCE_S)
    assert not story.told(wire.Withdraw)


def test_a_container_without_room_in_its_memory_gives_back_what_it_has_not_begun() -> None:
    story = Ahead()
    calls(story, *"ab")
    container, message = story.where("a")
    story.tell(events.ContainerSaid(container, wire.Starved(message.task, 0)))
    assert story.told(wire.Withdraw) == [wire.Withdraw((story.where("b")[1].task,))]
    given = len(story.given())
    story.withdrawn("b")
    assert len(story.given()) == given  # it waits until there is a place
    story.end("a")
    assert story.given()[given:] == ["b"]


def test_a_container_that_gives_back_what_nobody_asked_for_is_ended() -> None:
    story = Ahead()
    calls(story, *"ab")
    story.withdrawn("b")
    (kill,) = [c for c in story.said if isinstance(c, commands.KillContainer)]
    assert "nobody asked for" in kill.reason


def test_one_that_does_not_stop_is_ended_and_takes_nobody_behind_it_along() -> None:
    story = Ahead()
    calls(story, *"ab")
    story.release("a")
    story.wait(3.0)
    assert [type(c) for c in story.said].count(commands.KillContainer) == 1
    story.dies(begun="a")
    assert story.given()[2:] == ["b"]
    story.end("b")
    assert story.failure_of("b") is None


def test_a_batch_that_had_not_begun_is_given_out_again() -> None:
    from dataflower.spec.workflow import Batch

    one = stage("a", {"x": "inputs.x"}, batch=Batch(max_size=2), scaling=Scaling(min_replicas=1, max_replicas=1))
    for begun, attempt in ((False, 1), (True, 2)):
        story = Story(workflow([one], {"y": "a.out"}))
        calls(story, "i")
        number, message = story.running["a", ()]
        story.gone.append(number)
        marked = frozenset({message.task}) if begun else frozenset()
        story.tell(events.ContainerExited(number, "was killed", marked))
        if begun:
            assert story.failure is not None
        else:
            assert story.running["a", ()][1].attempt == attempt


class Copying(Ahead):
    """A stage that takes its time, so that no task is given ahead."""

    def __init__(self, **scaling: int) -> None:
        super().__init__(took=0.02, **scaling)

    def computed(self, invocation: str) -> None:
        """Its function is over, its outputs are being copied."""
        container, message = self.where(invocation)
        self.tell(events.ContainerSaid(container, wire.Computed(message.task)))


def test_a_place_that_others_wait_for_is_free_while_outputs_are_copied() -> None:
    story = Copying()
    calls(story, "z", "a", "b", "c")
    story.end("z")
    story.computed("a")
    assert story.given() == ["z", "a", "b"]
    assert "a" not in story.finished
    story.end("a")
    assert story.given() == ["z", "a", "b"]  # the place is taken
    assert story.finished["a"] is None
    story.end("b")
    assert story.given() == ["z", "a", "b", "c"]


def test_who_waited_when_a_task_began_wants_its_place() -> None:
    story = Copying()
    calls(story, "a", "b", "c")
    assert not story.where("a")[1].wanted
    story.end("a")
    assert story.where("b")[1].wanted
    story.end("b")
    assert not story.where("c")[1].wanted


def test_with_several_places_nobody_wants_one() -> None:
    story = Copying(concurrency=2)
    calls(story, *"abcdef")
    story.end("a")
    assert not any(message.wanted for message in story.told(wire.RunTask))


def test_a_container_that_dies_takes_along_what_it_copied_and_what_it_ran() -> None:
    story = Copying()
    calls(story, "z", "a", "b", "c")
    story.end("z")
    story.computed("a")
    story.dies("b")
    assert [story.failure_of(name) for name in "ab"] == [("ContainerCrashed", 1)] * 2
    assert "c" not in story.finished


def test_one_that_is_cancelled_while_it_is_copied_is_told_and_awaited() -> None:
    story = Copying()
    calls(story, "z", "a", "b")
    story.end("z")
    story.computed("a")
    container, message = story.where("a")
    story.tell(events.CancelArrived("a", Failure(Code.CANCELLED, "Cancelled", "not wanted")))
    assert story.told(wire.CancelTask)[-1].task == message.task
    error = wire.ErrorRecord(Code.CANCELLED, "Cancelled", "")
    story.tell(events.ContainerSaid(container, wire.TaskFailed(message.task, error, wire.Times())))
    story.end("b")
    assert story.finished["b"] is None


def test_giving_up_a_place_that_nobody_asked_for_is_against_the_protocol() -> None:
    story = Copying()
    calls(story, "a")
    story.computed("a")
    assert "nobody asked for" in story.said[-1].reason  # type: ignore[union-attr]


def test_so_is_giving_up_two_at_a_time() -> None:
    story = Copying()
    calls(story, "z", "a", "b", "c")
    story.end("z")
    story.computed("a")
    story.computed("b")
    assert "are being copied" in story.said[-1].reason  # type: ignore[union-attr]
