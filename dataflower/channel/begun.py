"""Which task each thread of a container has begun last: a page that the container writes and the host reads.

A write is a store into memory that both share, so it costs no system call and survives the writer. The host looks at
the page only when the container is dead, by a call: whatever stands there can do it no harm.
"""

from __future__ import annotations

import mmap
import os
import struct

from dataflower.channel import seals

_ENTRY_BYTES = 8
_MOST_THREADS = 512


def _room(threads: int) -> int:
    return _ENTRY_BYTES * min(threads, _MOST_THREADS)


class BegunPage:
    """The host's side. Owns the memory's descriptor, which a container is given a copy of; `close` it."""

    def __init__(self, threads: int) -> None:
        """For a container with so many threads that run tasks. Raises OSError."""
        self._nbytes = _room(threads)
        self.descriptor = seals.make("dataflower-begun", self._nbytes)
        seals.seal(self.descriptor, seals.RESIZE)

    def read(self) -> frozenset[int]:
        """The last task of each thread that has had one. Believe only what else is known of."""
        entries = os.pread(self.descriptor, self._nbytes, 0)
        return frozenset(task for (task,) in struct.iter_unpack("q", entries) if task)

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class BegunMarks:
    """The container's side. Takes over the descriptor."""

    def __init__(self, descriptor: int, threads: int) -> None:
        self._memory = mmap.mmap(descriptor, _room(threads))
        os.close(descriptor)
        self._entries = memoryview(self._memory).cast("q")
        self._places: dict[int, int] = {}

    def note(self, thread: int, task: int) -> None:
        """A thread (by its identifier) begins with a task, from now on until it begins with another."""
        place = self._places.get(thread)
        if place is None:
            place = self._places[thread] = len(self._places) % len(self._entries)
        self._entries[place] = task
