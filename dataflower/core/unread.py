"""Outputs of finished invocations that nobody reads: they expire, so that a caller who forgot them holds no memory.

Tokens are let go of by their last reader, and all that an invocation still holds when it ends is let go of then. What
is left are results in shared memory that wait for the caller to copy them out.
"""

from __future__ import annotations

from collections.abc import Callable

from dataflower.core.call import Call
from dataflower.core.timers import Timer, Timers


class Unread:
    """Finished invocations with results in shared memory, the one that was looked at longest ago first."""

    def __init__(self, timers: Timers, ttl_s: float, expire: Callable[[Call], None]) -> None:
        """`expire(call)`: nothing of it was read for `ttl_s`; said again after that time if it is not released then."""
        self._timers = timers
        self._ttl_s = ttl_s
        self._expire = expire
        self._since: dict[Call, float] = {}
        self._timer: Timer | None = None

    def note(self, call: Call, now: float) -> bool:
        """It is over, or something of it was read. Gives whether any of its results are still in shared memory."""
        self._since.pop(call, None)
        if not call.flow.outputs.holds_slots:
            return False
        self._since[call] = now
        if self._timer is None:
            self._timer = self._timers.at(now + self._ttl_s, self._look)
        return True

    def forget(self, call: Call) -> None:
        """It was released."""
        self._since.pop(call, None)
        if self._timer is not None and not self._since:
            self._timer.cancel()
            self._timer = None

    def _look(self, now: float) -> None:
        self._timer = None
        while self._since:
            call, since = next(iter(self._since.items()))
            if now < since + self._ttl_s:
                self._timer = self._timers.at(since + self._ttl_s, self._look)
                return
            del self._since[call]
            self._expire(call)
            self._since[call] = now  # a reader may be in the middle of it
