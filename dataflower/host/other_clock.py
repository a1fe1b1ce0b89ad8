"""How far another host's clock is ahead: between what one exchange allows and what its messages prove since.

CLOCK_MONOTONIC of two machines have nothing to do with each other. A stamp of the other's that came between two
moments here was made between them, which says no more than that where either host was busy meanwhile, as hosts are
while they start. But each later message that bears a stamp came after it was made, and the quickest of them tells most.
"""

from __future__ import annotations

DRIFT = 2e-4
"""By so much in a second two clocks may drift apart: what was known once is known less well by and by."""
STALE_S = 10.0
"""A task that has not ended by then may never."""


class OtherClock:
    """Bounds on the seconds by which another host's clock is ahead of ours."""

    def __init__(self) -> None:
        """Until `met`: the same clock."""
        self._least = self._most = 0.0
        self._least_at = self._most_at = 0.0
        self._is_met = False
        self._asked: tuple[int, float] | None = None
        """A task that went there, and when: one at a time."""

    def met(self, began: float, theirs: float, ended: float) -> None:
        """The other read `theirs` at some moment between two of ours."""
        least, most = theirs - ended, theirs - began
        is_new = not self._is_met or most < self._least_ahead_s(ended) or self.most_ahead_s(ended) < least
        if is_new or most < self.most_ahead_s(ended):
            self._most, self._most_at = most, ended
        if is_new or least > self._least_ahead_s(ended):
            self._least, self._least_at = least, ended
        self._is_met = True

    def asked(self, task: int, now: float) -> None:
        """A task leaves for there."""
        if self._asked is None or now - self._asked[1] > STALE_S:
            self._asked = task, now

    def answered(self, task: int, received: float, ended: float, now: float) -> None:
        """The word is here that it was received and ended then by the other's clock.

        Stamps that can't be, say of a container that lies, prove nothing.
        """
        if not self._is_met:
            return
        least, most = self._least_ahead_s(now), self.most_ahead_s(now)
        if least < ended - now <= most:
            self._least, self._least_at = ended - now, now
            least = self._least
        if self._asked is not None and self._asked[0] == task:
            at = self._asked[1]
            self._asked = None
            if least <= received - at < most:
                self._most, self._most_at = received - at, now

    def ahead_s(self, now: float) -> float:
        """How far it is ahead, likely."""
        return (self._least_ahead_s(now) + self.most_ahead_s(now)) / 2

    def most_ahead_s(self, now: float) -> float:
        """How far it is ahead at most."""
        return self._most + DRIFT * (now - self._most_at)

    def _least_ahead_s(self, now: float) -> float:
        return self._least - DRIFT * (now - self._least_at)
