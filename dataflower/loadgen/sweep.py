"""The highest rate that still meets the SLO: bracketing, then bisection. Pure: it says what to measure next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dataflower.errors import InvalidArgument
from dataflower.loadgen.report import Outcome

MAX_STEPS = 40
"""Rates tried at most: enough to get from any start to any rate."""


@dataclass(slots=True)
class Sweep:
    """Asks for one rate after the other.

    Attributes:
        start: the first rate, requests a second.
        factor: by which the rate grows, or shrinks, until one rate has met the SLO and a higher one has not.
        tolerance: bisection ends when the two differ by no more than this share.
        repeats: runs at each rate, each with its own seed.
        floor: lower rates are not tried.
        ceiling: higher rates are not tried.
    """

    start: float
    factor: float = 2.0
    tolerance: float = 0.05
    repeats: int = 2
    floor: float = 1e-3
    ceiling: float = 1e5
    met: float | None = None
    missed: float | None = None
    _steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start > 0):
            raise InvalidArgument(f"a sweep must start at a rate greater than 0, not {self.start:g}")
        if self.factor <= 1 or not 0 < self.tolerance < 1 or self.repeats < 1:
            raise InvalidArgument("a sweep wants a factor above 1, a tolerance between 0 and 1, and a repeat or more")

    @property
    def rule(self) -> str:
        """How it decides, for people."""
        return (
            f"a rate meets the SLO if each of its {self.repeats} runs does (one run with a seed of its own after the "
            f"other; the first that does not ends it). From {self.start:g}/s the rate is multiplied by {self.factor:g} "
            f"until it no longer does, or divided until it does; then the geometric mean of the highest that did and "
            f"the lowest that did not is tried until they differ by at most {self.tolerance:.0%}"
        )

    def next_rate(self) -> float | None:
        """What to measure next; None when it is done."""
        if self._steps >= MAX_STEPS:
            return None
        if self.met is None and self.missed is None:
            return self.start
        if self.missed is None:
            assert self.met is not None
            rate = self.met * self.factor
            return rate if rate <= self.ceiling else None
        if self.met is None:
            rate = self.missed / self.factor
            return rate if rate >= self.floor else None
        if self.missed <= self.met * (1 + self.tolerance):
            return None
        return math.sqrt(self.met * self.missed)

    def record(self, rate: float, outcomes: list[Outcome]) -> None:
        """What came of the runs at a rate."""
        self._steps += 1
        if len(outcomes) >= self.repeats and all(outcome is Outcome.MET for outcome in outcomes):
            self.met = max(rate, self.met or 0.0)
        else:
            self.missed = min(rate, self.missed or math.inf)
