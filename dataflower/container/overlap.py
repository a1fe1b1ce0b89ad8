"""Whether it pays to copy outputs beside the function, as measured: two that only write share one memory.

A task whose outputs are copied before the next begins takes its own time and the copy's. Copied beside the next, it
takes the longer of the two, each as long as it takes beside the other: half of the sum at the best, and more than the
sum where both wait for the memory (or for the only free core).
"""

from __future__ import annotations

import statistics
from collections import deque

KEPT = 3
"""The last so many times of each kind count, by their median: page faults of the first tasks are soon forgotten."""
FIRST = 4
"""Tasks before which nothing is measured: they make the arena's pages."""
TRIED_EVERY = 8
"""The way that is thought to be worse is tried again after so many tasks, since what functions do changes."""
MARGIN = 1.05
"""Beside is taken until it is clearly worse."""


class Overlap:
    """Of one container that runs a task at a time. Times in seconds."""

    def __init__(self) -> None:
        self._tasks = 0
        self._is_beside = False
        """Whether the outputs of the last task were copied beside the next."""
        self._work: tuple[deque[float], deque[float]] = (deque(maxlen=KEPT), deque(maxlen=KEPT))
        """What functions took with nothing beside them; beside a copy."""
        self._copies: tuple[deque[float], deque[float]] = (deque(maxlen=KEPT), deque(maxlen=KEPT))
        """What copies took with nothing beside them; beside a function."""

    def ran(self, seconds: float) -> bool:
        """A function has taken so long. Gives whether its outputs had better be copied beside the next."""
        self._tasks += 1
        if self._tasks <= FIRST:
            return True
        self._work[self._is_beside].append(seconds)
        for beside in (True, False):
            if len(self._work[beside]) < KEPT or len(self._copies[beside]) < KEPT:
                return beside
        apart = statistics.median(self._work[False]) + statistics.median(self._copies[False])
        together = max(statistics.median(self._work[True]), statistics.median(self._copies[True]))
        is_better = together < apart * MARGIN
        return is_better if self._tasks % TRIED_EVERY else not is_better

    def copied(self, seconds: float, *, beside: bool) -> None:
        """A copy of outputs has taken so long."""
        if self._tasks > FIRST:
            self._copies[beside].append(seconds)

    def goes(self, *, beside: bool) -> None:
        """How the outputs of the last task are copied after all."""
        self._is_beside = beside
