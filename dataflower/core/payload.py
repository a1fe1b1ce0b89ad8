"""What an input holds: a value, a list of values, or word that nothing will come."""

from __future__ import annotations

import enum
from typing import Final

from dataflower.core.ledger import Ledger
from dataflower.wire import TensorRef, Value


class Absent(enum.Enum):
    """The token that carries no data: its branch was not taken, or its producer left the port out."""

    ABSENT = enum.auto()


ABSENT: Final = Absent.ABSENT

Payload = Value | tuple[Value, ...]
"""What an input holds once it is there: a value, or a list that was gathered or merged."""


def refs_of(value: Value) -> tuple[TensorRef, ...]:
    """Everything that a value refers to."""
    return value.tensors if value.spilled is None else (*value.tensors, value.spilled)


def value_bytes(value: Value) -> int:
    """Bytes of a value for credit: its tensors, or its body."""
    total = len(value.body)
    for ref in value.tensors:
        total += ref.nbytes
    if value.spilled is not None:
        total += value.spilled.nbytes
    return total


def hold(ledger: Ledger, payload: Value | Absent | tuple[Value, ...]) -> None:
    """Hold every slot of a payload."""
    if isinstance(payload, Value):
        if payload.tensors or payload.spilled is not None:
            ledger.hold(payload)
    elif isinstance(payload, tuple):
        for value in payload:
            ledger.hold(value)


def drop(ledger: Ledger, payload: Value | Absent | tuple[Value, ...]) -> None:
    """Undo one `hold`."""
    if isinstance(payload, Value):
        if payload.tensors or payload.spilled is not None:
            ledger.drop(payload)
    elif isinstance(payload, tuple):
        for value in payload:
            ledger.drop(value)
