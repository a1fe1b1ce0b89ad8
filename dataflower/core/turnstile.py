"""Tasks let in by turn: where the stage before lets them overtake each other, the next one waits for the late ones.

Batches of different groups take different times, so tasks leave such a stage out of order. The next stage would start
those that came early, and have no container free when a more urgent one comes after all, although in the order of the
invocations it keeps its bound. In that order nobody is held up by a task that comes early: batches of one length that
begin in order end in order, and earlier arrivals only make them begin earlier. So a task is let in when no invocation
that came before its own has a task under way in the stages before, and when it was to come by the plan at the latest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence

from dataflower.core.batching import Waiting
from dataflower.core.instance import Instance

_SPARE = 64
"""Entries of tasks that are over which may stay before they are cleared away."""


class Underway:
    """Tasks that wait or run in a stage, by the arrival of their invocations. `holds`: whether one still does."""

    __slots__ = ("_heap", "_holds", "_keep", "_sequence")

    def __init__(self, holds: Callable[[Instance], bool]) -> None:
        self._holds = holds
        self._heap: list[tuple[float, int, Instance]] = []
        self._keep = _SPARE
        self._sequence = 0

    def add(self, instance: Instance, arrived: float) -> None:
        """It waits from now on; its invocation came at `arrived`."""
        if len(self._heap) >= self._keep:  # first: the stage does not hold the new one yet
            self._heap = [entry for entry in self._heap if self._holds(entry[2])]
            heapq.heapify(self._heap)
            self._keep = 2 * len(self._heap) + _SPARE
        self._sequence += 1
        heapq.heappush(self._heap, (arrived, self._sequence, instance))

    def oldest(self) -> float:
        """When the first of their invocations came; inf if there are none."""
        heap = self._heap
        while heap and not self._holds(heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def __len__(self) -> int:
        return len(self._heap)


class Turnstile:
    """Tasks that came before their turn. `before`: what is under way in the stages that let tasks overtake."""

    __slots__ = ("_before", "_from_s", "_heap", "_sequence")

    def __init__(self, before: Sequence[Underway], from_s: float) -> None:
        """`from_s`: seconds after the arrival of their invocation at which tasks are to come at the latest."""
        self._before = before
        self._from_s = from_s
        self._heap: list[tuple[float, int, Waiting]] = []
        self._sequence = 0

    def add(self, entry: Waiting, arrived: float) -> None:
        """A task came; `let_in` says when it is its turn."""
        self._sequence += 1
        heapq.heappush(self._heap, (arrived, self._sequence, entry))

    def let_in(self, now: float) -> Iterator[Waiting]:
        """Those whose turn it is, in order; those that were withdrawn are among them."""
        heap = self._heap
        while heap and (self.next_at <= now or heap[0][0] <= self._reached):
            yield heapq.heappop(heap)[2]

    @property
    def _reached(self) -> float:
        """Up to which arrival nothing is under way any more."""
        return min(underway.oldest() for underway in self._before)

    @property
    def next_at(self) -> float:
        """When the first of them is let in whatever happens; inf if there are none."""
        return self._heap[0][0] + self._from_s if self._heap else math.inf

    def __len__(self) -> int:
        return len(self._heap)

    def clear(self) -> list[Waiting]:
        """All of them, in order; none are left."""
        entries = [entry for _, _, entry in sorted(self._heap, key=lambda e: e[:2])]
        self._heap.clear()
        return entries
