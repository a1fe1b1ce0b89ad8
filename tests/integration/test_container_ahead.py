"""A real container with more tasks in its inbox than it can run: what it has not begun can be had back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflower import wire
from dataflower.errors import Code
from dataflower.testing.container_driver import ContainerDriver, ZygoteDriver

HERE = str(Path(__file__).parent)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[ContainerDriver]:
    with ZygoteDriver() as zygote:
        yield zygote.start("container_functions:says_and_reads", tmp_path / "log", code_path=(HERE,))


def begin(container: ContainerDriver, name: str) -> tuple[int, int]:
    """A task that runs until `end`; its number, and what `end` needs."""
    number = container.run({"name": name, "fifo": str(container._log) + name})
    while f"begins {name}" not in container.log:
        os.sched_yield()
    return number, os.open(str(container._log) + name, os.O_WRONLY)


def end(fifo: int) -> None:
    os.close(fifo)


def test_what_waits_is_given_back_and_never_runs(container: ContainerDriver) -> None:
    first, fifo = begin(container, "first")
    assert container.board.begun() == {first}
    second, third = (container.run({"name": name, "fifo": ""}) for name in ("second", "third"))
    container.tell(wire.Withdraw((first, second)))
    assert container.next(wire.Withdrawn).tasks == (second,)
    end(fifo)
    assert [container.next(wire.TaskDone).task for _ in range(2)] == [first, third]
    assert container.board.begun() == {third}
    assert "begins third" in container.log
    assert "begins second" not in container.log


def test_with_a_reason_what_runs_is_told_to_stop(container: ContainerDriver) -> None:
    first, fifo = begin(container, "first")
    second = container.run({"name": "second", "fifo": ""})
    container.tell(wire.Withdraw((first, second), "cancelled"))
    said = {type(message): message for message in (container.receive(), container.receive())}  # of two threads
    end(fifo)
    assert said[wire.Withdrawn].tasks == (second,)
    failed = said[wire.TaskFailed]
    assert (failed.task, failed.error.code) == (first, Code.CANCELLED)
    assert container.result({"name": "third", "fifo": ""}) == "third"
    assert "begins second" not in container.log


def test_what_is_over_is_not_given_back(container: ContainerDriver) -> None:
    assert container.result({"name": "first", "fifo": ""}) == "first"
    container.tell(wire.Withdraw((1,), "cancelled"))
    assert container.result({"name": "second", "fifo": ""}) == "second"


def test_what_is_withdrawn_before_it_comes_is_dropped(container: ContainerDriver) -> None:
    container.tell(wire.Withdraw((1,)))
    assert container.next(wire.Withdrawn).tasks == (1,)
    container.run({"name": "first", "fifo": ""})
    assert container.result({"name": "second", "fifo": ""}) == "second"
    assert "begins first" not in container.log


def test_tasks_that_come_together_run_one_after_the_other(container: ContainerDriver) -> None:
    first, fifo = begin(container, "first")
    names = ["a", "b", "c", "d"]
    tasks = tuple(
        wire.RunTask(n, tuple(wire.Single(k, container.encode(v)) for k, v in {"name": name, "fifo": ""}.items()))
        for n, name in enumerate(names, 10)
    )
    container.inbox.send(wire.encode(wire.RunMany(tasks)))
    container.tell(wire.CancelTask(13))
    container.tell(wire.Withdraw((12,)))
    assert container.next(wire.Withdrawn).tasks == (12,)  # and so it has heard of the other
    end(fifo)
    done = [container.next(wire.TaskDone) for _ in range(3)]
    assert [message.task for message in done] == [first, 10, 11]
    assert container.decode(done[2].outputs["out"]) == "b"
    assert container.next(wire.TaskFailed).task == 13
    assert "begins c" not in container.log
    assert "begins d" not in container.log
