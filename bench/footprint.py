"""What a process holds on to, as the kernel counts it: bytes of shared memory, descriptors, processes below it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from bench.processes import descendants

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Footprint:
    """At one moment. `bytes`: pages of all memfds that the process has open."""

    bytes: int
    descriptors: int
    processes: int

    def beyond(self, before: Footprint) -> dict[str, int]:
        """What there is more of than before, by name."""
        more = {
            "bytes": self.bytes - before.bytes,
            "descriptors": self.descriptors - before.descriptors,
            "processes": self.processes - before.processes,
        }
        return {name: count for name, count in more.items() if count > 0}


def footprint(pid: int, without: int = 0) -> Footprint:
    """Of a process of this user that runs. `without`: a process below it, which counts for itself with its own."""
    memory: dict[tuple[int, int], int] = {}
    descriptors = 0
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # the one that lists the folder is closed again
            target = os.readlink(f"{folder}/{name}")
            descriptors += target != f"/proc/{pid}/fd"
            if target.startswith("/memfd:"):
                status = os.stat(f"{folder}/{name}")
                memory[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK
    others = {without, *descendants(without)} if without else set()
    return Footprint(sum(memory.values()), descriptors, len(set(descendants(pid)) - others))
