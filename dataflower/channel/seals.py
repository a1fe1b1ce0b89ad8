"""Anonymous memory that can't change under a reader: memfds and their seals."""

from __future__ import annotations

import fcntl
import os

RESIZE = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE: mappings made so far stay writable, no new one can be (Python has no name for it yet)."""


def make(name: str, nbytes: int = 0) -> int:
    """An unsealed memfd of `nbytes` zeros, close-on-exec; the caller owns it. No page is touched."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if nbytes:
            os.ftruncate(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int, seals: int) -> None:
    """Add seals; they can't be taken off."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def check(fd: int, nbytes: int, seals: int) -> None:
    """Make sure that a descriptor from elsewhere is a memfd of just this size with at least these seals.

    After this, mapping and reading it can neither fault nor block. Raises ValueError.
    """
    try:
        present = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise ValueError("the descriptor is not a memfd") from error
    if present & seals != seals:
        raise ValueError(f"the memfd lacks seals: has {present:#x}, needs {seals:#x}")
    actual = os.fstat(fd).st_size
    if actual != nbytes:
        raise ValueError(f"the memfd has {actual} bytes, announced were {nbytes}")
