"""Stories of outputs that stay on another host and are gone with it."""

from __future__ import annotations

from typing import Any

import pytest

from dataflower import wire
from dataflower.core import events
from dataflower.core.commands import StartContainer
from dataflower.core.events import Slot
from dataflower.core.lineage import staying
from dataflower.core.program import compile_program
from dataflower.errors import Code
from dataflower.spec.workflow import Case, Retry, Workflow
from dataflower.testing.behaviour import FakeTensor
from dataflower.testing.payloads import pack
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import TensorRef, Value

AGAIN = Retry(max_attempts=2, interval_s=0.0, jitter="none")


def story(flow: Workflow, *there: str) -> Story:
    """A host and another one, on which the stages `there` run."""
    told = Story()
    told.tell(events.WorkflowAdded("w@1", compile_program(flow), dict.fromkeys(there, "b")))
    return told


def tensor(container: int, slot: int) -> Value:
    """In the first arena of a container."""
    arena = container << 16 | 1
    return pack(FakeTensor(8), lambda _: TensorRef(arena, slot, slot, 8, "UINT8", (8,)))


def run(told: Story, name: str, *tag: int, slot: int) -> Slot:
    """The task ends with a tensor in this slot."""
    number, _ = told.running[name, tag]
    if number << 16 | 1 not in told.core._containers[number].arenas:
        told.tell(events.ContainerSaid(number, wire.ArenaMade(number << 16 | 1, 1 << 20)))
    told.done(name, *tag, out=tensor(number, slot))
    return (number << 16 | 1, slot)


def lose(told: Story, *slots: Slot) -> None:
    """The other host dies with all its containers: that is told in one breath."""
    told._deaf = True
    for number in [n for n, name in told.stages.items() if n not in told.gone and name != "here"]:
        for key in [key for key, (container, _) in told.running.items() if container == number]:
            del told.running[key]
        told.exit(number)
    told.tell(events.MemoryLost(slots))
    told._deaf = False
    told.hello()


def joined(**fields: Any) -> Workflow:
    """`b` reads `a`, on the same host, when `here` has spoken."""
    stages = [
        stage("a", {"x": "inputs.x"}, retry=AGAIN, **fields),
        stage("here", {"x": "inputs.x"}),
        stage("b", {"x": "a.out", "y": "here.out"}, retry=AGAIN),
    ]
    return workflow(stages, {"r": "b.out"})


def test_the_maker_runs_again_when_its_reader_is_due_and_not_before() -> None:
    told = story(joined(), "a", "b")
    told.invoke(x=1)
    first = run(told, "a", slot=0)
    lose(told, first)
    assert told.ran == ["a", "here"], "nobody is about to read it"
    told.done("here", out=2)
    assert told.ran == ["a", "here", "a"]
    number, message = told.running["a", ()]
    assert (message.attempt, told.inputs_of("a")) == (2, {"x": 1})
    run(told, "a", slot=64)
    assert told.running["b", ()][1].inputs[0].value.tensors[0].arena == number << 16 | 1  # type: ignore[union-attr]
    told.done("b", out=3)
    assert told.failure is None
    told.take("r", 1)
    told.release()
    assert told.core.statistics().slots == 0


def test_what_was_made_as_often_as_it_may_be_is_lost_for_good() -> None:
    told = story(joined(), "a", "b")
    told.invoke(x=1)
    lose(told, run(told, "a", slot=0))
    told.done("here", out=2)
    lose(told, run(told, "a", slot=64))
    failure = told.failure
    assert failure is not None
    assert (failure.kind, failure.stage, failure.attempt) == ("DataLost", "a", 2)
    assert "`retry`" in failure.message


def test_a_container_without_room_gets_what_was_kept_for_a_loss() -> None:
    flow = workflow(
        [
            stage("s", {"x": "inputs.x"}, ["out*"], retry=AGAIN),
            stage("a", {"x": "each s.out"}, retry=AGAIN),
            stage("b", {"x": "gather a.out"}, retry=AGAIN),
        ],
        {"r": "b.out"},
    )
    told = story(flow, "s", "a", "b")
    told.invoke(x=1)
    number, message = told.running["s", ()]
    told.tell(events.ContainerSaid(number, wire.ArenaMade(number << 16 | 1, 1 << 20)))
    told.emit("s", out=tensor(number, 0))
    made = run(told, "a", 0, slot=0)
    assert not told.given_back, "it may be needed again"
    told.tell(events.ContainerSaid(number, wire.Starved(message.task, 0)))
    assert told.given_back == [(number << 16 | 1, 0)]
    told.done("s")
    lose(told, made)
    assert told.failure is not None
    assert told.failure.kind == "DataLost"
    assert "not there any more" in told.failure.message


