"""A container writes anything anywhere on its board, at any moment: the host reads words and bytes, and goes on."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.channel.board import MOST_RETURNS, REPORT_BYTES, Board

WORDS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, REPORT_BYTES, REPORT_BYTES + 1, 2**63 - 1])
SLOTS = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=MOST_RETURNS + 2)
STEPS = st.lists(
    st.tuples(st.just("word"), st.integers(0, 6), WORDS)
    | st.tuples(st.just("bytes"), st.integers(0, 5000), st.binary(min_size=1, max_size=60))
    | st.tuples(st.just("take"), st.booleans(), st.none())
    | st.tuples(st.just("back"), SLOTS, st.none())
    | st.tuples(st.just("stop"), st.none(), st.none()),
    max_size=25,
)


def test_a_board_can_be_neither_cut_short_nor_grown() -> None:
    board = Board(3)
    try:
        for nbytes in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(board.descriptor, nbytes)
    finally:
        board.close()


@given(st.integers(1, 600), STEPS)
def test_whatever_stands_on_a_board_the_host_reads_on(threads: int, steps: list[tuple[str, object, object]]) -> None:
    board = Board(threads)
    nbytes = os.fstat(board.descriptor).st_size
    page = mmap.mmap(board.descriptor, nbytes)
    try:
        for step in steps:
            match step:
                case "word", int(place), int(word):
                    page[8 * place : 8 * place + 8] = word.to_bytes(8, "little", signed=True)
                case "bytes", int(at), bytes(some):
                    at %= nbytes - len(some)
                    page[at : at + len(some)] = some
                case "take", bool(given_), _:
                    report = board.take(given=given_)
                    assert report is None or len(report) <= REPORT_BYTES
                    assert board.take(given=True) is None or not given_, "what stands there counts once"
                case "back", list(slots), _:
                    board.give_back(slots)
                case _:
                    board.stops()
            assert len(board.begun()) <= threads
        board.close()
        board.take(given=True)
        assert board.take(given=True) is None
        assert not board.give_back([(1, 1)]), "nobody is there to take it"
        assert len(board.begun()) <= threads
    finally:
        board.close()
        page.close()


@pytest.mark.parametrize("length", [REPORT_BYTES + 1, 2**63 - 1, 0, -1, -(2**63)])
def test_a_report_of_a_length_that_none_has_is_empty(length: int) -> None:
    """And so no message, for which the container is ended; nothing else on the board is read as part of it."""
    board = Board(2)
    try:
        with mmap.mmap(board.descriptor, os.fstat(board.descriptor).st_size) as page:
            for place, word in ((0, 1), (1, 1), (3, length)):
                page[8 * place : 8 * place + 8] = word.to_bytes(8, "little", signed=True)
        assert board.take(given=False) == b""
    finally:
        board.close()
