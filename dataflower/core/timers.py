"""What is to happen later: one heap, one wake-up."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

_FEW = 256
"""So many entries are not looked through for cancelled ones."""


class Timer:
    """A call due at `at`; `cancel` makes it nothing."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Callable[[float], None]) -> None:
        self.at = at
        self.action: Callable[[float], None] | None = action

    def cancel(self) -> None:
        """It will not happen; its place in the heap is cleared when its turn comes."""
        self.action = None


class Timers:
    """Timers in order of time; those for one moment fire in the order in which they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._set = 0
        self._most = _FEW

    def at(self, time: float, action: Callable[[float], None]) -> Timer:
        """Call `action(now)` at that time."""
        timer = Timer(time, action)
        self._set += 1
        if len(self._heap) >= self._most:
            self._clear()
        heapq.heappush(self._heap, (time, self._set, timer))
        return timer

    def _clear(self) -> None:
        """Forget the cancelled ones: most deadlines are far away, and the calls that had them soon over."""
        heap = self._heap
        heap[:] = [entry for entry in heap if entry[2].action is not None]  # in place: `fire` may be at it
        heapq.heapify(heap)
        self._most = max(_FEW, 2 * len(heap))

    def fire(self, now: float) -> None:
        """Do everything that is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            if timer.action is not None:
                timer.action(now)

    @property
    def next(self) -> float:
        """When the next one is due; inf if there is none."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def __len__(self) -> int:
        return sum(1 for _, _, timer in self._heap if timer.action is not None)
