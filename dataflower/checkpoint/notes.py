"""What a store would have again if it died: names of the models that it keeps in memory because they are pinned.

They stand in memory (a memfd) that the host hands to each store in turn, so they outlive a store, and no host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec


class Notes:
    """Over a descriptor, which stays its owner's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._written = self.read()

    def read(self) -> tuple[str, ...]:
        """The names; none where nothing was written, or where a store died while it wrote."""
        line, _, _ = os.pread(self._fd, os.fstat(self._fd).st_size, 0).partition(b"\n")
        try:
            return msgspec.json.decode(line, type=tuple[str, ...])
        except msgspec.DecodeError:
            return ()

    def write(self, names: Iterable[str]) -> None:
        """From now on these."""
        wanted = tuple(sorted(names))
        if wanted != self._written:
            line = msgspec.json.encode(wanted) + b"\n"
            os.pwrite(self._fd, line, 0)
            os.ftruncate(self._fd, len(line))
            self._written = wanted
