"""The only place that asks the operating system for the time.

Times are seconds as float. `monotonic` is CLOCK_MONOTONIC, which all processes of a host share, so record points
taken in a container and in the host can be laid on one axis.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where times come from; `dataflower.testing.FakeClock` is the other implementation."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start, never going back."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, for people and for the journal."""
        ...


class SystemClock:
    """The machine's clocks."""

    # Not methods round them: they are asked several times for each task.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
