"""How an invocation may end, and whether one that did end was allowed to."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflower.errors import Failure
from dataflower.wire import Tag


class Absent(enum.Enum):
    """The token that carries no data."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Fails:
    """A failure that nobody catches: which stage, of what kind, on which attempt."""

    stage: str
    kind: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Poison:
    """Stands for a value that can't be had, for these reasons."""

    why: frozenset[Fails]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One legal end of an invocation.

    `outputs` by name (a list for a stream, `ABSENT`); None if it must fail. `failures`: those it may fail with; if
    `outputs` is set and `failures` is not empty, either may happen. `tasks`: all that may run.
    """

    outputs: Mapping[str, Any] | None
    failures: frozenset[Fails]
    tasks: frozenset[tuple[str, Tag]]


class TooMany(Exception):
    """More legal ends than anyone wants to see."""


def check_legal(ends: Sequence[Outcome], outputs: Mapping[str, Any], failure: Failure | None) -> None:
    """Raise AssertionError unless ending with this `failure`, or else with these `outputs`, is legal."""
    if failure is not None:
        met = Fails(failure.stage, failure.kind, failure.attempt)
        legal = frozenset[Fails]().union(*(end.failures for end in ends))
        assert met in legal, f"failed with {failure}, legal are {sorted(map(str, legal))}"
        return
    legal_outputs = [dict(end.outputs) for end in ends if end.outputs is not None]
    assert outputs in legal_outputs, f"got {outputs}, legal are {legal_outputs[:5]}"
