"""Processes whose parents have gone and that this process has inherited: found, ended, and collected."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Set

from dataflower.host.processes import children_in_group, kill_process, marked_children, open_process, reap


class Orphans:
    """Adopted processes that are no containers, until each has ended. Its length is how many those are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, marker: str, on_end: Callable[[], None]) -> None:
        """`marker`: what all descendants of the host carry in their environment. `on_end` is called from the loop."""
        self._loop = loop
        self._marker = marker
        self._on_end = on_end
        self._awaited: dict[int, tuple[int, int]] = {}
        """By pid: descriptor, process group to clear or 0."""

    def __len__(self) -> int:
        return len(self._awaited)

    def expect(self, pid: int, group: int = 0) -> bool:
        """Collect a process when it ends, and with it what belongs to `group`; False if it is gone."""
        if pid in self._awaited:  # found among the unknown when another zygote ended
            return True
        pidfd = open_process(pid)
        if pidfd is not None:
            self._awaited[pid] = (pidfd, group)
            self._loop.add_reader(pidfd, self._collect, pid)
        return pidfd is not None

    def end(self, pid: int, group: int = 0) -> None:
        """Kill a process, and `expect` it."""
        if self.expect(pid, group):
            kill_process(self._awaited[pid][0])

    def end_unknown(self, known: Set[int]) -> None:
        """End all marked children that are neither `known` nor expected."""
        for pid in marked_children(self._marker):
            if pid not in known and pid not in self._awaited:
                self.end(pid)

    def clear_group(self, group: int) -> None:
        """End what a container that has ended had forked into its process group."""
        for pid in children_in_group(group):
            if pid not in self._awaited:
                self.end(pid, group)

    def _collect(self, pid: int) -> None:
        pidfd, group = self._awaited.pop(pid)
        self._loop.remove_reader(pidfd)
        reap(pidfd)
        os.close(pidfd)
        if group:  # its own children are this process's now
            self.clear_group(group)
        self._on_end()
