"""The core's alarm: one time at which it wants to be woken, on the loop's timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_EARLY_S = 0.0005
"""The loop counts in milliseconds, so a timer may fire a little early: then it is set again, to this much later."""


class Alarm:
    """Rings once at the time set last. Deadlines come and go with every invocation, so a timer is seldom cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, now: Callable[[], float], ring: Callable[[], None]) -> None:
        """`now` is CLOCK_MONOTONIC, as are all times."""
        self._loop = loop
        self._now = now
        self._ring = ring
        self._at = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")

    def set(self, time: float) -> None:
        """Ring then and not before; infinite: not at all. A timer set for earlier looks again when it fires."""
        self._at = time
        if time < self._due:
            self._arm(time)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(max(0.0, due - self._now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._due = float("inf")
        if self._at == float("inf"):
            return
        if self._now() < self._at:
            self._arm(self._at + _EARLY_S)
            return
        self._at = float("inf")
        self._ring()

    def close(self) -> None:
        """Never ring again. Idempotent."""
        self._at = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
