"""Pieces of which an arena is made: memory that is sealed against resizing, or, above the cap, an unnamed file."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Self

import numpy as np

from dataflower.channel import seals

_SEALS = seals.RESIZE | seals.FUTURE_WRITE
HUGE_BYTES = 2 << 20
_PREFIX = "dataflower-"
LEFT_FREE_BYTES = 1 << 30
"""What spilling leaves free on a disk."""


@dataclass(frozen=True, slots=True)
class Spill:
    """Where an arena goes on when its memory is full: unnamed files in `directory`, up to `cap_bytes` in all.

    `device`: where its readers expect them (`device_of`); a process with mounts of its own may see another one there.
    `read_only`: where the same directory shows in a mount that can't be written through, if there is one. A descriptor
    that was opened there can't be opened anew for writing by those whom it is handed to, whatever /proc they have.
    """

    directory: str
    cap_bytes: int
    device: int
    read_only: str = ""


class Segment:
    """A mapped piece. The mapping lives as long as anything points into it, the descriptor until `close`."""

    __slots__ = ("address", "arena", "buffer", "fd", "map", "nbytes", "on_disk")

    def __init__(self, arena: int, nbytes: int, fd: int, memory: mmap.mmap, on_disk: bool) -> None:
        self.arena, self.nbytes, self.fd, self.map, self.on_disk = arena, nbytes, fd, memory, on_disk
        self.buffer = memoryview(memory)
        self.address = int(np.frombuffer(memory, np.uint8, 1).__array_interface__["data"][0])

    @classmethod
    def in_memory(cls, arena: int, nbytes: int) -> Self:
        """A memfd, mapped writable here and sealed: nobody else can write it, nobody at all can resize it."""
        fd = seals.make(f"dataflower-arena-{arena}", nbytes)
        try:
            memory = mmap.mmap(fd, nbytes)
            advise_huge(memory, nbytes)
            seals.seal(fd, _SEALS)  # after the mapping: a later writable one is what the seal forbids
            return cls(arena, nbytes, fd, memory, False)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def in_file(cls, arena: int, nbytes: int, spill: Spill) -> Self:
        """An unnamed file, all of its room taken now, mapped writable here; `fd` can only read it. Raises OSError."""
        writable, fd = _make_pair(spill, nbytes)
        try:
            return cls(arena, nbytes, fd, mmap.mmap(writable, nbytes), True)
        except BaseException:
            os.close(fd)
            raise
        finally:
            os.close(writable)


def advise_huge(memory: mmap.mmap, nbytes: int) -> None:
    """Ask for huge pages, which the kernel gives to memfds where the administrator lets it (`shmem_enabled`: advise).

    Both sides ask: whoever writes first gets them made, and whoever reads maps 2 MB at a fault.
    """
    if nbytes >= HUGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)


def make_file(directory: str, nbytes: int, device: int | None = None) -> int:
    """An unnamed file of `nbytes` (on `device`), open for reading and writing; gone when nobody has it open any more.

    Its room is taken at once, for a full disk would kill whoever writes through a mapping. Raises OSError.
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        fd, name = tempfile.mkstemp(prefix=_PREFIX, dir=directory)  # a file system without unnamed files
        os.unlink(name)
    return _with_room(fd, directory, nbytes, device)


def _make_pair(spill: Spill, nbytes: int) -> tuple[int, int]:
    """An unnamed file as `make_file` makes it, and a descriptor that can only read it. Raises OSError."""
    if not spill.read_only:
        writable = make_file(spill.directory, nbytes, spill.device)
        try:
            return writable, os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(writable)
            raise
    # Only by a name can a file be opened through another mount: it has one until it is.
    writable, name = tempfile.mkstemp(prefix=_PREFIX, dir=spill.directory)
    try:
        readable = os.open(os.path.join(spill.read_only, os.path.basename(name)), os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(writable)
        raise
    finally:
        os.unlink(name)
    try:
        return _with_room(writable, spill.directory, nbytes, spill.device), readable
    except BaseException:
        os.close(readable)
        raise


def _with_room(fd: int, directory: str, nbytes: int, device: int | None) -> int:
    """The file, all of its room taken; closed if that can't be had. Raises OSError."""
    try:
        if device is not None and os.fstat(fd).st_dev != device:
            raise OSError(errno.EXDEV, "not the file system that the host sees there", directory)
        disk = os.fstatvfs(fd)
        if disk.f_bavail * disk.f_frsize - nbytes < LEFT_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)
        os.posix_fallocate(fd, 0, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def device_of(directory: str) -> int:
    """The device on which files made in `directory` lie (`os.stat_result.st_dev`). Raises OSError if none can be."""
    fd = make_file(directory, mmap.PAGESIZE)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
