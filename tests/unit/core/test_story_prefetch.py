"""What the next tasks will read is named to containers that are busy, once."""

from __future__ import annotations

from dataflower.core import commands, events
from dataflower.core.prefetch import FAR_BYTES, MOST_FETCHED
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Batch, Scaling
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import Prefetch, RunTask, TensorRef, Value


def tensor(slot: int, nbytes: int = 1 << 20) -> Value:
    return Value(b"\xc0", (TensorRef(7 << 16, slot, slot, nbytes, "UINT8", (nbytes,)),))


def story(replicas: int = 1, **fields: object) -> Story:
    one = stage("a", {"x": "inputs.x"}, scaling=Scaling(max_replicas=replicas), **fields)
    return Story(workflow([one], {"y": "a.out"}))


def fetched(told: Story) -> list[tuple[int, int]]:
    """(container, slot) of all that was to be fetched, in order."""
    return [
        (command.container, ref.slot)
        for command in told.said
        if isinstance(command, commands.Tell) and isinstance(command.message, Prefetch)
        for ref in command.message.refs
    ]


def test_the_next_task_is_fetched_for_while_one_runs_and_only_that() -> None:
    told = story()
    for number, name in enumerate("ijk"):
        told.invoke(name, x=tensor(number))
    assert fetched(told) == [(1, 1)]
    told.done("a")
    assert fetched(told) == [(1, 1), (1, 2)]
    assert len(told.told(RunTask)) == 2


def test_as_many_are_fetched_for_as_there_are_containers_in_the_order_in_which_they_will_be_free() -> None:
    told = story(2)
    for number, name in enumerate("ijklm"):
        told.invoke(name, x=tensor(number))
    assert fetched(told) == [(1, 1), (1, 2), (2, 3)], "the second container was not there yet"


def test_nothing_is_said_of_what_rides_in_messages_nor_for_brief_functions() -> None:
    told = story()
    told.invoke("i", x=1)
    told.invoke("j", x=2)
    assert not told.told(Prefetch)
    told.done("a", took=1e-5)
    told.done("a", took=1e-5)
    for number, name in enumerate("klmnopqrstuvwxyzABCD"):
        told.invoke(name, x=tensor(number))
    assert not told.told(Prefetch), "they lie in its inbox"


def test_what_is_wanted_first_is_fetched_first() -> None:
    told = story()
    told.invoke("i", x=tensor(0), deadline=1e9 + 3)
    told.invoke("j", x=tensor(1), deadline=1e9 + 2)
    told.invoke("k", x=tensor(2), deadline=1e9 + 1)
    assert fetched(told) == [(1, 1), (1, 2)]


def test_of_batches_the_next_is_fetched() -> None:
    told = story(batch=Batch(max_size=2))
    for number, name in enumerate("ijklmn"):
        told.invoke(name, x=tensor(number))
    assert fetched(told) == [(1, 1), (1, 2)]


def far(replicas: int = 1) -> Story:
    """The same with its stage on another host."""
    one = stage("a", {"x": "inputs.x"}, scaling=Scaling(max_replicas=replicas))
    told = Story()
    told.tell(events.WorkflowAdded("w@1", compile_program(workflow([one], {"y": "a.out"})), {"a": "there"}))
    return told


def test_on_another_host_more_is_fetched_since_places_are_held_while_bytes_travel() -> None:
    told = far()
    for number in range(MOST_FETCHED + 3):
        told.invoke(f"i{number}", x=tensor(number))
    assert fetched(told) == [(1, 1 + number) for number in range(MOST_FETCHED)]
    told.done("a")
    assert len(set(fetched(told))) == len(fetched(told)) == MOST_FETCHED + 1


def test_of_large_inputs_there_not_more_than_one_a_container() -> None:
    told = far()
    for number in range(4):
        told.invoke(f"i{number}", x=tensor(number, FAR_BYTES + 1))
    assert fetched(told) == [(1, 1)]
    told.done("a")
    assert fetched(told) == [(1, 1), (1, 2)]
