"""How many bytes of each container are on their way to other hosts, and how fast they have arrived lately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

LEAST_BYTES = 64 << 10
"""A rate is told from no fewer: what is shorter takes a round trip rather than a line."""
NEWEST = 0.5
"""What one more measurement counts in the moving average."""


@dataclass(slots=True)
class _Source:
    """What one container sends. A measurement began at `since`, with `total` bytes to be sent then or added later."""

    streams: dict[int, Callable[[], int]] = field(default_factory=dict)
    """By stream: asks for the bytes of it that have not left."""
    fresh: int = 0
    since: float = 0.0
    total: int = 0
    rate: float = 0.0

    @property
    def waiting(self) -> int:
        return sum(left() for left in self.streams.values())


class Outflows:
    """Of all containers of a host, over all connections. `now`: seconds of any steady clock."""

    def __init__(self, now: Callable[[], float], changed: Callable[[int], None]) -> None:
        """`changed(container)`: there is news. Called from within the methods; may only take note."""
        self._now = now
        self._changed = changed
        self._sources: dict[int, _Source] = {}
        self._owners: dict[int, int] = {}
        self._last = 0

    def began(self, container: int, nbytes: int, left: Callable[[], int]) -> int:
        """A stream begins, of which `left()` bytes have not left; returns its number here."""
        source = self._sources.setdefault(container, _Source())
        if not source.streams:
            source.since, source.total = self._now(), 0
        self._last += 1
        source.streams[self._last] = left
        source.fresh += nbytes
        source.total += nbytes
        self._owners[self._last] = container
        self._changed(container)
        return self._last

    def arrived(self, stream: int) -> None:
        """All of it is where it belongs."""
        found = self._end(stream)
        if found is None:
            return
        container, source = found
        now, waiting = self._now(), source.waiting
        moved, took = source.total - waiting, now - source.since
        if moved >= LEAST_BYTES and took > 0:
            source.rate += (NEWEST if source.rate else 1.0) * (moved / took - source.rate)
            source.since, source.total = now, waiting
        self._changed(container)

    def given_up(self, stream: int) -> None:
        """It ended early. No-op if it is over."""
        left = self._sources[self._owners[stream]].streams[stream]() if stream in self._owners else 0
        found = self._end(stream)
        if found is not None:
            found[1].total -= left
            self._changed(found[0])

    def _end(self, stream: int) -> tuple[int, _Source] | None:
        container = self._owners.pop(stream, None)
        if container is None:
            return None
        source = self._sources[container]
        del source.streams[stream]
        return container, source

    def take(self, container: int) -> tuple[int, int, float]:
        """Bytes that were added since the last call, bytes that have not left, and bytes per second (0: unknown)."""
        source = self._sources.get(container)
        if source is None:
            return 0, 0, 0.0
        fresh, source.fresh = source.fresh, 0
        return fresh, source.waiting, source.rate

    def forget(self, container: int) -> None:
        """The container is gone; streams of what it left go on uncounted."""
        source = self._sources.pop(container, None)
        for stream in () if source is None else source.streams:
            del self._owners[stream]
