"""The page on which a container notes what it begins, and posts what nobody waits for."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator

import pytest

from dataflower.channel import seals
from dataflower.channel.board import MOST_RETURNS, REPORT_BYTES, Board, BoardWriter


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(3)
    yield board
    board.close()
    board.close()


@pytest.fixture
def writer(board: Board) -> Iterator[BoardWriter]:
    writer = BoardWriter(os.dup(board.descriptor), 3)
    yield writer
    writer.close()


def test_the_last_task_of_each_thread_is_seen(board: Board, writer: BoardWriter) -> None:
    assert board.begun() == frozenset()
    writer.begin(11, 1)
    writer.begin(12, 2)
    writer.begin(11, 1 << 40)
    assert board.begun() == {2, 1 << 40}


def test_nobody_can_resize_it(board: Board) -> None:
    assert fcntl.fcntl(board.descriptor, fcntl.F_GET_SEALS) == seals.RESIZE
    with pytest.raises(PermissionError):
        os.ftruncate(board.descriptor, 1)


def test_a_report_is_taken_once_and_only_when_it_was_handed_on(board: Board, writer: BoardWriter) -> None:
    assert board.take(given=True) is None
    number = writer.post(b"first")
    assert board.take(given=False) is None  # its writer may die before the outputs leave
    writer.handed(number)
    assert board.take(given=False) == b"first"
    assert board.take(given=True) is None


def test_the_words_of_the_receiver_prove_that_it_was_given(board: Board, writer: BoardWriter) -> None:
    number = writer.post(b"first")
    assert board.take(given=True) == b"first"
    assert not writer.post(b"second")  # the first is still being handed on
    writer.handed(number)
    writer.handed(writer.post(b"second"))
    assert board.take(given=False) == b"second"


def test_a_report_that_was_not_taken_is_not_overwritten(board: Board, writer: BoardWriter) -> None:
    writer.handed(writer.post(b"first"))
    assert not writer.post(b"second")
    assert board.take(given=False) == b"first"
    assert writer.post(b"second")


def test_reports_have_limited_room_and_do_not_touch_what_was_begun(board: Board, writer: BoardWriter) -> None:
    writer.begin(11, 7)
    assert not writer.post(b"x" * (REPORT_BYTES + 1))
    writer.handed(writer.post(b"x" * REPORT_BYTES))
    assert board.begun() == {7}
    assert board.take(given=False) == b"x" * REPORT_BYTES


@pytest.mark.parametrize("length", [-1, 0, REPORT_BYTES + 1, 1 << 62])
def test_a_writer_can_not_make_the_host_read_elsewhere(board: Board, writer: BoardWriter, length: int) -> None:
    writer.handed(writer.post(b"first"))
    os.pwrite(board.descriptor, struct.pack("<q", length), 24)
    assert board.take(given=False) == b""
    assert board.take(given=False) is None


@pytest.mark.parametrize("handed", [True, False])
def test_what_a_dead_container_posted_can_be_taken_when_its_board_is_closed(handed: bool) -> None:
    """Whether its words count may be known only when another container has spoken, long after its end."""
    board = Board(1)
    writer = BoardWriter(os.dup(board.descriptor), 1)
    writer.begin(1, 7)
    number = writer.post(b"last")
    if handed:
        writer.handed(number)
    writer.close()
    board.close()
    assert board.begun() == {7}
    assert board.take(given=False) == (b"last" if handed else None)
    assert board.take(given=True) == (None if handed else b"last")


def test_what_begins_waits_until_all_orders_to_stop_were_heard(board: Board, writer: BoardWriter) -> None:
    writer.heed_stops()
    board.stops()
    board.stops()
    begun = threading.Event()

    def begin() -> None:
        writer.heed_stops()
        begun.set()

    thread = threading.Thread(target=begin)
    thread.start()
    writer.heard_stop()
    assert not begun.is_set()
    writer.heard_stop()
    thread.join()
    writer.heed_stops()


def test_an_order_that_does_not_come_is_not_waited_for_long_and_a_closed_board_takes_none(writer: BoardWriter) -> None:
    board = Board(3)
    late = BoardWriter(os.dup(board.descriptor), 3)
    board.stops()
    late.heed_stops()
    late.close()
    board.close()
    board.stops()
    assert board.take(given=True) is None


def test_slots_are_returned_in_order_once_and_round_the_end_of_their_room(board: Board, writer: BoardWriter) -> None:
    assert not writer.has_returns
    for turn in range(3):
        slots = [(turn << 16, number * 4096) for number in range(MOST_RETURNS - 5)]
        assert board.give_back(slots[:3])
        assert board.give_back(slots[3:])
        assert writer.has_returns
        assert writer.take_returns() == slots
        assert not writer.has_returns
        assert writer.take_returns() == []


def test_what_finds_no_room_is_not_returned_and_leaves_what_stands_there(board: Board, writer: BoardWriter) -> None:
    first = [(1, number) for number in range(MOST_RETURNS - 1)]
    assert board.give_back(first)
    assert not board.give_back([(2, 0), (2, 1)])
    assert writer.take_returns() == first
    assert board.give_back([(2, 0), (2, 1)])
    assert writer.take_returns() == [(2, 0), (2, 1)]


@pytest.mark.parametrize("taken", [-(1 << 62), 1 << 62])
def test_a_writer_that_lies_about_what_it_took_harms_nobody_but_itself(
    board: Board, writer: BoardWriter, taken: int
) -> None:
    os.pwrite(board.descriptor, struct.pack("<q", taken), 6 * 8)
    assert board.give_back([(1, 2)]) == (taken > 0)
    writer.begin(1, 7)
    assert board.begun() == {7}


def test_a_closed_board_takes_no_slots() -> None:
    board = Board(1)
    board.close()
    assert not board.give_back([(1, 2)])
