"""What a cold start has to get ready, piece by piece, and what it is worth to have a piece ready before."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HOST = "host"
"""The place that every machine has: its main memory. Other places are devices, by name."""

_PLACED = re.compile(r"(.+) on ([a-z]+:[0-9]+)")

Key = tuple[str, str]
"""(artifact, place)."""


def placed(model: str, place: str) -> str:
    """How weights are called in a place; in main memory by their name alone."""
    return model if place == HOST else f"{model} on {place}"


def place_of(name: str) -> Key:
    """(model, place) of weights that are called so."""
    found = _PLACED.fullmatch(name)
    return (name, HOST) if found is None else (found[1], found[2])


class Kind(enum.IntEnum):
    """In order of a cold start: none is of use without those before it."""

    LIBRARY = 0
    BACKBONE = 1
    ADAPTER = 2
    KERNELS = 3
    CACHE = 4
    """What a container has kept of earlier requests: keys and values of their prompts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact that might be ready in a place.

    Attributes:
        artifact: its name; the same in all places that it may be in. It is kept in one of them at a time.
        place: HOST or the name of a device.
        nbytes: memory that it takes there.
        saved_s: by how many seconds a start is shorter that finds it there.
        users: functions whose starts need it.
        needs: what must be there as well; of each tuple of keys one is enough.
    """

    artifact: str
    kind: Kind
    place: str
    nbytes: int
    saved_s: float
    users: tuple[str, ...]
    needs: tuple[tuple[Key, ...], ...] = ()

    @property
    def key(self) -> Key:
        """(artifact, place)."""
        return self.artifact, self.place

    def value(self, rates: Mapping[str, float]) -> float:
        """Seconds of waiting that it saves in a second: the delay times the requests of all who share it."""
        return self.saved_s * sum(rates.get(user, 0.0) for user in self.users)

    def density(self, rates: Mapping[str, float]) -> float:
        """Value of a byte."""
        return self.value(rates) / max(1, self.nbytes)


def is_closed(keys: Iterable[Key], candidates: Mapping[Key, Candidate]) -> bool:
    """Whether everything that one of these needs is among them."""
    there = set(keys)
    return all(any(key in there for key in options) for one in there for options in candidates[one].needs)
