"""Deadlines of tasks that run here for other hosts: kept by this host's clock, however late their owner speaks."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Mapping

from dataflower.clock import SystemClock
from dataflower.host.guest import LATE, Guest
from dataflower.wire import CancelTask, RunTask

_now = SystemClock().monotonic


class GuestDeadlines:
    """Those of the guests of one owner. `guests`: by number, kept by the owner."""

    def __init__(self, loop: asyncio.AbstractEventLoop, guests: Mapping[int, Guest]) -> None:
        self._loop = loop
        self._guests = guests
        self._heap: list[tuple[float, int, int]] = []
        """(deadline, guest, task); some of them are over."""
        self._alarm: asyncio.TimerHandle | None = None

    def note(self, guest: Guest, tasks: tuple[RunTask, ...]) -> None:
        """A guest is given these tasks."""
        for task in tasks:
            if 0 < task.deadline_s < math.inf:
                guest.deadlines[task.task] = task.deadline_s
                heapq.heappush(self._heap, (task.deadline_s, guest.peer.number, task.task))
        self._set_alarm()

    def _set_alarm(self) -> None:
        """For the first deadline: tasks must stop then, however long the owner's word is on its way."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._heap and not self._is_running(*self._heap[0]):
            heapq.heappop(self._heap)
        if self._heap:
            self._alarm = self._loop.call_later(max(0.0, self._heap[0][0] - _now()), self._on_deadline)

    def _is_running(self, deadline: float, number: int, task: int) -> bool:
        guest = self._guests.get(number)
        return guest is not None and guest.deadlines.get(task) == deadline

    def _on_deadline(self) -> None:
        self._alarm = None
        while self._heap and self._heap[0][0] <= _now():
            due = heapq.heappop(self._heap)
            if self._is_running(*due):
                guest, task = self._guests[due[1]], due[2]
                guest.late.add(task)
                guest.peer.tell(CancelTask(task, LATE))
        self._set_alarm()

    def close(self) -> None:
        """Nobody waits for them any more. Idempotent."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
