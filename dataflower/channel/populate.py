"""Pages of a mapping made present before they are looked at: one system call instead of a fault for every few pages."""

from __future__ import annotations

import ctypes
import functools
import mmap

_POPULATE_READ = 22
"""`MADV_POPULATE_READ`, since Linux 5.14."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def populate(memory: mmap.mmap, address: int, offset: int, nbytes: int) -> bool:
    """Make a part of a mapping present for reading; False if the kernel doesn't do that.

    `address`: where the mapping begins. Other Python threads run meanwhile, which `mmap.madvise` doesn't let them.
    """
    first = offset - offset % mmap.PAGESIZE
    length = min(len(memory), offset + nbytes) - first
    if length <= 0:
        return True
    return not _libc().madvise(ctypes.c_void_p(address + first), ctypes.c_size_t(length), _POPULATE_READ)
