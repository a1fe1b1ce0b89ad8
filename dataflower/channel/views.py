"""Memory that one process writes and others read: the readers' side."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from dataflower.channel import seals
from dataflower.channel.populate import populate
from dataflower.channel.segment import advise_huge
from dataflower.errors import DataLost
from dataflower.wire import TensorRef

Slots = tuple[tuple[int, int], ...]
"""(arena, slot) pairs."""

NUMPY_DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("u1"),
}
"""Open Inference Protocol datatype -> how its bytes lie in memory (BF16: its bits)."""

_SEALS = seals.RESIZE | seals.FUTURE_WRITE


ANY_DEVICE = -1
"""No `st_dev` of a file."""


class ViewsStatistics(msgspec.Struct, frozen=True):
    """`mapped`: attached arenas that were read from; `held`: slots with live views."""

    attached: int
    mapped: int
    held: int


class _Attached:
    """Somebody else's segment: mapped when first read, unless it is a file; the mapping lives as long as its views."""

    __slots__ = ("address", "fd", "map", "nbytes", "on_disk", "slots")

    def __init__(self, nbytes: int, fd: int, on_disk: bool) -> None:
        self.nbytes, self.fd, self.on_disk = nbytes, fd, on_disk
        self.map: mmap.mmap | None = None
        self.address = 0
        self.slots: list[int] = []  # of live views, sorted


class _Held:
    """A slot with live views. `end`: how far into the arena they reach at most."""

    __slots__ = ("end", "reported", "views")

    def __init__(self) -> None:
        self.views = 0
        self.end = 0
        self.reported = False


class _Watch(weakref.ref):  # type: ignore[type-arg]
    """Weak reference to the array that all views made from it keep alive; it knows what it was made of."""

    __slots__ = ("ident", "key", "ref", "segment")
    ident: int
    """`id` of the array."""
    key: tuple[int, int]
    ref: TensorRef
    segment: _Attached
    __hash__ = object.__hash__  # arrays have none
    __eq__ = object.__eq__


