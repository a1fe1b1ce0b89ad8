"""Both sides of an arena ask the kernel for huge pages, where a segment is large enough for one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dataflower.channel.segment import HUGE_BYTES, Segment
from dataflower.channel.views import Views
from dataflower.wire import TensorRef


def flags(address: int) -> list[str]:
    """Of the mapping that starts at an address (proc(5), VmFlags)."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            found = int(words[0].partition("-")[0], 16) == address
        elif found and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError("no such mapping")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
@pytest.mark.parametrize(("nbytes", "asked"), [(HUGE_BYTES, True), (HUGE_BYTES // 2, False)])
def test_writer_and_reader_ask(nbytes: int, asked: bool) -> None:
    segment = Segment.in_memory(7 << 16, nbytes)
    views = Views()
    try:
        assert ("hg" in flags(segment.address)) is asked
        views.attach(segment.arena, nbytes, os.dup(segment.fd))
        array = views.view(TensorRef(segment.arena, 0, 0, 8, "UINT8", (8,)))
        assert ("hg" in flags(int(np.asarray(array).__array_interface__["data"][0]))) is asked
    finally:
        views.close()
        os.close(segment.fd)
