"""How much longer a stage's runs take than its plan says, learned from the runs themselves.

A machine that is slower than it was when it was profiled (other work, heat, another clock rate) makes every plan too
hopeful. The quotient measured / planned of each run is averaged over the last few, so that admission can count with
what runs take now, people can be told, and planning again can start from it. A single outlier counts for little: it is
bounded before it is averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataflower.core.plan import GroupPlan

WEIGHT = 0.2
"""How much one more run counts in the averages."""
LEAP = 1.5
"""A run counts for at most this multiple of the average so far, and at least for its inverse."""
LEAST, MOST = 0.1, 20.0
"""Bounds of the quotient."""
DEAD = 1.05
"""Up to here nothing is taken to be slower: measurements scatter, and plans leave room for that."""
SLOW, RECOVERED = 1.15, 1.05
"""A stage is called slow from the first on, until it is below the second: it doesn't flicker in between."""
SOON = 5
"""Runs before anybody is told anything: the first ones in a container often take longer."""


ANSWERS = 50
"""Runs over which the average goes, and before which nobody is told anything, where runs are answers."""


class Slowdown:
    """Of one stage under a plan. 1: runs take what the plan says."""

    __slots__ = ("_answers", "_groups", "_is_slow", "_mean", "_off", "_soon", "runs")

    def __init__(self, groups: Sequence[GroupPlan], *, answers: bool = False) -> None:
        """`answers`: of a language model, say: a run takes as long as its answer, so only the average of many tells
        of the machine, and plans have it as `duration_s`."""
        self._groups = tuple(groups)
        self._answers = answers
        self._soon = ANSWERS if answers else SOON
        self._mean = 1.0
        self._off = 0.0
        self.runs = 0
        """That were measured."""
        self._is_slow = False

    def take_over(self, former: Slowdown) -> None:
        """The stage has run by another plan so far; what is known is put in terms of this one."""
        if former.runs:
            ratio = former._reference_s / self._reference_s
            self._mean = _bounded(former._mean * ratio)
            self._off, self.runs = former._off * ratio, former.runs
            self._is_slow = self._mean >= SLOW

    @property
    def _reference_s(self) -> float:
        """How long the plan takes a run for that both of two plans say something of: the smallest known batch."""
        group = self._groups[0]
        return group.points[0][1] if group.points else group.duration_s

    def ran(self, group: GroupPlan, tasks: int, seconds: float) -> None:
        """A container of this group ran so many tasks together."""
        if self._answers:
            self._answered(group.duration_s, seconds)
            return
        expected = group.expected_s(tasks)
        if expected is None:  # a batch that was not full, and nobody knows how long those take
            if seconds < group.duration_s * self._mean * (1 - 1e-9):
                return
            expected = group.duration_s
        if expected <= 0 or seconds <= 0:
            return
        quotient = _bounded(seconds / expected)
        self.runs += 1
        if self.runs == 1:
            self._mean = quotient
            return
        off = min(max(quotient, self._mean / LEAP), self._mean * LEAP) - self._mean
        weight = max(WEIGHT, 1 / self.runs)
        self._mean += weight * off
        self._off += weight * (abs(off) - self._off)
        self._is_slow = self._mean >= (RECOVERED if self._is_slow else SLOW)

    def _answered(self, expected: float, seconds: float) -> None:
        if expected <= 0 or seconds <= 0:
            return
        self.runs += 1
        self._mean += max(1 / ANSWERS, 1 / self.runs) * (_bounded(seconds / expected) - self._mean)
        self._is_slow = self._mean >= (RECOVERED if self._is_slow else SLOW)

    @property
    def factor(self) -> float | None:
        """Measured over planned run time, lately; None as long as too few runs have been seen."""
        return self._mean if self.runs >= self._soon else None

    @property
    def is_slow(self) -> bool:
        """Whether the stage runs clearly slower than its plan says."""
        return self._is_slow and self.runs >= self._soon

    @property
    def counted(self) -> float:
        """What to multiply planned run times by to be on the safe side: at least 1."""
        return self._mean if self._mean > DEAD and not self._is_early else 1.0

    @property
    def _is_early(self) -> bool:
        """Whether the few answers so far may just have been long ones."""
        return self._answers and self.runs < self._soon

    @property
    def high(self) -> float:
        """The same for a single run, which may be one of the longer ones."""
        high = self._mean + 2 * self._off
        return high if high > DEAD and not self._is_early else 1.0


def _bounded(quotient: float) -> float:
    return min(max(quotient, LEAST), MOST)
