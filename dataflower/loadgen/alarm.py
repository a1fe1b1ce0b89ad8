"""Waking up at a moment: a timerfd, because the timers of event loops count whole milliseconds.

A millisecond is more than a quick invocation takes, and it would be counted as its latency.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from types import TracebackType

from dataflower.clock import Clock

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Wakes one task of the running loop at a time; its owner closes it (or uses it as `with`)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._rung = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._ring)

    async def wait_until(self, time: float) -> None:
        """Until CLOCK_MONOTONIC shows `time` (seconds); at once if it is past."""
        if time <= self._clock.monotonic():
            return
        self._rung.clear()
        seconds = int(time)
        value = _Timespec(seconds, int((time - seconds) * 1e9))
        setting = _Setting(_Timespec(0, 0), value)
        if self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(setting), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._rung.wait()

    def _ring(self) -> None:
        os.read(self._descriptor, 8)
        self._rung.set()

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Alarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