def test_items_that_were_read_are_not_handed_out_twice() -> None:
    flow = workflow(
        [
            stage("a", {"x": "inputs.x"}, ["out*"], retry=AGAIN),
            stage("here", {"x": "inputs.x"}),
            stage("b", {"x": "each a.out", "y": "here.out"}, retry=AGAIN),
            stage("c", {"x": "gather b.out"}),
        ],
        {"r": "c.out"},
    )
    told = story(flow, "a", "b", "c")
    told.invoke(x=1)
    told.done("here", out=2)
    number, _ = told.running["a", ()]
    arena = number << 16 | 1
    told.tell(events.ContainerSaid(number, wire.ArenaMade(arena, 1 << 20)))
    for slot in (0, 64):
        told.emit("a", out=tensor(number, slot))
    told.done("b", 0, out=10)  # small: it is here
    told.done("a")
    lose(told, (arena, 0), (arena, 64))
    assert told.tags_of("a") == [()]
    again, _ = told.running["a", ()]
    told.tell(events.ContainerSaid(again, wire.ArenaMade(again << 16 | 1, 1 << 20)))
    for slot in (0, 64):
        told.emit("a", out=tensor(again, slot))
    assert told.tags_of("b") == [(1,)], "the first was read and stays read"
    assert (again << 16 | 1, 0) in told.given_back, "so the second copy of it is let go of at once"
    told.done("a")
    told.done("b", 1, out=11)
    assert told.inputs_of("c") == {"x": [10, 11]}


CASES = (Case("low", "x < 2"), Case("high", None))


@pytest.mark.parametrize(
    ("stages", "outputs", "there", "stay"),
    [
        ([stage("a", retry=AGAIN), stage("b", {"x": "a.out"})], {"r": "b.out"}, "ab", {"a"}),
        ([stage("a", retry=AGAIN), stage("b", {"x": "a.out"})], {"r": "b.out"}, "a", set()),
        ([stage("a", retry=AGAIN), stage("b", {"x": "a.out"})], {"r": "b.out", "s": "a.out"}, "ab", set()),
        ([stage("a"), stage("b", {"x": "a.out"})], {"r": "b.out"}, "ab", set()),
        ([stage("a", retry=Retry(("ValueError",))), stage("b", {"x": "a.out"})], {"r": "b.out"}, "ab", set()),
        ([stage("a", retry=Retry(("DataLost",))), stage("b", {"x": "a.out"})], {"r": "b.out"}, "ab", {"a"}),
        ([stage("a", retry=AGAIN), stage("b", {"x": "a.out"}, cases=CASES)], {}, "ab", set()),
    ],
)
def test_what_stays(stages: list[Any], outputs: dict[str, str], there: str, stay: set[str]) -> None:
    flow = workflow(stages, outputs or {"r": "a.out"})
    program = compile_program(flow)
    found = staying(program, dict.fromkeys(there, "b"))
    assert {program.stages[index].name for index in found} == stay
    told = Story()
    told.tell(events.WorkflowAdded("w@1", program, dict.fromkeys(there, "b")))
    told.invoke()
    started = {c.stage.name: c.stays for c in told.said if isinstance(c, StartContainer)}
    assert started["a"] is ("a" in stay)


def unreadable(told: Story, name: str, slot: Slot) -> None:
    """A running task finds that it can't read a slot."""
    number, message = told.running.pop((name, ()))
    error = wire.ErrorRecord(Code.INTERNAL, "DataLost", "cut short", lost=(slot,))
    told.tell(events.ContainerSaid(number, wire.TaskFailed(message.task, error, wire.Times())))


def spilled(retry: Retry | None) -> tuple[Story, Slot]:
    """`b` and `c` run, and read what `a` has put on a disk."""
    stages = [stage("a", {"x": "inputs.x"}, retry=retry), stage("b", {"x": "a.out"}), stage("c", {"x": "a.out"})]
    told = Story(workflow(stages, {"r": "b.out", "s": "c.out"}))
    told.invoke(x=1)
    number, _ = told.running["a", ()]
    told.tell(events.ContainerSaid(number, wire.ArenaMade(number << 16 | 1, 1 << 20, on_disk=True)))
    told.done("a", out=tensor(number, 0))
    return told, (number << 16 | 1, 0)


def test_what_a_reader_can_not_read_from_a_disk_is_made_again() -> None:
    """It costs the readers no attempt (they have no `retry`); the second ran while it was made again for the first."""
    told, slot = spilled(AGAIN)
    unreadable(told, "b", slot)
    assert told.running["a", ()][1].attempt == 2
    told.done("a", out=tensor(slot[0] >> 16, 64))
    assert told.running["b", ()][1].attempt == 1
    unreadable(told, "c", slot)
    assert told.ran == ["a", "b", "c", "a", "b", "c"], "what was made again is there for it"
    for name in ("b", "c"):
        value = told.running[name, ()][1].inputs[0].value  # type: ignore[union-attr]
        assert value.tensors[0].slot == 64
        told.done(name, out=1)
    assert told.failure is None


def test_without_a_retry_of_its_stage_it_is_a_failure_of_its_kind() -> None:
    told, slot = spilled(None)
    unreadable(told, "b", slot)
    failure = told.failure
    assert failure is not None
    assert (failure.kind, failure.stage) == ("DataLost", "b")
    assert "`retry`" in failure.message


def test_memory_that_can_not_be_damaged_is_not_believed_to_be_lost() -> None:
    told = story(joined())
    told.invoke(x=1)
    slot = run(told, "a", slot=0)
    told.done("here", out=2)
    unreadable(told, "b", slot)
    assert told.ran == ["a", "here", "b", "b"], "an attempt like others"
    assert told.running["b", ()][1].attempt == 2
