"""Inputs of different workflows never lie in the same memory, and all of them together are capped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataflower.errors import ResourceExhausted, WouldBlock
from dataflower.host.input_arenas import SPANS, InputArenas
from dataflower.testing.arenas import take

MIB = 1 << 20


class Book:
    """What was announced and not forgotten, by number."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def announce(self, arena: int, nbytes: int, descriptor: int) -> None:
        assert arena not in self.known
        self.known[arena] = nbytes

    def forget(self, arena: int) -> None:
        del self.known[arena]


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def arenas(book: Book) -> Iterator[InputArenas]:
    made = InputArenas(8 * MIB, book.announce, book.forget)
    yield made
    made.close()


def test_workflows_share_no_memory(arenas: InputArenas) -> None:
    slots = {name: [take(arenas.of(name), MIB) for _ in range(2)] for name in "abc"}
    seen = [{slot.arena for slot in own} for own in slots.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))
    arenas.release([(slot.arena, slot.slot) for own in slots.values() for slot in own])
    assert arenas.statistics().slots == 0


def test_what_one_workflow_has_given_back_no_other_is_given(arenas: InputArenas) -> None:
    first = take(arenas.of("a"), MIB)
    first.buffer[:4] = b"mine"
    arenas.release([(first.arena, first.slot)])
    second = take(arenas.of("b"), MIB)
    assert (second.arena != first.arena, bytes(second.buffer[:4])) == (True, bytes(4))
    assert take(arenas.of("a"), MIB).arena == first.arena


def test_all_together_keep_to_the_cap(arenas: InputArenas) -> None:
    held = take(arenas.of("a"), 5 * MIB)
    with pytest.raises(WouldBlock):
        take(arenas.of("b"), 4 * MIB)
    other = take(arenas.of("b"), 3 * MIB)
    with pytest.raises(WouldBlock):
        take(arenas.of("a"), 1)
    arenas.release([(held.arena, held.slot)])
    take(arenas.of("a"), 5 * MIB)
    arenas.release([(other.arena, other.slot)])
    with pytest.raises(ValueError, match="not with any receiver"):
        arenas.release([(other.arena, other.slot)])


def test_memory_of_those_at_rest_is_given_back_for_others(arenas: InputArenas, book: Book) -> None:
    for number in range(20):
        slot = take(arenas.of(f"w{number}"), 4 * MIB)
        arenas.release([(slot.arena, slot.slot)])
        assert sum(book.known.values()) == arenas.statistics().reserved_bytes
    assert arenas.statistics().reserved_bytes <= 3 * 8 * MIB
    assert take(arenas.of("w19"), 4 * MIB).arena in book.known


def test_numbers_are_used_again_and_no_two_workflows_share_one(arenas: InputArenas) -> None:
    for number in range(SPANS + 3):
        arenas.of(f"w{number}")
    held = [take(arenas.of(f"w{number}"), 64) for number in range(SPANS)]
    assert len({slot.arena for slot in held}) == SPANS
    with pytest.raises(ResourceExhausted, match="other workflows"):
        arenas.of("one more")
    with pytest.raises(ValueError, match="not with any receiver"):
        InputArenas(MIB, lambda *a: None, lambda a: None).release([(0, 0)])
