"""Whether it pays to copy outputs beside the function, as measured: two that only write share one memory.

A task whose outputs are copied before the next begins takes its own time and the copy's; copied beside the next, it
may take half of that, or more than that where both wait for the memory (or for the only free core). What counts is
the time from one task to the next. Machines change their speed within seconds, so the way that is thought to be worse
is compared with the tasks right before and right after it.
"""

from __future__ import annotations

import statistics
from collections import deque

FIRST = 8
"""Tasks before which nothing is measured: they make the arena's pages."""
BLOCK = 4
"""Tasks that are copied in one way, one after the other, and measured together: a copy may span two of them."""
KEPT = 3
"""Comparisons that count, by their median."""
RARELY = 32
"""The way that is thought to be worse is tried after so many blocks at the most, since what functions do changes."""


class Overlap:
    """Of one container that runs a task at a time."""

    def __init__(self) -> None:
        self._usual = True
        """Whether copies are made beside the function except when the other way is tried."""
        self._is_trial = False
        self._received = 0.0
        """When the task before came; 0: unknown, or none waited after it."""
        self._unmeasured = FIRST
        self._block: list[float] = []
        """Seconds from task to task; the first of them is of the way before, too."""
        self._before = 0.0
        """Mean seconds in the usual way before the trial; 0: none yet."""
        self._trial = 0.0
        """Mean seconds in the trial, until the block after it has been measured."""
        self._ratios: deque[float] = deque(maxlen=KEPT)
        """Seconds beside over seconds apart."""
        self._stay = 1
        """Blocks from one trial to the next; twice as many each time that nothing new came of it."""
        self._stayed = 0

    def ran(self, received: float, *, wanted: bool) -> bool:
        """A task that came at `received` has outputs to copy; `wanted`: another waits, and they may be
        Xcopied beside the next.
        """
        seconds, self._received = received - self._received, received if wanted else 0.0
        if seconds < received:
            self._took(seconds)
        return wanted and self._usual != self._is_trial

    def _took(self, seconds: float) -> None:
        if self._unmeasured:
            self._unmeasured -= 1
            return
        self._block.append(seconds)
        if len(self._block) > BLOCK:
            mean = statistics.fmean(self._block[1:])
            self._block.clear()
            self._end(mean)

    def _end(self, mean: float) -> None:
        """A block is over; choose the way of the next."""
        if self._is_trial:
            self._is_trial, self._trial = False, mean
            return
        if self._trial:
            was = self._usual
            self._compare(self._trial / ((self._before + mean) / 2))
            self._trial = 0.0
            if self._usual != was:
                return
        self._before = mean
        self._stayed += 1
        if self._stayed >= self._stay:
            self._is_trial, self._stayed = True, 0

    def _compare(self, ratio: float) -> None:
        """The trial took so many times as long as the usual way."""
        self._ratios.append(1 / ratio if self._usual else ratio)
        usual = statistics.median(self._ratios) < 1
        settled = len(self._ratios) == KEPT and ratio >= 1 and usual == self._usual
        self._stay = min(self._stay * 2, RARELY) if settled else 1
        self._usual = usual
