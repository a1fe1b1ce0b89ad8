"""What a test must leave behind as it found it: descriptors, child processes, mapped memfds.

`tests/conftest.py` wraps every test in `watch()`. Its cost is one look at /proc before and one after.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

SETTLE_S = 3.0
"""How long helper threads of libraries may take to close what they use; waited for only when something is left over."""

_OF_THE_PROCESS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/", "/proc/", "anon_inode:inotify")
"""Libraries open such descriptors once per process, at first use."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Of this process, at one moment. `mapped`: how many mappings of dataflower's memfds there are."""

    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]
    mapped: int

    def leaked_since(self, before: Resources) -> tuple[str, ...]:
        """A line for each thing that is here now and was not before."""
        lines = [f"descriptor {fd}: {target}" for fd, target in sorted(self.descriptors - before.descriptors)]
        lines += [f"child process {pid}: {_described(pid)}" for pid in sorted(self.children - before.children)]
        if self.mapped > before.mapped:
            lines.append(f"{self.mapped - before.mapped} mappings of memfds")
        return tuple(lines)


def _described(pid: int) -> str:
    """Its name, state, parent, group and session, and what it was started as."""
    try:
        with open(f"/proc/{pid}/stat") as status, open(f"/proc/{pid}/cmdline") as command:
            return f"{' '.join(status.read().split()[1:6])} {command.read()!r}"
    except OSError as error:
        return str(error)


def snapshot() -> Resources:
    """What this process has open now."""
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the directory is closed again
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith(_OF_THE_PROCESS):
                descriptors.add((int(name), target))
    children: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            children.update(map(int, file.read().split()))
    with open("/proc/self/maps") as file:
        mapped = file.read().count("/memfd:dataflower")
    return Resources(frozenset(descriptors), frozenset(children), mapped)


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Fail with AssertionError if the block leaves anything behind (looked at again for up to `SETTLE_S`)."""
    before = snapshot()
    yield
    if not snapshot().leaked_since(before):
        return
    deadline = time.monotonic() + SETTLE_S
    while True:
        gc.collect()
        leaked = snapshot().leaked_since(before)
        if not leaked:
            return
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n  " + "\n  ".join(leaked))
        time.sleep(0.02)
