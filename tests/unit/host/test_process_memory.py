"""What processes weigh: a fork server's memory counts although its children share it."""

from __future__ import annotations

import mmap
import os

from dataflower.host.process_memory import anonymous_bytes, private_bytes

MIB = 1024 * 1024


def test_what_children_share_is_not_private_but_still_the_parents() -> None:
    size = 64 * MIB
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset] = 1
        alone, anonymous = private_bytes(os.getpid()), anonymous_bytes(os.getpid())
        assert alone >= size
        assert anonymous >= size
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(into)
            os.read(out, 1)  # until the parent has looked
            os._exit(0)
        os.close(out)
        assert private_bytes(os.getpid()) < alone - size // 2
        assert anonymous_bytes(os.getpid()) >= size
        os.close(into)
        os.waitpid(child, 0)


def test_process_that_is_gone_weighs_nothing() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert private_bytes(child) == anonymous_bytes(child) == 0
