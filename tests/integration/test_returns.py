"""A real container whose memory is returned on its board, and what it leaves there once the host knows that memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.testing.container_driver import ContainerDriver, ZygoteDriver

HERE = str(Path(__file__).parent)
NEXT = 100
"""Container and task to which outputs are handed on."""


@pytest.fixture
def container(tmp_path: Path) -> Iterator[ContainerDriver]:
    with ZygoteDriver() as zygote:
        yield zygote.start("container_functions:empties", tmp_path / "log", code_path=(HERE,))


@pytest.fixture
def way(container: ContainerDriver) -> Iterator[Link]:
    """The inbox of the next container, to which it was given a way."""
    inbox, theirs = Link.pair()
    container.inbox.send(wire.encode(wire.OpenLink(NEXT)), (theirs.fileno(),))
    theirs.close()
    yield inbox
    inbox.close()


def slots_of(value: wire.Value) -> tuple[tuple[int, int], ...]:
    return tuple((ref.arena, ref.slot) for ref in value.tensors)


def handed_on(way: Link) -> wire.Value:
    """The input of the task that the next container is given."""
    task = wire.decode_to_container(way.receive()[0])
    assert isinstance(task, wire.RunTask)
    assert isinstance(task.inputs[0], wire.Single)
    return task.inputs[0].value


def make(container: ContainerDriver) -> tuple[tuple[int, int], ...]:
    container.run({"n": 100_000})
    return slots_of(container.next(wire.TaskDone).outputs["out"])


def test_memory_left_on_the_board_is_used_by_the_next_task(container: ContainerDriver) -> None:
    first = make(container)
    second = make(container)
    assert second != first
    assert container.board.give_back(first)
    assert make(container) == first
    assert container.board.give_back((*second, *first))
    assert make(container) in (first, second)


def test_reports_of_own_memory_are_posted_only_when_the_host_has_heard_of_it(
    container: ContainerDriver, way: Link
) -> None:
    then = wire.Next(NEXT, NEXT, (("x", "out"),), may_post=True)
    first = container.run({"n": 100_000}, then=then)
    assert container.next(wire.TaskDone).task == first
    payload, descriptors = way.receive()
    assert isinstance(wire.decode_to_container(payload), wire.AttachArena)
    os.close(*descriptors)
    slots = slots_of(handed_on(way))
    report = None
    while report is None:
        assert container.board.give_back(slots)
        task = container.run({"n": 100_000}, then=then)
        value = handed_on(way)
        slots = slots_of(value)
        report = container.board.take(given=True)
        if report is None:  # it took so long, on a busy machine, that the report was sent
            assert container.next(wire.TaskDone).task == task
    posted = wire.decode_from_container(report)
    assert isinstance(posted, wire.TaskDone)
    assert (posted.task, posted.outputs["out"]) == (task, value)
    container.run({"n": 1})
    assert container.next(wire.TaskDone).task == task + 1
