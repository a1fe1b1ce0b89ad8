"""Memory for weights: pieces that the owner writes, joined into one read-only stretch by each reader.

Each piece is a memfd, sealed against resizing and, once the owner has mapped it, against every further writable
mapping: whoever gets a descriptor can neither write nor make its pages vanish, and neither `mmap` nor `mprotect`
gives it the right. The owner recycles pieces, since what costs is the first touch of a page, and has them put into
huge pages when it has the time: a disk fills those faster past the page cache, and readers miss fewer addresses.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence

from dataflower.channel import seals
from dataflower.checkpoint.layout import PAGE_BYTES, SEGMENT_BYTES, pieces

SEALS = seals.RESIZE | seals.FUTURE_WRITE
MEMFD_NAME = "dataflower-weights"

HUGE_BYTES = 2 * 1024 * 1024

_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_PROT_NONE = 0


class _Stretch:
    """Addresses that begin at a huge page; unmapped when nothing refers to them any more."""

    __slots__ = ("__weakref__", "_finalizer", "address")

    def __init__(
        self, pieces: Sequence[tuple[int, int]], protection: int, on_unmapped: Callable[[], object] | None = None
    ) -> None:
        """Map (descriptor, bytes) one behind the other. Raises OSError."""
        libc = _libc()
        total = max(sum(nbytes for _, nbytes in pieces), PAGE_BYTES)
        room = total + HUGE_BYTES
        begin = _check(libc.mmap(None, room, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        self.address = at = -(-begin // HUGE_BYTES) * HUGE_BYTES
        try:
            for fd, nbytes in pieces:
                _check(libc.mmap(at, nbytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, 0))
                at += nbytes
        except BaseException:
            libc.munmap(begin, room)
            raise
        self._finalizer = weakref.finalize(self, _unmap, begin, room, on_unmapped)
        self._finalizer.atexit = False  # at exit the kernel does it, and arrays may still be looked at

    def array(self, offset: int, nbytes: int) -> memoryview:
        """Bytes as a buffer, which keeps all of it mapped."""
        array = (ctypes.c_char * nbytes).from_address(self.address + offset)
        array._stretch = self  # type: ignore[attr-defined]  # a buffer keeps the array, the array keeps the addresses
        return memoryview(array).cast("B")


class Segment:
    """A piece, the owner's side. Owns its descriptor and a writable mapping until `close`."""

    __slots__ = ("_lock", "_stretch", "_unpin", "address", "fd", "huge_bytes", "nbytes", "view")

    def __init__(self, nbytes: int = SEGMENT_BYTES) -> None:
        """`nbytes` zeros; no page is touched. Raises OSError if there are no descriptors left."""
        self.nbytes = nbytes
        self.huge_bytes = 0
        """So many of its first bytes were put into huge pages."""
        self._lock = threading.Lock()
        self._unpin: Callable[[], object] | None = None
        self.fd = seals.make(MEMFD_NAME, nbytes)
        try:
            self._stretch: _Stretch | None = _Stretch([(self.fd, nbytes)], mmap.PROT_READ | mmap.PROT_WRITE)
            seals.seal(self.fd, SEALS)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = self._stretch.array(0, nbytes)
        self.address = self._stretch.address
        """Where it is mapped, until `close` and for as long as somebody holds it."""

    def hold(self) -> object:
        """What keeps it mapped, also after `close`, as long as it is referred to."""
        return self._stretch

    @property
    def pinned(self) -> bool:
        """Whether it is page-locked, for devices to read."""
        return self._unpin is not None

    def keep_pinned(self, undo: Callable[[], object]) -> None:
        """It was page-locked; `undo` is called at `close`."""
        self._unpin = undo

    def populate(self, nbytes: int) -> None:
        """Have the kernel back the pages of the first `nbytes` now, rather than one by one when it is written.

        Blocks without the interpreter's lock, and may go on while others write it, or close it. Raises OSError.
        """
        for at in range(0, nbytes, HUGE_BYTES):
            with self._lock:  # `close` waits for this much
                if self._stretch is None:
                    return
                _check(_advise(self._stretch.address + at, min(HUGE_BYTES, nbytes - at), _MADV_POPULATE_WRITE))

    def make_huge(self, nbytes: int) -> bool:
        """Have the kernel move the first `nbytes` into huge pages; takes milliseconds for each, and who reads goes on.

        What has no page yet gets one. For one thread at a time, beside all others. False: it can't (Linux before 6.1,
        or forbidden). A huge page that is not to be had just now ends it as well, and the next call goes on from there.
        """
        while self.huge_bytes + HUGE_BYTES <= min(nbytes, self.nbytes):
            with self._lock:  # `close` waits for this one page
                if self._stretch is None:
                    return True
                address = self._stretch.address + self.huge_bytes
                ctypes.c_char.from_address(address).value  # noqa: B018  (it has to have a page for the rest to follow)
                if _advise(address, HUGE_BYTES, _MADV_COLLAPSE) < 0:
                    return ctypes.get_errno() in (errno.EAGAIN, errno.ENOMEM, errno.EBUSY)
                self.huge_bytes += HUGE_BYTES
        return True

    def close(self) -> None:
        """Give the memory back; readers keep it as long as they have it mapped."""
        undo, self._unpin = self._unpin, None
        if undo is not None:
            undo()
        self.view.release()
        with self._lock:
            self._stretch = None  # an error on its way may hold views of it: the addresses go with them
        os.close(self.fd)


