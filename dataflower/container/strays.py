"""Processes that user code forks: they may compute, but none of them is the container, whatever its code returns to."""

from __future__ import annotations

import contextlib
import os
import sys

is_stray = False
"""Whether user code has forked this process."""


def watch() -> None:
    """From now on each process that this one forks is a stray."""
    os.register_at_fork(after_in_child=_stray)


def end_if_stray() -> None:
    """Call it where user code comes back, before any lock is taken: a stray ends here.

    It shares the container's sockets, arena and board, so it would report the task a second time and take others.
    """
    if not is_stray:
        return
    with contextlib.suppress(Exception):  # user code may have put anything there
        print(
            f"process {os.getpid()}, forked by the function, came back from it and ends (see os._exit)", file=sys.stderr
        )
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(os.EX_SOFTWARE)


def _stray() -> None:
    global is_stray
    is_stray = True
