"""Memory that one process writes and others read: the owner's side.

An arena is a growing set of *segments*, each a memfd that is mapped writable here and then sealed, so that nobody
else can write it and nobody at all can resize it. Segments are sparse: what costs is the first touch of a page, so
slots are recycled and never given back before the end. Above its cap an arena goes on in files, if it may: slots and
references are the same, and only readers differ, who get copies of what is on disk.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from dataflower.channel.blocks import PAGE, Blocks, rounded
from dataflower.channel.segment import Segment, Spill
from dataflower.errors import Closed, Code, DataflowerError, ResourceExhausted
from dataflower.wire import TensorRef

SEGMENT_BYTES = 64 << 20
"""Largest step by which an arena grows, unless one slot needs more. Memory is spent on pages written, not on size."""
FIRST_SEGMENT_BYTES = 1 << 20

_SHIFT = 48  # the allocator's address of a slot: segment number << 48 | offset
_MASK = (1 << _SHIFT) - 1


class Slot(msgspec.Struct, frozen=True):
    """A piece of an arena. `slot` is its offset in the arena; `buffer` is writable, of `nbytes` as asked for."""

    arena: int
    slot: int
    nbytes: int
    buffer: memoryview

    def ref(self, dtype: str, shape: Sequence[int], offset: int = 0, nbytes: int | None = None) -> TensorRef:
        """Name `nbytes` (default: the rest of the slot) at `offset` bytes into the slot, for a message."""
        size = self.nbytes - offset if nbytes is None else nbytes
        if offset < 0 or size < 0 or offset + size > self.nbytes:
            raise ValueError(f"{size} bytes at {offset} lie outside a slot of {self.nbytes}")
        return TensorRef(self.arena, self.slot, self.slot + offset, size, dtype, tuple(shape))


class ArenaStatistics(msgspec.Struct, frozen=True):
    """`used_bytes`: in live slots (counted against the cap); `reserved_bytes`: size of the (sparse) segments.

    `spilled_bytes`: in live slots on disk, which count in neither.
    """

    used_bytes: int
    reserved_bytes: int
    slots: int
    segments: int
    spilled_bytes: int = 0


class _Pool:
    """One kind of segments: free blocks, and how much there may be, is, and is in live slots."""

    __slots__ = ("blocks", "cap", "left", "reserved", "used")

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.left = 0
        """Of the cap, to others."""
        self.blocks = Blocks()
        self.used = self.reserved = 0

    def take(self, size: int) -> int | None:
        """Address of a block, or None."""
        if self.used + size > self.cap - self.left:
            return None
        key = self.blocks.take(size)
        if key is not None:
            self.used += size
        return key


class _Live:
    """Who still needs a slot: a receiver (`sent`), a local array (`local`), or both."""

    __slots__ = ("local", "sent", "size")

    def __init__(self, size: int, sent: bool, local: bool) -> None:
        self.size, self.sent, self.local = size, sent, local


class _Watch(weakref.ref):  # type: ignore[type-arg]
    """Weak reference to a local array, that knows its slot."""

    __slots__ = ("key",)
    key: int
    __hash__ = object.__hash__  # arrays have none
    __eq__ = object.__eq__


class Arena:
    """The writer's side. Thread-safe.

    A slot lives until everyone has let go of it: the receivers (`release`), and, for arrays made by `array`, local user
    code (garbage collection). Written once, then sent; whoever writes after sending breaks its readers.
    """

    def __init__(
        self,
        owner: int,
        *,
        cap_bytes: int,
        announce: Callable[[int, int, int], None],
        segment_bytes: int = SEGMENT_BYTES,
        setting: str = "arena_bytes",
        spill: Spill | None = None,
        numbers: range = range(1 << 16),
    ) -> None:
        """`announce(arena, nbytes, fd)` is called once per segment, before any slot of it is handed out.

        The descriptor stays the arena's and open until `close`. `announce` may block; no lock that `release` needs is
        held meanwhile. Nothing is mapped before the first allocation. Arena numbers are `owner << 16 | n`, with n from
        `numbers`.

        `cap_bytes` limits what live slots take. Segments together may be up to twice as large, and more only where
        a slot is larger than each of them. `setting`: its name for the user. `spill`: where to go on above the cap
        (else allocations wait there).
        """
        self._owner = owner
        self._numbers = numbers
        self._first = owner << 16 | numbers.start
        self._memory = _Pool(-(-cap_bytes // PAGE) * PAGE)
        self._spill = spill
        self._disk = _Pool(spill.cap_bytes if spill is not None else 0)
        self._announce = announce
        self._setting = setting
        self._step = min(-(-segment_bytes // PAGE) * PAGE, self._memory.cap)
        # A garbage collection can run `_local_gone` in the middle of any of our own statements: the lock is
        # re-entrant, and `_inside` tells a nested call to leave its work to the interrupted one.
        self._lock = threading.RLock()
        self._inside = False
        self._dead: deque[_Watch] = deque()
        self._growing = threading.Lock()
        self._waiters: deque[threading.Lock] = deque()
        self._live: dict[int, _Live] = {}
        self._watches: set[_Watch] = set()
        self._local: list[int] = []  # slots of the arrays made here, sorted
        self._segments: list[Segment] = []
        self._by_address: list[tuple[int, int]] = []  # (address, number) of segments, sorted
        self._closed = False
        self._released = 0

    def allocate(self, nbytes: int, *, cancelled: Callable[[int], bool] | None = None) -> Slot:
        """A slot that its receiver must `release`. Blocks while the cap is reached.

        `cancelled` is asked before each wait, and again after `interrupt`; it is told how many slots had been released
        when there was no room. Raises ResourceExhausted (bigger than the cap), Closed, DataflowerError with CANCELLED
        when it says so.
        """
        return self._slot(self._wait_for(nbytes, True, cancelled), nbytes)

    def array(
        self, shape: Sequence[int], dtype: Any, *, cancelled: Callable[[int], bool] | None = None
    ) -> np.ndarray[Any, Any]:
        """A writable, uninitialised array in the arena. Waits and raises like `allocate`.

        It is freed when it and all views of it are garbage-collected, and not before the release of those to whom
        `share` gave it.
        """
        kind = np.dtype(dtype)
        key = self._wait_for(math.prod(shape) * kind.itemsize, False, cancelled)
        try:
            made: np.ndarray[Any, Any] = np.ndarray(shape, kind, self._segments[key >> _SHIFT].map, key & _MASK)
            watch = _Watch(made, self._local_gone)
        except BaseException:
            with self._lock:
                self._free(key, self._live[key])
            raise
        watch.key = key
        with self._lock:
            self._inside = True
            try:
                self._watches.add(watch)
                insort(self._local, key)
            finally:
                self._leave()
        return made

    def share(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """Claim local memory (made by `array`) for sending by reference: (arena, slot, offset as in TensorRef).

        From here on the slot also needs one `release`. None if the memory is elsewhere, or is already
        with a receiver (the caller copies then: two claims could not be told apart when they are released).
        """
        with self._lock:
            self._inside = True
            try:
                found = self._find(address, nbytes)
                if found is None:
                    return None
                live = self._live[(found[0] - self._first) << _SHIFT | found[1]]
                if live.sent:
                    return None
                live.sent = True
                return found
            finally:
                self._leave()

    def release(self, slots: Iterable[tuple[int, int]], *, unsent: bool = False) -> None:
        """The receivers are done with these (arena, slot) pairs; `unsent`: they never got them.

        ValueError for one that no receiver has: a bug, or a peer not to be trusted. Those before it are released.
        """
        with self._lock:
            self._inside = True
            try:
                for arena, slot in slots:
                    key = (arena - self._first) << _SHIFT | slot
                    live = self._live.get(key) if arena >> 16 == self._owner and 0 <= slot <= _MASK else None
                    if live is None or not live.sent:
                        raise ValueError(f"slot {slot} of arena {arena} is not with any receiver")
                    live.sent = False
                    self._released += not unsent
                    if not live.local:
                        self._free(key, live)
            finally:
                self._leave()
        self._wake()

    @property
    def used_bytes(self) -> int:
        """In live slots, those on disk left out."""
        return self._memory.used

    def leave(self, nbytes: int) -> None:
        """Leave so much of the cap to others from now on."""
        self._memory.left = nbytes

    def interrupt(self) -> None:
        """Make every waiting `allocate` look at its `cancelled` again."""
        self._wake()

    def find(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """(arena, slot, offset as in TensorRef) of memory inside an array made by `array`, or None."""
        with self._lock:
            self._inside = True
            try:
                return self._find(address, nbytes)
            finally:
                self._leave()

    def statistics(self) -> ArenaStatistics:
        """Sizes and counts now."""
        with self._lock:
            memory = self._memory
            return ArenaStatistics(memory.used, memory.reserved, len(self._live), len(self._segments), self._disk.used)

    def close(self) -> None:
        """Give the memory back as soon as no local view needs it. Idempotent; waiting `allocate`s raise Closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._watches.clear()  # before anything else: a watch that is dropped never calls back
            self._dead.clear()
            for segment in self._segments:
                os.close(segment.fd)
            self._segments.clear()
            self._by_address.clear()
            self._local.clear()
            self._live.clear()
            self._memory, self._disk = _Pool(0), _Pool(0)
        self._wake()

    def _slot(self, key: int, nbytes: int) -> Slot:
        try:
            segment = self._segments[key >> _SHIFT]
        except IndexError:  # another thread closed us since
            raise Closed("the arena is closed") from None
        offset = key & _MASK
        return Slot(segment.arena, offset, nbytes, segment.buffer[offset : offset + nbytes])

    def _wait_for(self, nbytes: int, sent: bool, cancelled: Callable[[int], bool] | None) -> int:
        """Address of a new slot."""
        key, _ = self._obtain(nbytes, sent)
        if key is not None:
            return key
        waiter = threading.Lock()
        waiter.acquire()
        try:
            while True:
                self._waiters.append(waiter)  # before looking again, so that no release in between is missed
                key, released = self._obtain(nbytes, sent)
                if key is not None:
                    return key
                if cancelled is not None and cancelled(released):
                    raise DataflowerError("cancelled while waiting for room in the arena", code=Code.CANCELLED)
                waiter.acquire()
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _obtain(self, nbytes: int, sent: bool) -> tuple[int | None, int]:
        """Address of a new slot, or None if one must be released first; and how many have been released so far."""
        if nbytes < 0:
            raise ValueError(f"{nbytes} bytes")
        size = rounded(nbytes)
        while True:
            with self._lock:
                if self._closed:
                    raise Closed("the arena is closed")
                if nbytes > (cap := max(self._memory.cap, self._disk.cap)):
                    raise ResourceExhausted(
                        f"{nbytes} bytes can never fit into the arena: it is capped at {cap} bytes "
                        f"{'on disk' if cap > self._memory.cap else ''}(setting {self._setting})"
                    )
                self._inside = True
                try:
                    key, growth, spill = self._take(size)
                    if key is not None:
                        self._live[key] = _Live(size, sent, not sent)
                    released, count = self._released, len(self._segments)
                finally:
                    self._leave()
            if not growth:
                return key, released
            with self._growing:
                if len(self._segments) == count:  # else another thread has grown the arena meanwhile
                    self._grow(growth, spill)

    def _take(self, size: int) -> tuple[int | None, int, Spill | None]:
        """Address of a block, memory before disk; if none, bytes to grow by (0: wait for a release), and where."""
        key = self._memory.take(size)
        growth = self._growth(size) if key is None else 0
        if key is not None or growth or self._spill is None:
            return key, growth, None
        disk = self._disk
        key = disk.take(size)
        if key is not None or disk.used + size > disk.cap or len(self._segments) >= len(self._numbers):
            return key, 0, None
        step = max(-(-size // PAGE) * PAGE, min(SEGMENT_BYTES, disk.cap // PAGE * PAGE))
        return None, step if disk.reserved + step <= 2 * disk.cap else 0, self._spill

    def _growth(self, size: int) -> int:
        """Bytes of memory to grow by so that `size` fits; 0: don't."""
        count, pool = len(self._segments), self._memory
        if pool.used + size > pool.cap - pool.left or count >= len(self._numbers):
            return 0
        least = -(-size // PAGE) * PAGE
        early = FIRST_SEGMENT_BYTES << 3 * count  # 1, 8, 64 MiB
        step = early if early < self._step else max(self._step, pool.reserved // 2 // PAGE * PAGE)
        nbytes = max(step, least)
        if pool.reserved + nbytes > 2 * pool.cap:
            nbytes = least
            # Every slot that is released brings the joined-up blocks nearer to a whole segment.
            whole = any(s.nbytes >= size for s in self._segments if not s.on_disk)
            if pool.reserved + nbytes > 2 * pool.cap and whole:
                return 0
        return nbytes

    def _grow(self, nbytes: int, spill: Spill | None) -> None:
        number = len(self._segments)
        arena = self._first + number
        if spill is None:
            segment, pool = Segment.in_memory(arena, nbytes), self._memory
        else:
            try:
                segment, pool = Segment.in_file(arena, nbytes, spill), self._disk
            except OSError as error:
                print(f"dataflower: can't spill to disk, tasks wait for room instead: {error}", file=sys.stderr)
                self._spill, self._disk.cap = None, 0  # what is there stays readable
                return
        try:
            self._announce(segment.arena, nbytes, segment.fd)
            with self._lock:
                if self._closed:
                    raise Closed("the arena is closed")
                self._inside = True
                try:
                    self._segments.append(segment)
                    insort(self._by_address, (segment.address, number))
                    pool.blocks.give(number << _SHIFT, nbytes)
                    pool.reserved += nbytes
                finally:
                    self._leave()
        except BaseException:
            os.close(segment.fd)
            raise

    def _find(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        at = bisect_left(self._by_address, (address + 1, 0)) - 1
        if at < 0:
            return None
        start, number = self._by_address[at]
        segment = self._segments[number]
        offset = address - start
        if offset + nbytes > segment.nbytes:
            return None
        place = number << _SHIFT | offset
        at = bisect_right(self._local, place) - 1
        if at < 0:
            return None
        key = self._local[at]
        if key + self._live[key].size < place + nbytes:
            return None
        return segment.arena, key & _MASK, offset

    def _free(self, key: int, live: _Live) -> None:
        del self._live[key]
        pool = self._disk if self._segments[key >> _SHIFT].on_disk else self._memory
        pool.used -= live.size
        pool.blocks.give(key, live.size)

    def _local_gone(self, watch: _Watch) -> None:
        """The last local view of a slot died. May run inside any other method of this object, in the same thread."""
        self._dead.append(watch)
        with self._lock:
            if not self._inside:
                self._leave()

    def _leave(self) -> None:
        """Leave a critical section: local deaths that came in meanwhile are dealt with here."""
        self._inside = False
        while self._dead:
            self._inside = True
            try:
                while self._dead:
                    watch = self._dead.popleft()
                    self._watches.discard(watch)
                    if self._closed:
                        continue
                    del self._local[bisect_left(self._local, watch.key)]
                    live = self._live[watch.key]
                    live.local = False
                    if not live.sent:
                        self._free(watch.key, live)
            finally:
                self._inside = False
            self._wake()

    def _wake(self) -> None:
        while self._waiters:
            with contextlib.suppress(IndexError, RuntimeError):  # another thread woke it first
                self._waiters.popleft().release()
