"""Memory of others that is made present before it is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dataflower.channel.arena import Arena
from dataflower.channel.segment import Spill, device_of
from dataflower.channel.views import ANY_DEVICE, Views
from dataflower.wire import TensorRef

BYTES = 4 << 20


def present(name: str) -> int:
    """Bytes of mappings with this in their name that are present in this process, where they can only be read."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0]:
            ours = name in line and fields[1].startswith("r-")
        elif ours and fields[0] == "Rss:":
            total += int(fields[1]) * 1024
    return total


def written(arena: Arena) -> TensorRef:
    slot = arena.allocate(BYTES)
    np.frombuffer(slot.buffer, np.uint8)[:BYTES] = 7
    return TensorRef(slot.arena, slot.slot, slot.slot, BYTES, "UINT8", (BYTES,))


def test_what_is_fetched_is_present_and_what_can_not_be_is_let_be() -> None:
    views = Views(keep_descriptors=True)
    arena = Arena(0x77, cap_bytes=64 << 20, announce=lambda number, size, fd: views.attach(number, size, os.dup(fd)))
    try:
        ref = written(arena)
        name = f"dataflower-arena-{ref.arena}"
        assert not present(name)
        views.prefetch(ref)
        assert present(name) >= BYTES
        views.prefetch(TensorRef(ref.arena, 0, 1 << 40, BYTES, "UINT8", (BYTES,)))
        views.prefetch(TensorRef(ref.arena + 1, 0, 0, BYTES, "UINT8", (BYTES,)))
        assert views.statistics().held == 0, "nobody reads it yet"
        assert int(views.array(ref).sum()) == 7 * BYTES
    finally:
        views.close()
        arena.close()


def test_files_are_asked_for(tmp_path: Path) -> None:
    views = Views(keep_descriptors=True, files_on=ANY_DEVICE)
    spill = Spill(str(tmp_path), 64 << 20, device_of(str(tmp_path)))
    arena = Arena(
        0x78, cap_bytes=1 << 16, announce=lambda number, size, fd: views.attach(number, size, os.dup(fd)), spill=spill
    )
    try:
        ref = written(arena)
        views.prefetch(ref)
        assert views.statistics().mapped == 0
        assert int(views.array(ref)[-1]) == 7
    finally:
        views.close()
        arena.close()


@pytest.mark.parametrize("nbytes", [0, 1])
def test_next_to_nothing_can_be_fetched(nbytes: int) -> None:
    views = Views(keep_descriptors=True)
    arena = Arena(0x79, cap_bytes=64 << 20, announce=lambda number, size, fd: views.attach(number, size, os.dup(fd)))
    try:
        ref = written(arena)
        views.prefetch(TensorRef(ref.arena, ref.slot, ref.offset, nbytes, "UINT8", (nbytes,)))
        assert views.statistics().mapped == 1
    finally:
        views.close()
        arena.close()
