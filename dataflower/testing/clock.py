"""Time under the test's command."""

from __future__ import annotations


class FakeClock:
    """A `dataflower.clock.Clock` that stands still until told to move."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        return self._now

    def wall(self) -> float:
        """The same instant on a calendar that began long ago."""
        return self._now + 1_700_000_000.0

    def advance(self, seconds: float) -> float:
        """Let `seconds` pass and return the new time; ValueError on a step back."""
        if seconds < 0:
            raise ValueError(f"time does not go back ({seconds} s)")
        self._now += seconds
        return self._now

    def advance_to(self, time: float) -> float:
        """Move to `time`, or stay if it has passed already."""
        self._now = max(self._now, time)
        return self._now