class Views:
    """Other processes' arenas, read-only. Thread-safe. Arenas are mapped when first read."""

    def __init__(
        self,
        on_unheld: Callable[[Slots], None] | None = None,
        *,
        keep_descriptors: bool = False,
        files_on: int | None = None,
    ) -> None:
        """`on_unheld(slots)` is called when the last view of slots that `held` or `watch` was asked about dies.

        It runs wherever the last reference is dropped, perhaps inside a garbage collection in any thread: it may only
        queue and wake (deque.append, SimpleQueue.put, eventfd), not take locks.
        `keep_descriptors`: keep them for `descriptor` (the host passes them on); otherwise mapping closes them.
        `files_on`: the device on which arenas may be files (ANY_DEVICE: wherever); None: they may not. What is in
        files is read into private memory, since their owner could cut them short: nothing is held then.
        """
        self._on_unheld = on_unheld
        self._keep = keep_descriptors
        self._files_on = files_on
        # As in Arena: a garbage collection may call `_gone` in the middle of any statement below.
        self._lock = threading.RLock()
        self._inside = False
        self._dead: deque[_Watch] = deque()
        self._attached: dict[int, _Attached] = {}
        self._by_address: list[tuple[int, int]] = []  # (address, arena) of what is mapped, sorted
        self._held: dict[tuple[int, int], _Held] = {}
        self._watches: dict[int, _Watch] = {}
        """By `ident`; more than one has the same only while the dead one waits in `_dead`, and then it isn't here."""
        self._arrived = threading.Condition(threading.Lock())

    def attach(self, arena: int, nbytes: int, fd: int) -> None:
        """Take over the descriptor of an arena (closed here also on errors).

        Raises ValueError if the size differs, the seals are missing or the number is taken.
        """
        try:
            on_disk = self._files_on is not None and seals.seals_of(fd) is None
            if on_disk:
                # Where any will do, somebody has checked it who knew the device; it may have been cut since.
                anywhere = self._files_on == ANY_DEVICE
                seals.check_file(fd, None if anywhere else nbytes, None if anywhere else self._files_on)
            else:
                seals.check(fd, nbytes, _SEALS)
            if nbytes <= 0:
                raise ValueError("an empty arena")
            with self._arrived:
                if arena in self._attached:
                    raise ValueError(f"arena {arena} is attached already")
                self._attached[arena] = _Attached(nbytes, fd, on_disk)
                self._arrived.notify_all()
        except BaseException:
            os.close(fd)
            raise

    def detach(self, arena: int) -> None:
        """Forget an arena; unmapped when its last view is gone. ValueError if it isn't attached."""
        with self._lock:
            self._inside = True
            try:
                segment = self._attached.pop(arena, None)
                if segment is None:
                    raise ValueError(f"arena {arena} is not attached")
                if segment.map is not None:
                    self._by_address.remove((segment.address, arena))
                if segment.fd >= 0:
                    os.close(segment.fd)
                    segment.fd = -1
            finally:
                gone = self._leave()
        self._tell(gone)

    def wait_attached(self, arenas: Iterable[int], timeout_s: float | None = None) -> bool:
        """Block until all of these are attached (they may come on another socket than the messages that need them)."""
        wanted = set(arenas)
        if wanted <= self._attached.keys():
            return True
        with self._arrived:
            return self._arrived.wait_for(lambda: wanted <= self._attached.keys(), timeout_s)

    def descriptor(self, arena: int) -> int:
        """Descriptor of an attached arena (with `keep_descriptors`), still owned here. ValueError if there is none."""
        segment = self._attached.get(arena)
        if segment is None or segment.fd < 0:
            raise ValueError(f"no descriptor of arena {arena} is kept")
        return segment.fd

    def is_on_disk(self, arena: int) -> bool:
        """Whether an arena that is attached is a file."""
        segment = self._attached.get(arena)
        return segment is not None and segment.on_disk

    def view(self, ref: TensorRef) -> np.ndarray[Any, Any]:
        """The bytes as a read-only uint8 array. The slot is held while it, or anything made from it, lives.

        Raises ValueError for a reference that lies outside its arena or names one that isn't attached.
        """
        return self._view(ref, NUMPY_DTYPES["UINT8"], (ref.nbytes,))

    def array(self, ref: TensorRef) -> np.ndarray[Any, Any]:
        """Like `view`, with dtype and shape of the reference (BF16 as uint16)."""
        kind = NUMPY_DTYPES.get(ref.dtype)
        if kind is None:
            raise ValueError(f"unknown dtype {ref.dtype!r}")
        if math.prod(ref.shape) * kind.itemsize != ref.nbytes or (ref.shape and min(ref.shape) < 0):
            raise ValueError(f"{ref.dtype}{list(ref.shape)} does not take {ref.nbytes} bytes")
        return self._view(ref, kind, ref.shape)

    def prefetch(self, ref: TensorRef) -> None:
        """Have the bytes at hand: to read them will cost no page faults, nor a wait for the disk if they are in a file.

        Other threads run meanwhile. No-op for what isn't attached, lies outside, or can't be had.
        """
        with self._lock:
            self._inside = True
            try:
                segment = self._attached.get(ref.arena)
                if segment is None or not 0 <= ref.offset <= ref.offset + ref.nbytes <= segment.nbytes:
                    return
                memory = None if segment.on_disk else segment.map or self._map(ref.arena, segment)
                fd = os.dup(segment.fd) if segment.on_disk else -1
            finally:
                gone = self._leave()
        self._tell(gone)
        if memory is not None:
            populate(memory, segment.address, ref.offset, ref.nbytes)
        else:
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, ref.offset, ref.nbytes, os.POSIX_FADV_WILLNEED)
            os.close(fd)

    def given(self, array: np.ndarray[Any, Any]) -> TensorRef | None:
        """The reference from which `array` made this very object, as long as it still has its type and shape."""
        watch = self._watches.get(id(array))
        if watch is None or watch() is not array:
            return None
        ref = watch.ref
        if array.shape != ref.shape or array.dtype is not NUMPY_DTYPES.get(ref.dtype) or not array.flags.c_contiguous:
            return None  # user code can change these in place
        return ref

    def held(self, slots: Iterable[tuple[int, int]], *, watch: bool = True) -> Slots:
        """Which of these slots still have live views; with `watch`, `on_unheld` is told of each when it has none left.

        That may happen before the caller has passed the answer on. Where order matters (TaskDone ahead of Unheld):
        `held(slots, watch=False)`, send, then `watch`.
        """
        found = tuple(slot for slot in dict.fromkeys(slots) if slot in self._held)
        if watch and found:
            self.watch(found)
        return found

    def watch(self, slots: Iterable[tuple[int, int]]) -> None:
        """Have `on_unheld` told of each of these slots, once, when it has no live view (at once if none now)."""
        with self._lock:
            self._inside = True
            try:
                missing = []
                for slot in dict.fromkeys(slots):
                    entry = self._held.get(slot)
                    if entry is None:
                        missing.append(slot)
                    else:
                        entry.reported = True
            finally:
                gone = self._leave()
        self._tell(missing + gone)

    def find(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """(arena, slot, offset as in TensorRef) of memory inside a live view, or None."""
        with self._lock:
            self._inside = True
            try:
                found = self._find(address, nbytes)
            finally:
                gone = self._leave()
        self._tell(gone)
        return found

    def statistics(self) -> ViewsStatistics:
        """Counts now."""
        return ViewsStatistics(len(self._attached), len(self._by_address), len(self._held))

    def close(self) -> None:
        """Detach everything. Views that live stay valid. Idempotent."""
        for arena in list(self._attached):
            self.detach(arena)

    def _view(self, ref: TensorRef, kind: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        start, end = ref.offset, ref.offset + ref.nbytes
        key = (ref.arena, ref.slot)
        with self._lock:
            self._inside = True
            try:
                segment = self._attached.get(ref.arena)
                if segment is None:
                    raise ValueError(f"arena {ref.arena} is not attached")
                if not 0 <= ref.slot <= start <= end <= segment.nbytes:
                    raise ValueError(f"bytes {start} to {end} lie outside slot {ref.slot} or arena {ref.arena}")
                if not segment.on_disk:
                    memory = segment.map or self._map(ref.arena, segment)
                    # Numpy makes this array the base of every view of it and of views of those, so it dies last.
                    root: np.ndarray[Any, Any] = np.ndarray(shape, kind, memory, start)
                    watch = _Watch(root, self._gone)
                    ident = watch.ident = id(root)
                    watch.key, watch.ref, watch.segment = key, ref, segment
                    self._watches[ident] = watch
                    entry = self._held.get(key)
                    if entry is None:
                        entry = self._held[key] = _Held()
                        insort(segment.slots, ref.slot)
                    entry.views += 1
                    entry.end = max(entry.end, end)
            finally:
                gone = self._leave()
        if gone:
            self._tell(gone)
        return _read(segment, ref, kind, shape) if segment.on_disk else root

    def _map(self, arena: int, segment: _Attached) -> mmap.mmap:
        segment.map = mmap.mmap(segment.fd, segment.nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
        advise_huge(segment.map, segment.nbytes)
        segment.address = int(np.frombuffer(segment.map, np.uint8, 1).__array_interface__["data"][0])
        insort(self._by_address, (segment.address, arena))
        if not self._keep:
            os.close(segment.fd)
            segment.fd = -1
        return segment.map

    def _find(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        at = bisect_left(self._by_address, (address + 1, 0)) - 1
        if at < 0:
            return None
        start, arena = self._by_address[at]
        segment = self._attached[arena]
        offset = address - start
        at = bisect_right(segment.slots, offset) - 1
        if offset + nbytes > segment.nbytes or at < 0:
            return None
        slot = segment.slots[at]
        return (arena, slot, offset) if offset + nbytes <= self._held[arena, slot].end else None

    def _gone(self, watch: _Watch) -> None:
        """A root array died. May run inside any other method of this object, in the same thread."""
        self._dead.append(watch)
        with self._lock:
            if self._inside:
                return  # the interrupted call deals with it
            gone = self._leave()
        self._tell(gone)

    def _leave(self) -> list[tuple[int, int]]:
        """Leave a critical section: deaths that came in meanwhile are dealt with. Returns what to tell, unlocked."""
        self._inside = False
        gone: list[tuple[int, int]] = []
        while self._dead:
            self._inside = True
            try:
                while self._dead:
                    watch = self._dead.popleft()
                    if self._watches.get(watch.ident) is watch:
                        del self._watches[watch.ident]
                    entry = self._held[watch.key]
                    entry.views -= 1
                    if not entry.views:
                        del self._held[watch.key]
                        slots = watch.segment.slots
                        del slots[bisect_left(slots, watch.key[1])]
                        if entry.reported:
                            gone.append(watch.key)
            finally:
                self._inside = False
        return gone

    def _tell(self, gone: list[tuple[int, int]]) -> None:
        if gone and self._on_unheld is not None:
            self._on_unheld(tuple(gone))


def _read(segment: _Attached, ref: TensorRef, kind: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """What is in a file, in memory of our own. Raises DataLost if it is not there any more."""
    content: np.ndarray[Any, Any] = np.empty(ref.nbytes, np.uint8)
    rest, offset = content.data, ref.offset
    while rest:
        try:
            count = os.preadv(segment.fd, (rest,), offset)
        except OSError as error:
            raise DataLost(f"the file of arena {ref.arena} can't be read: {error}", (ref.arena, ref.slot)) from error
        if not count:
            raise DataLost(f"the file of arena {ref.arena} has been cut short", (ref.arena, ref.slot))
        rest, offset = rest[count:], offset + count
    content.flags.writeable = False
    return content.view(kind).reshape(shape)
