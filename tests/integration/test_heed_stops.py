"""A task that is stopped while its inputs are read does not begin, whenever the message itself is heard."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from dataflower import wire
from dataflower.channel import board as boards
from dataflower.channel.board import Board, BoardWriter
from dataflower.channel.link import Link
from dataflower.container.data_unit import DataUnit
from dataflower.container.running import RunningTask


@pytest.fixture
def ends() -> Iterator[tuple[DataUnit, Board, list[Link]]]:
    """A data unit that does not listen to its control socket yet, and the host's ends."""
    pairs = [Link.pair() for _ in range(3)]
    board = Board(1)
    writer = BoardWriter(os.dup(board.descriptor), 1)
    here = [pair[0] for pair in pairs]
    left = threading.Event()
    unit = DataUnit(1, *here, board=writer, leave=lambda status: left.set())
    yield unit, board, [pair[1] for pair in pairs]
    for pair in pairs:
        pair[1].close()
    assert left.wait(30.0), "the end of its control socket is the end of the unit"
    for link in here:
        link.close()
    writer.close()
    board.close()


def test_a_stop_that_was_sent_is_heard_before_the_function_begins(
    ends: tuple[DataUnit, Board, list[Link]], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, board, (inbox, _, control) = ends
    monkeypatch.setattr(boards, "HEED_S", 30.0)  # a busy machine
    inbox.send(wire.encode(wire.RunTask(1, ())))
    task = unit.next_task()
    assert isinstance(task, RunningTask)
    board.stops()
    control.send(wire.encode(wire.CancelTask(1, "not wanted")))
    unit.start()
    unit.fetch(task)
    assert task.reason == "not wanted"
