"""Anonymous memory that can't change under a reader: memfds and their seals."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

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
    present = seals_of(fd)
    if present is None:
        raise ValueError("the descriptor is not a memfd")
    if present & seals != seals:
        raise ValueError(f"the memfd lacks seals: has {present:#x}, needs {seals:#x}")
    if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
        raise ValueError("the memfd is made of huge pages, which may run out under whoever reads it")
    actual = os.fstat(fd).st_size
    if actual != nbytes:
        raise ValueError(f"the memfd has {actual} bytes, announced were {nbytes}")


def seals_of(fd: int) -> int | None:
    """The seals of a memfd; None for whatever else it is."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def check_file(fd: int, nbytes: int | None, device: int | None) -> None:
    """Make sure that a descriptor is a regular file of just this size, open for reading only, on `device`.

    None: of any size, on any device.

    Such a file may still shrink: it must be read by calls, never mapped. Raises ValueError.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("the descriptor is neither a memfd nor a file")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        raise ValueError("the descriptor of a file must not be writable")
    if device is not None and found.st_dev != device:
        raise ValueError("the file is not where memory is spilled to")
    if nbytes is not None and found.st_size != nbytes:
        raise ValueError(f"the file has {found.st_size} bytes, announced were {nbytes}")
