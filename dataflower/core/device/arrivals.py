"""How often functions are called: an exponential average that costs a number for each of them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

WINDOW_S = 60.0
"""Time constant: what was longer ago hardly counts (ServerlessLoRA re-implementations look at 60 s)."""


class Rates(Generic[Name]):
    """Arrivals a second of each function, lately."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._known: dict[Name, tuple[float, float]] = {}
        """Weight of past arrivals and when it was reckoned."""

    def note(self, name: Name, now: float, count: int = 1) -> None:
        """So many calls, now."""
        self._known[name] = (self._weight(name, now) + count, now)

    def rate(self, name: Name, now: float) -> float:
        """Calls a second; 0 for a function never called."""
        return self._weight(name, now) / self._window_s

    def forget(self, name: Name) -> None:
        """The function is gone."""
        self._known.pop(name, None)

    def all(self, now: float) -> dict[Name, float]:
        """Of everybody who has called."""
        return {name: self.rate(name, now) for name in self._known}

    def falls_below(self, name: Name, rate: float, now: float) -> float:
        """When the rate will have sunk to `rate` if nobody calls; `now` if it has, inf if it never will."""
        present = self.rate(name, now)
        if present <= rate:
            return now
        return now + self._window_s * math.log(present / rate) if rate > 0 else math.inf

    def _weight(self, name: Name, now: float) -> float:
        weight, at = self._known.get(name, (0.0, now))
        return weight * math.exp(-max(0.0, now - at) / self._window_s)
