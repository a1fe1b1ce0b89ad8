"""How long batches of a function take to their first tokens, learned from those that ran."""

from __future__ import annotations

import math

from dataflower.core.device.window import Latency

KEPT = 0.9
"""What a measurement still counts for after the next one: the last ten or so make the estimate."""
SPREAD = 1e-6
"""Variance of batch sizes below which nothing is known of what one more request costs."""


class Pace:
    """A line through (requests in a batch, seconds), by least squares, in which older batches fade.

    What batches took beyond the line, on average, is added to it, since prompts differ. As long as all batches had the
    same size, a request is taken to cost the same in any: nothing is won by waiting for others.
    """

    def __init__(self) -> None:
        self._weight = self._size = self._time = self._size_size = self._size_time = 0.0
        self._off = 0.0

    def note(self, batch: int, seconds: float) -> None:
        """A batch of so many requests took so long to the last of its first tokens, on a device of its own."""
        known = self._line()
        if known is not None:
            off = abs(seconds - known.of(batch))
            self._off = KEPT * self._off + (1 - KEPT) * off
        self._weight = KEPT * self._weight + 1.0
        self._size = KEPT * self._size + batch
        self._time = KEPT * self._time + seconds
        self._size_size = KEPT * self._size_size + batch * batch
        self._size_time = KEPT * self._size_time + batch * seconds

    def latency(self) -> Latency | None:
        """The line now; None as long as nothing ran."""
        line = self._line()
        return None if line is None else Latency(line.first_s + self._off, line.more_s)

    @property
    def is_settled(self) -> bool:
        """Whether batches of several sizes have told what one more request costs."""
        if not self._weight:
            return False
        return self._size_size / self._weight - (self._size / self._weight) ** 2 > SPREAD

    def _line(self) -> Latency | None:
        if not self._weight:
            return None
        size, time = self._size / self._weight, self._time / self._weight
        spread = self._size_size / self._weight - size * size
        if spread > SPREAD:
            slope = max(0.0, (self._size_time / self._weight - size * time) / spread)
            first = time - slope * (size - 1)
            if first >= slope:
                return Latency(first, slope)
        each = time / size  # a line through the origin: else one request would take less than one more
        return Latency(each, each) if math.isfinite(each) else None
