"""What a container prints: into its stage's log file, line by line."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from typing import Any

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class LogFile(io.FileIO):
    """Drops what the disk has no room for, and says how much that was: no task fails for what it has to say."""

    dropped_bytes = 0

    def write(self, data: Any) -> int:
        """Write, or drop; gives how many bytes are dealt with."""
        try:
            if self.dropped_bytes:
                super().write(f"({self.dropped_bytes} bytes are missing here: the disk was full)\n".encode())
                self.dropped_bytes = 0
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            nbytes = memoryview(data).nbytes
            self.dropped_bytes += nbytes
            return nbytes


def open_log(descriptor: int) -> None:
    """Make the log file stdout and stderr, and /dev/null stdin. Takes over the descriptor."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, wanted in ((null, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, wanted)
    os.close(null)
    if descriptor > 2:
        os.close(descriptor)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = line_writer(1)
    sys.stderr = line_writer(2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(invocation)s %(stage)s: %(message)s"))
    logger = logging.getLogger("dataflower.task")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def line_writer(descriptor: int) -> io.TextIOWrapper:
    """Text whose lines are written as they end. The descriptor stays the caller's."""
    raw = LogFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
