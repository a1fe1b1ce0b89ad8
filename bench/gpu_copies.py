"""Copies of bench.gpu: a plain page-locked one, and those of the store, by turns."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from dataflower.checkpoint.accelerator import Accelerator, Block
from dataflower.checkpoint.copying import Copier
from dataflower.checkpoint.layout import SEGMENT_BYTES
from dataflower.checkpoint.region import Owned

now = time.perf_counter


@dataclass
class Copies:
    """Seconds of copies of `nbytes`."""

    nbytes: int
    pinned: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    ring: list[float] = field(default_factory=list)

    def figure(self, key: str) -> float:
        plain = statistics.median(self.pinned)
        if key == "pinned_gb_s":
            return self.nbytes / plain / 1e9
        return plain / statistics.median(getattr(self, {"h2d_of_pinned": "ours"}.get(key, key.split("_")[1])))


def measure(device: Accelerator, nbytes: int, rounds: int) -> Copies:
    """By turns; the first turn is not counted."""
    found = Copies(nbytes)
    block, buffer, stream = device.allocate(nbytes), device.buffer(nbytes), device.stream()
    owned = filled(nbytes)
    try:
        copy(device, block, owned, pin=True)  # locks it
        for number in range(rounds):
            begun = now()
            stream.copy(block, 0, buffer.address, nbytes)
            stream.mark()()
            plain = now() - begun
            ours = copy(device, block, owned, pin=True)
            fresh = filled(nbytes)
            first = copy(device, block, fresh, pin=True)
            fresh.close()
            fresh = filled(nbytes)
            ring = copy(device, block, fresh, pin=False)
            fresh.close()
            if number:
                for samples, seconds in zip(
                    (found.pinned, found.ours, found.first, found.ring), (plain, ours, first, ring), strict=True
                ):
                    samples.append(seconds)
    finally:
        stream.close()
        owned.close()
        buffer.close()
        block.close()
    return found


def filled(nbytes: int) -> Owned:
    """Memory as a load leaves it."""
    owned = Owned(nbytes)
    for segment, used in owned.used():
        segment.populate(used)
    for at in range(0, nbytes, SEGMENT_BYTES):
        for view in owned.views(at, min(SEGMENT_BYTES, nbytes - at)):
            view[::4096] = bytes([1]) * len(view[::4096])
    return owned


def copy(device: Accelerator, block: Block, owned: Owned, *, pin: bool) -> float:
    """Seconds, from nothing begun to all of it there; in portions of a chunk, as a load brings them."""
    begun = now()
    copier = Copier(device, block, owned, pin=pin)
    for prefix in range(8 * 2**20, owned.nbytes + 8 * 2**20, 8 * 2**20):
        copier.advance(min(prefix, owned.nbytes))
    copier.finish()
    seconds = now() - begun
    copier.close()
    return seconds
