"""Weights move into huge pages under whoever reads them; where a kernel has none, nothing changes."""

from __future__ import annotations

import mmap
import threading

import numpy as np
import pytest

from dataflower.checkpoint.huge import HugePages
from dataflower.checkpoint.region import HUGE_BYTES, Mapping, Owned, Segment

MIB = 2**20


def test_readers_see_the_same_bytes_before_during_and_after() -> None:
    nbytes = 40 * MIB + 5000  # a whole segment, and a tail that has a huge page but does not end with it
    owned = Owned(nbytes)
    wanted = np.random.default_rng(3).integers(0, 256, nbytes, dtype=np.uint8)
    at = 0
    for view in owned.views(0, nbytes):
        view[:] = wanted[at : at + len(view)].data
        at += len(view)
    mapping = Mapping([segment.fd for segment in owned.segments], nbytes)
    seen = np.frombuffer(mapping.view(), np.uint8)
    stop, differed = threading.Event(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            if not np.array_equal(seen, wanted):
                differed.set()

    reader = threading.Thread(target=read)
    reader.start()
    can = True
    for segment, used in owned.used():
        can = segment.make_huge(used) and can
    stop.set()
    reader.join()
    assert not differed.is_set()
    assert np.array_equal(seen, wanted)
    huge = [segment.huge_bytes for segment in owned.segments]
    assert all(n % HUGE_BYTES == 0 for n in huge)
    assert sum(huge) <= nbytes
    assert can or not any(huge)
    with pytest.raises(PermissionError):  # the seals are as they were
        mmap.mmap(owned.segments[0].fd, MIB)
    owned.close()
    assert np.array_equal(seen, wanted), "what a reader has mapped stays its"


def test_what_no_model_needs_gets_no_memory() -> None:
    segment = Segment()
    segment.make_huge(3 * HUGE_BYTES + 1)
    assert segment.huge_bytes in (0, 3 * HUGE_BYTES)
    segment.close()
    assert segment.make_huge(segment.nbytes), "a closed one needs nothing"


def test_memory_may_go_while_it_waits_for_its_turn() -> None:
    pages = HugePages()
    owned = [Owned(32 * MIB) for _ in range(3)]
    for one in owned:
        pages.improve(one.used())
        one.close()
    last = Segment(HUGE_BYTES)
    done = threading.Event()
    turn = last.make_huge

    class Watched(Segment):
        def make_huge(self, nbytes: int) -> bool:
            done.set()
            return turn(nbytes)

    watched = Watched(HUGE_BYTES)
    pages.improve([(watched, HUGE_BYTES)])
    assert done.wait(30) or not pages.is_possible
    last.close()
    watched.close()