class Owned:
    """Memory for one model, the owner's side: whole segments, then perhaps a shorter one. Owns them until `release`."""

    __slots__ = ("nbytes", "segments")

    def __init__(self, nbytes: int, recycled: Sequence[Segment] = ()) -> None:
        """`recycled`: whole segments to use first, at most as many as are needed. They are taken over, also on error.

        Raises:
            OSError: no memory or no descriptors left.
        """
        whole, tail = pieces(nbytes)
        self.nbytes = nbytes
        self.segments = list(recycled)
        try:
            self.segments += [Segment() for _ in range(whole - len(recycled))]
            if tail:
                self.segments.append(Segment(tail))
        except BaseException:
            self.close()
            raise

    def views(self, offset: int, nbytes: int) -> list[memoryview]:
        """The bytes from `offset` on, writable, cut where one piece ends and the next begins."""
        found = []
        while nbytes > 0:
            number, start = divmod(offset, SEGMENT_BYTES)
            view = self.segments[number].view[start : start + nbytes]
            found.append(view)
            offset += len(view)
            nbytes -= len(view)
        return found

    def used(self) -> list[tuple[Segment, int]]:
        """Its pieces, and how many bytes of each the model needs."""
        return [(piece, min(piece.nbytes, self.nbytes - i * SEGMENT_BYTES)) for i, piece in enumerate(self.segments)]

    def release(self) -> list[Segment]:
        """Give the memory up; the caller gets the whole segments for re-use, a shorter one is closed."""
        whole = [segment for segment in self.segments if segment.nbytes == SEGMENT_BYTES]
        for segment in self.segments:
            if segment.nbytes != SEGMENT_BYTES:
                segment.close()
        self.segments = []
        return whole

    def close(self) -> None:
        """Give all the memory back."""
        for segment in self.release():
            segment.close()


class Mapping:
    """Memory for one model as a reader sees it: contiguous, read-only, unmapped when nothing refers to it any more."""

    __slots__ = ("__weakref__", "_stretch", "address", "nbytes")

    def __init__(
        self, descriptors: Sequence[int], nbytes: int, on_unmapped: Callable[[], object] | None = None
    ) -> None:
        """Map the pieces one behind the other. The descriptors are not needed afterwards; the caller closes them.

        `on_unmapped` is called once the memory can't be read any more, in whatever thread.

        Raises:
            ValueError: the descriptors are not sealed as promised, or are too small: nothing is mapped.
            OSError: the kernel refused.
        """
        whole, tail = pieces(nbytes)
        sizes = [SEGMENT_BYTES] * whole + ([tail] if tail else [])
        if len(sizes) != len(descriptors):
            raise ValueError(f"{nbytes} bytes of weights came in {len(descriptors)} pieces, expected {len(sizes)}")
        for fd, size in zip(descriptors, sizes, strict=True):
            seals.check(fd, size, SEALS)
        self._stretch = _Stretch(list(zip(descriptors, sizes, strict=True)), mmap.PROT_READ, on_unmapped)
        self.address, self.nbytes = self._stretch.address, nbytes

    def view(self, offset: int = 0, nbytes: int | None = None) -> memoryview:
        """Bytes as a read-only buffer, which keeps the mapping."""
        return self.array(offset, nbytes).toreadonly()

    def array(self, offset: int = 0, nbytes: int | None = None) -> memoryview:
        """Bytes as a buffer that calls itself writable, as torch wants its memory; a write is a segmentation fault."""
        length = self.nbytes - offset if nbytes is None else nbytes
        if offset < 0 or length < 0 or offset + length > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + length} are outside of {self.nbytes}")
        array = (ctypes.c_char * length).from_address(self.address + offset)
        array._mapping = self  # type: ignore[attr-defined]  # a buffer keeps the array, the array keeps the mapping
        return memoryview(array).cast("B")


def _unmap(address: int, nbytes: int, then: Callable[[], object] | None) -> None:
    _libc().munmap(address, nbytes)
    if then is not None:
        then()


def _advise(address: int, nbytes: int, advice: int) -> int:
    """`madvise`: 0, or -1 with its errno in `ctypes.get_errno()`. Blocks without the interpreter's lock."""
    return int(_libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), advice))


def _check(result: int | None) -> int:
    """Raises OSError for the -1 of a system call."""
    if result is None or result in (-1, ctypes.c_size_t(-1).value):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
