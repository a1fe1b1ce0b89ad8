"""How fast the disk and the network have been, kept from one run to the next."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from dataflower.checkpoint.estimate import average
from dataflower.checkpoint.manifest import write_atomically

SMALLEST_BYTES = 32 * 1024 * 1024
"""Shorter loads tell more about the beginning than about the bandwidth."""


class Rates:
    """Moving averages by source, bytes a second, in `.rates.json` of the folder of models. For one thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".rates.json"
        self._rates: dict[str, float] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):  # lost or damaged: they are measured anew
            self._rates = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])

    def bandwidth(self, source: str) -> float:
        """Bytes a second; 0 if none was measured."""
        return self._rates.get(source, 0.0)

    def note(self, source: str, nbytes: int, seconds: float) -> None:
        """Take a load into account."""
        if seconds <= 0 or nbytes < SMALLEST_BYTES:
            return
        self._rates[source] = average(self.bandwidth(source), nbytes / seconds)
        with contextlib.suppress(OSError):  # a store that can't be written measures anew each time
            write_atomically(self._path, msgspec.json.encode(self._rates))
