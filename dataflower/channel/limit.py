"""A limit to how fast streams go to other hosts."""

from __future__ import annotations

_STEP_S = 0.005
"""What may be sent at once is what may go in so long."""
_LATE_S = 0.02
"""So far behind what is allowed one may catch up."""


class Limit:
    """How fast certain streams may go together, on all connections that they use."""

    __slots__ = ("_bytes_per_s", "_free_at", "chunk")

    def __init__(self, bytes_per_s: float) -> None:
        """Bytes per second, above 0."""
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self.chunk = max(4096, int(bytes_per_s * _STEP_S))
        """Bytes that may be sent at once."""

    def free_at(self) -> float:
        """When the next chunk may be sent, on the clock that `took` is told of."""
        return self._free_at

    def took(self, count: int, now: float) -> None:
        """So many bytes were sent. Who wakes up late may catch up a little."""
        self._free_at = max(self._free_at, now - _LATE_S) + count / self._bytes_per_s
