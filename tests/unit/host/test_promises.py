"""Promises between containers of which one dies: who may have been handed a task by it is told apart from a liar."""

from __future__ import annotations

from types import SimpleNamespace

from dataflower import wire
from dataflower.host.promises import Promises

PORTS = (("x", "out"),)


def peer(number: int) -> SimpleNamespace:
    return SimpleNamespace(number=number, promises={}, orphans=set(), was_given=lambda outputs, then: None)


def test_what_a_receiver_handed_on_before_it_died_unheard_counts_for_nothing() -> None:
    first, last = peer(1), peer(3)
    book = Promises({1: first, 3: last})  # 2, between them, is gone
    first.promises[10] = then = wire.Next(2, 11, PORTS, then=wire.Next(3, 12, PORTS))
    book.note(1, then)
    word = wire.TaskDone(12, {}, 0, wire.Times())
    assert book.is_early(word)
    report = wire.TaskDone(10, {"out": wire.Value(b"\x01")}, 0, wire.Times(), forwarded=11)
    assert book.settle(first, report) == (3,)
    assert not book.is_early(word)
    assert last.orphans == {12}


def test_what_a_container_handed_on_before_it_died_unheard_counts_for_nothing() -> None:
    first, second, last = peer(1), peer(2), peer(3)
    book = Promises({1: first, 2: second, 3: last})
    first.promises[10] = then = wire.Next(2, 11, PORTS, then=wire.Next(3, 12, PORTS))
    book.note(1, then)
    assert book.void_all(first) == (2, 3)
    assert (second.orphans, last.orphans) == ({11}, {12})


def test_what_was_not_handed_on_was_not_handed_to_anyone() -> None:
    first, second = peer(1), peer(2)
    book = Promises({1: first, 2: second})
    first.promises[10] = then = wire.Next(2, 11, PORTS)
    book.note(1, then)
    assert book.settle(first, wire.TaskDone(10, {}, 0, wire.Times())) == (2,)
    assert second.orphans == set()
