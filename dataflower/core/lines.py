"""Which way bytes go from one lender to another: straight over a line between the two, or by way of the owner.

Pure. A line is tried when something is to go over it, and again after a pause when it could not be had or broke.
"""

from __future__ import annotations

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0


class Line:
    """From one host to another, in one direction."""

    __slots__ = ("_again_at", "_pause_s", "is_up")

    def __init__(self) -> None:
        self.is_up = False
        """Whether bytes go over it; it may still be under way."""
        self._pause_s = FIRST_PAUSE_S
        self._again_at = 0.0

    def may_try(self, now: float, *, is_clean: bool) -> bool:
        """Whether to try it now. `is_clean`: nothing of the same memory is on its way by way of the owner.

        Else older bytes could come after newer ones for the same place.
        """
        return not self.is_up and is_clean and now >= self._again_at

    def tried(self) -> None:
        """The two are being introduced: what is to be sent waits for that."""
        self.is_up = True

    def met(self) -> None:
        """They have met, so the next trouble is a new one."""
        self._pause_s = FIRST_PAUSE_S

    def broke(self, now: float) -> float:
        """It could not be had, or broke for good: the other way until a pause is over. Returns the pause in seconds."""
        self.is_up = False
        pause_s = self._pause_s
        self._again_at = now + pause_s
        self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s
