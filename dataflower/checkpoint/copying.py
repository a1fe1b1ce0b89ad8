"""From host memory onto a device, while the host memory is still being filled.

Host memory is page-locked piece by piece just ahead of its copy, once: pieces are recycled, and stay locked. A device
copies such memory by itself, so the processor locks the next piece meanwhile. Where memory can't be locked, threads
bring it into a ring of buffers that are, and the device copies from there.
"""

from __future__ import annotations

import ctypes
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dataflower.checkpoint.accelerator import Accelerator, Block, Buffer
from dataflower.checkpoint.layout import SEGMENT_BYTES, place
from dataflower.checkpoint.loader import Arrival
from dataflower.checkpoint.plan import Plan
from dataflower.checkpoint.region import Owned, Segment

BUFFER_BYTES = 4 * 1024 * 1024
BUFFERS = 12
THREADS = 8
"""Of the ring, at most: one thread's copies are slower than a device's by half an order of magnitude."""


class Copier:
    """Copies memory of this process's own to a block of the same size. For one thread. Call `close`."""

    def __init__(
        self,
        device: Accelerator,
        block: Block,
        owned: Owned,
        *,
        pin: bool = True,
        tell: Callable[[int], object] = lambda _: None,
    ) -> None:
        """`pin`: False has it use the ring. `tell`: told `copied` whenever that grows."""
        self._tell = tell
        self._device, self._block, self._owned, self._pin = device, block, owned, pin
        self._stream = device.stream()
        self._ring: Ring | None = None
        self._kept = [segment.hold() for segment in owned.segments]
        """It stays mapped while it is read, whatever becomes of the load."""
        self.copied = 0
        """So many bytes from the beginning were asked for."""

    def follow(self, arrivals: Callable[[], Arrival], total: int) -> bool:
        """Copy what arrives until `total` bytes from the beginning are on the device. False: no more came.

        `arrivals` gives the load's arrival, another one once it begins again: then so does this.
        """
        while True:
            arrival = arrivals()
            prefix = self.copied = 0
            while prefix < total and (there := arrival.wait(prefix)) > prefix:
                self.advance(there)
                prefix = there
            self.finish()
            if prefix >= total:
                return True
            if arrivals() is arrival:
                return False

    def advance(self, prefix: int) -> None:
        """The first `prefix` bytes are there; copy those that were not there before."""
        while self.copied < prefix:
            number, start = divmod(self.copied, SEGMENT_BYTES)
            segment = self._owned.segments[number]
            nbytes = min(prefix - self.copied, segment.nbytes - start)
            if self._pin and self._lock(segment):
                self._stream.copy(self._block, self.copied, segment.address + start, nbytes)
            else:
                if self._ring is None:
                    self._ring = Ring(self._device)
                self._ring.copy(self._block, self.copied, segment.address + start, nbytes)
            self.copied += nbytes
            self._tell(self.copied)

    def finish(self) -> None:
        """Wait until all that was asked for is on the device. Raises Unavailable if the device failed."""
        if self._ring is not None:
            self._ring.finish()
        self._stream.mark()()

    def close(self) -> None:
        """Wait, and let go of everything but the block. Idempotent."""
        if self._ring is not None:
            self._ring.close()
        self._stream.close()
        self._kept = []

    def _lock(self, segment: Segment) -> bool:
        if not segment.pinned:
            undo = self._device.pin(segment.address, segment.nbytes)
            if undo is None:
                self._pin = False
            else:
                segment.keep_pinned(undo)
        return self._pin


def copy(
    device: Accelerator, block: Block, plan: Plan, owned: Owned, tell: Callable[[int], object] = lambda _: None
) -> bool:
    """Copy a model to a device while it is being loaded; blocks. False: the load ended before all was there.

    `tell`: told how many bytes from the beginning have gone there; from the start again if the load begins again.
    """
    copier = Copier(device, block, owned, tell=tell)
    try:
        total = max((p.offset + p.nbytes for p in place(plan.sizes) if p.nbytes), default=0)
        return copier.follow(lambda: plan.arrival, total)
    finally:
        copier.close()


class Ring:
    """Page-locked buffers that threads fill and the device empties. For one thread. Call `close`."""

    def __init__(self, device: Accelerator, buffers: int = BUFFERS, nbytes: int = BUFFER_BYTES) -> None:
        """`nbytes`: of each buffer. Raises ResourceExhausted if they can't be had."""
        self._nbytes = nbytes
        self._buffers: list[Buffer] = []
        self._free: queue.SimpleQueue[tuple[Buffer, Callable[[], None]]] = queue.SimpleQueue()
        self._stream = device.stream()
        self._crew = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "device-copy")
        self._asked: list[Future[None]] = []
        try:
            for _ in range(buffers):
                buffer = device.buffer(nbytes)
                self._buffers.append(buffer)
                self._free.put((buffer, _nothing))
        except BaseException:
            self.close()
            raise

    def copy(self, block: Block, offset: int, address: int, nbytes: int) -> None:
        """Begin to copy; the memory must stay until `finish`."""
        for at in range(0, nbytes, self._nbytes):
            part = min(self._nbytes, nbytes - at)
            self._asked.append(self._crew.submit(self._one, block, offset + at, address + at, part))

    def _one(self, block: Block, offset: int, address: int, nbytes: int) -> None:
        buffer, wait = self._free.get()
        try:
            before, wait = wait, _nothing
            before()  # until what was in it is on the device
            ctypes.memmove(buffer.address, address, nbytes)
            self._stream.copy(block, offset, buffer.address, nbytes)
            wait = self._stream.mark()
        finally:
            self._free.put((buffer, wait))

    def finish(self) -> None:
        """Wait for all copies. Raises what one of them raised."""
        asked, self._asked = self._asked, []
        _all(asked)
        self._stream.mark()()

    def close(self) -> None:
        """Wait for all copies, whatever became of them, and give the buffers back. Idempotent."""
        self._crew.shutdown()
        while self._buffers:
            buffer, wait = self._free.get()
            self._buffers.remove(buffer)
            wait()
            buffer.close()
        self._stream.close()


def _nothing() -> None:
    """Nothing to wait for."""


def _all(asked: Sequence[Future[None]]) -> None:
    for one in asked:
        one.result()
