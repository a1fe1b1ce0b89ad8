"""Memory that stands for arenas of other hosts: of the same number and size, and filled by whoever has their bytes."""

from __future__ import annotations

import os

from dataflower.channel.segment import Segment

MAX_MIRROR_BYTES = 1 << 42
"""All of them together; they are sparse, so this only keeps nonsense out."""

MAX_GONE_BYTES = 1 << 30
"""So much memory at most is spent on bytes for a mirror that is gone and of which only they tell the size."""


class Mirrors:
    """By number of the arena. Owns the memory: `close` it."""

    def __init__(self, *, shared: bool = False) -> None:
        """`shared`: several ferries fill them, so that bytes may come for one that another has taken away."""
        self._segments: dict[int, Segment] = {}
        self._nbytes = 0
        self._gone: dict[int, int] | None = {} if shared else None
        """Those that were let go of, and how large they were as far as anybody said."""

    def __contains__(self, arena: int) -> bool:
        return arena in self._segments

    def make(self, arena: int, nbytes: int) -> bool:
        """Whether it was made now; another ferry may have made it. Raises ValueError for what can't be."""
        known = self._segments.get(arena)
        if known is not None:
            if known.nbytes != nbytes:
                raise ValueError(f"a mirror of {nbytes} bytes under the number {arena:#x}, of one of {known.nbytes}")
            return False
        if self._gone is not None and arena in self._gone:
            self._gone[arena] = max(self._gone[arena], min(nbytes, MAX_GONE_BYTES))
            return False
        if nbytes <= 0 or self._nbytes + nbytes > MAX_MIRROR_BYTES:
            raise ValueError(f"a mirror of {nbytes} bytes under the number {arena:#x}")
        self._segments[arena] = Segment.in_memory(arena, nbytes)
        self._nbytes += nbytes
        return True

    def place(self, arena: int, offset: int, nbytes: int) -> memoryview:
        """Where these bytes belong; ValueError if there is no such place."""
        segment = self._segments.get(arena)
        if segment is None and self._gone is not None and offset + nbytes <= self._gone.get(arena, -1):
            return memoryview(bytearray(nbytes))  # nobody reads it any more
        if segment is None or offset + nbytes > segment.nbytes:
            raise ValueError(f"bytes for {offset} to {offset + nbytes} of arena {arena:#x}, which are not mirrored")
        return segment.buffer[offset : offset + nbytes]

    def segment(self, arena: int) -> Segment:
        """The memory itself. ValueError if there is none."""
        segment = self._segments.get(arena)
        if segment is None:
            raise ValueError(f"arena {arena:#x} is not mirrored")
        return segment

    def drop(self, arena: int) -> None:
        """Let go of one; its memory is gone when its last reader is. No-op if there is none."""
        segment = self._segments.pop(arena, None)
        if self._gone is not None:
            self._gone[arena] = 0 if segment is None else segment.nbytes
        if segment is not None:
            self._nbytes -= segment.nbytes
            os.close(segment.fd)

    def close(self) -> None:
        """Let go of all of them. Idempotent."""
        for arena in list(self._segments):
            self.drop(arena)
