"""What a test must leave behind as it found it: descriptors, child processes, mapped memfds, slots of every host.

`tests/conftest.py` wraps every test in `watch()`, whose cost is one look at /proc before and one after, and has every
host looked at by `watched` when it is closed: what nobody runs any more may hold no slot, here or on another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from dataflower.host.runtime import Runtime

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


def held(host: Runtime) -> dict[str, int]:
    """What a host holds for invocations, by its own books and by those of its memory."""
    statistics = host.statistics()
    return {
        "slots": statistics.core.slots,
        "tasks": statistics.core.tasks + statistics.core.queued + statistics.core.invocations,
        "slots of its own memory": host._engine.arenas.statistics().slots,
        "slots of which other hosts have bytes": statistics.engine.slots_sent,
    }


async def _left(host: Runtime) -> dict[str, int]:
    """What a host holds though nothing runs on it, looked at again for up to `SETTLE_S`."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        left = {name: count for name, count in held(host).items() if count}
        if not left or host.statistics().running or time.monotonic() > deadline:
            return {} if host.statistics().running else left
        gc.collect()  # a caller lets go of its outputs by forgetting them
        await asyncio.sleep(0.005)


def watched(close: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """`Runtime.close` that fails with AssertionError, after closing, if an idle host still held anything."""

    @functools.wraps(close)
    async def closing(host: Runtime, *arguments: float | None) -> None:
        left = await _left(host) if host._started else {}
        await close(host, *arguments)
        if left:
            raise AssertionError(f"an idle host held: {left}")

    return closing
