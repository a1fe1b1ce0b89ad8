"""What a container's allocator does with memory that user code has let go of."""

from __future__ import annotations

import os

from dataflower.container.kernel import libc

KEPT_BYTES = 256 << 20
"""Freed memory that stays with the process for its next task."""
LARGE_BYTES = 32 << 20
"""Only larger blocks go back to the kernel one by one, which is the most that glibc allows."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Give back less: a function that needs the same memory for each task would have the kernel clear it each time.

    (That made up 40 % of a batch of a small detector.) Nothing is done where the C library is not glibc, or where
    the user has said something about it in the environment.
    """
    named = any(name == "GLIBC_TUNABLES" or (name.startswith("MALLOC_") and name[-1] == "_") for name in os.environ)
    mallopt = getattr(libc(), "mallopt", None)
    if mallopt is not None and not named:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back_freed_memory() -> None:
    """Give back what lies free now: files that were parsed, and tables that were built, leave holes for good.

    For once, after a start: what a task frees is kept (see above), what was needed only to get ready never comes back.
    """
    trim = getattr(libc(), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
