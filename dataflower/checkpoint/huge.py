"""Gets the store's memory ready: its first touch beside a load, and huge pages after it.

Pages of 4 KiB cost twice: a disk past the page cache has each of them looked up and described to it, and readers miss
their addresses' translations. MADV_COLLAPSE (Linux 6.1) needs no setting of the administrator's for that, unlike huge
pages from the start. It takes a few milliseconds of a processor for each, so it is done once a load is over, in a
thread of its own and with what the processors have left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterable

from dataflower.checkpoint.region import Segment

_NICE = 19


def populate(fresh: Iterable[tuple[Segment, int]]) -> None:
    """In a thread: so many bytes of each, ahead of those who read files into it, whom its first touch would hold up."""
    with contextlib.suppress(OSError):  # there is none: they will say so
        for segment, nbytes in fresh:
            segment.populate(nbytes)


class HugePages:
    """One thread, started with the first work. It ends with the process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Segment, int]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.is_possible = True
        """Whether this kernel has not refused yet."""

    def improve(self, segments: Iterable[tuple[Segment, int]]) -> None:
        """Have so many bytes of each moved when there is time. They may be closed, written and read meanwhile."""
        if not self.is_possible:
            return
        for one in segments:
            self._queue.put(one)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="huge pages")
            self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while self.is_possible:
            segment, nbytes = self._queue.get()
            self.is_possible = segment.make_huge(nbytes)
