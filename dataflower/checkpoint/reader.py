"""Files into memory: large aligned pieces, several at a time, past the page cache where the file system lets them.

The destination is the memory that readers will map; nothing is copied on the way. Why past the page cache: a copy less
(ServerlessLLM, OSDI'24, section 4, names it among the steps that make its loader fast), and hot weights live in
the store's memory anyway.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dataflower.checkpoint.layout import PAGE_BYTES

T = TypeVar("T")


class File:
    """A file open for reading by any number of threads. Owns its descriptors until `close`."""

    __slots__ = ("_buffered", "_direct", "path")

    def __init__(self, path: Path, direct: bool = True) -> None:
        """Raises OSError if the file can't be opened."""
        self.path = path
        self._buffered = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._direct = -1
        if direct:
            try:
                self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError as error:  # tmpfs of old kernels, some network file systems
                if error.errno != errno.EINVAL:
                    os.close(self._buffered)
                    raise

    def read_into(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill the views from `offset` on; gives the number of bytes read, which is less only at the end of the file.

        Offset and views must be whole pages for direct I/O; otherwise, and when the file system refuses, the
        page cache serves.
        """
        fd = self._direct
        if offset % PAGE_BYTES or any(len(view) % PAGE_BYTES for view in views):
            fd = -1
        total = sum(len(view) for view in views)
        done = 0
        while done < total:
            rest = _after(views, done)
            try:
                count = os.preadv(self._buffered if fd < 0 else fd, rest, offset + done)
            except OSError as error:
                if fd < 0 or error.errno != errno.EINVAL:
                    raise
                fd = -1  # the file system changed its mind: ask the page cache
                continue
            if not count:
                break
            done += count
            if done % PAGE_BYTES:
                fd = -1  # within a page: the end of the file, or a file system that reads as it likes
        return done

    def forget(self) -> None:
        """Drop the file from the page cache, so that the next read comes from the disk. (What is dirty stays.)"""
        os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Idempotent."""
        for fd in (self._buffered, self._direct):
            if fd >= 0:
                os.close(fd)
        self._buffered = self._direct = -1


def _after(views: Sequence[memoryview], skip: int) -> list[memoryview]:
    """The views without their first `skip` bytes."""
    rest = []
    for view in views:
        if skip < len(view):
            rest.append(view[skip:])
        skip = max(0, skip - len(view))
    return rest


@dataclass(slots=True)
class Crew(Generic[T]):
    """Threads that work off a list of jobs. The first error stops all of them and comes out of `run`."""

    work: Callable[[T], object]
    threads: int = 4
    stop: Callable[[], bool] = lambda: False
    """Asked before each job; True ends the run early, without an error."""

    def run(self, jobs: Iterable[T]) -> None:
        """Do all jobs, begun in their order; blocks until the last is done."""
        waiting: Iterator[T] = iter(jobs)
        lock = threading.Lock()
        errors: list[BaseException] = []

        def labour() -> None:
            while not errors and not self.stop():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    return
                try:
                    self.work(job)
                except BaseException as error:
                    errors.append(error)

        others = [threading.Thread(target=labour, daemon=True, name="weights") for _ in range(self.threads - 1)]
        for thread in others:
            thread.start()
        labour()
        for thread in others:
            thread.join()
        if errors:
            raise errors[0]
