"""How soon a thread runs once it is woken: the slice of processor time that it asks Linux for.

A thread that is woken on a core where another one computes waits for that one's slice to end, which the kernel looks at
when its clock ticks: 4 ms on many machines, for a message that took 60 us to make. Whoever asks for shorter slices
than the one that computes gets the core at once (Linux 6.12 and later, the scheduler's PREEMPT_SHORT). That changes
who goes first, not how much anybody gets. Older kernels ignore the wish, and so does this module where it is refused.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct

from dataflower.clock import SystemClock

SHORT_S = 0.0001
"""What the kernel allows at least. For threads that mostly wait, and do little when they are woken."""
PATIENT_AFTER_S = 0.002
"""A task that takes longer, or takes longer between two waits, computes: its thread lets others go first."""

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")
_RESET_ON_FORK = 1
"""Threads and processes that a thread starts ask for nothing of their own accord."""

_monotonic = SystemClock().monotonic


def prompt() -> None:
    """The calling thread runs soon after it was woken, from now on."""
    _set_slice(SHORT_S)


def patient() -> None:
    """The calling thread has the system's usual slices again: prompt ones come before it."""
    _set_slice(0)


def _set_slice(seconds: float) -> None:
    """Zero: the system's choice. Not for threads whose scheduling somebody has chosen already."""
    number = _SCHED_SETATTR.get(platform.machine())
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    if number is None or nice < 0 or policy != os.SCHED_OTHER:
        return
    nanoseconds = round(seconds * 1e9)
    wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, nanoseconds, 0, 0, 0, 0)
    _libc().syscall(ctypes.c_long(number), 0, wanted, 0)  # refused: then things are as they were


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class Pace:
    """The slices of a thread that runs tasks: short while it waits and in short tasks, the usual ones in long tasks."""

    __slots__ = ("_computes", "_is_brief", "_is_prompt", "_woken")

    def __init__(self) -> None:
        """Of the calling thread, which is prompt from now on."""
        self._computes = False
        self._is_prompt = True
        self._is_brief = False
        """Whether it did little between its last two waits within a task."""
        self._woken = 0.0
        """When the last of these ended; 0: in no task, or not yet in this one."""
        prompt()

    def begin(self) -> None:
        """A task begins; it is expected to be like the last one. Called by the thread itself, as all of these."""
        self._woken = 0.0
        if self._computes:
            self.goes_on()

    def waits(self) -> None:
        """The task waits, for an item of a stream or for credit: the thread is to run soon when that is there."""
        if self._woken:
            self._is_brief = _monotonic() - self._woken < PATIENT_AFTER_S
        self._be_prompt()

    def woken(self) -> None:
        """The wait is over. What comes is expected to take as long as it took between the last two waits."""
        self._woken = _monotonic()
        if not self._is_brief:
            self.goes_on()

    def goes_on(self) -> None:
        """The thread's task computes on after it has sent something: whoever is woken by that goes first."""
        if self._is_prompt:
            self._is_prompt = False
            patient()

    def ran(self, seconds: float) -> None:
        """A task took so long, and is over."""
        self._computes = seconds >= PATIENT_AFTER_S
        self._be_prompt()

    def _be_prompt(self) -> None:
        if not self._is_prompt:
            self._is_prompt = True
            prompt()
