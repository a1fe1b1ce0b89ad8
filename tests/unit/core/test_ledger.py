"""Who reads which slot: an owner is told once that a slot is free, and never when it is gone."""

from __future__ import annotations

import pytest

from dataflower.core.ledger import Ledger

ARENA, OTHER = 3 << 16, 4 << 16


def test_a_slot_is_due_when_its_last_reader_is_done() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.hold_slot((ARENA, 0))
    ledger.drop_slot((ARENA, 0))
    assert (ledger.due, ledger.slots) == ([], 1)
    ledger.drop_slot((ARENA, 0))
    assert (ledger.due, ledger.slots) == ([(ARENA, 0)], 0)
    with pytest.raises(KeyError):
        ledger.drop_slot((ARENA, 0))


def test_nothing_is_due_to_an_owner_that_is_gone() -> None:
    ledger = Ledger()
    for slot in ((ARENA, 0), (ARENA, 64), (OTHER, 0)):
        ledger.hold_slot(slot)
    ledger.drop_slot((ARENA, 0))
    ledger.drop_slot((OTHER, 0))
    ledger.owner_gone([ARENA])
    assert (ledger.due, ledger.orphans) == ([(OTHER, 0)], [])
    ledger.drop_slot((ARENA, 64))
    assert (ledger.due, ledger.orphans) == ([(OTHER, 0)], [ARENA])
    ledger.check_integrity()
