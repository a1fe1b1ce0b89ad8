"""A task that runs: its cancellation, credit and streams. Shared by the thread that runs it and the data unit's."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import Any

from dataflower.channel.pace import Pace
from dataflower.container import nudge, strays
from dataflower.container.failure import Cancelled
from dataflower.container.stream import StreamReader
from dataflower.wire import RunTask

_interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
_interrupt.argtypes = (ctypes.c_ulong, ctypes.py_object)
_NOTHING = ctypes.py_object()
"""NULL: takes back an exception that was not delivered yet."""


class RunningTask:
    """One firing.

    While the thread is in user code it can be interrupted at any Python instruction, and in system calls (`nudge`); in
    our own code it can't be, so no slot or lock is ever lost to an interruption, and none is left over for the next
    task. At most one per task.
    """

    __slots__ = (
        "async_task",
        "changed",
        "emitted_bytes",
        "emitted_items",
        "ended",
        "fetched",
        "first_output",
        "granted_bytes",
        "granted_items",
        "interrupted",
        "interruptible",
        "is_copied",
        "lock",
        "number",
        "pace",
        "reason",
        "received",
        "run",
        "sizes",
        "slots",
        "started",
        "streams",
        "thread",
        "wakers",
    )

    def __init__(self, run: RunTask, received: float) -> None:
        self.run = run
        self.number = run.task
        self.thread = threading.get_ident()
        self.lock = threading.Lock()
        self.changed: threading.Condition | None = None
        """On `lock`; made by the first that waits (making one takes longer than all else here)."""
        self.wakers: list[Callable[[], None]] = []
        """Called under the lock at each change, for coroutines that wait; they must not block."""
        self.reason: str | None = None
        self.interruptible = False
        self.interrupted = False
        self.async_task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self.granted_items = run.credit_items
        self.granted_bytes = run.credit_bytes
        self.emitted_items = 0
        self.emitted_bytes = 0
        self.streams: dict[str, StreamReader] = {}
        self.slots: list[tuple[int, int]] = []
        """Slots of the inputs that are not streams."""
        self.sizes: dict[str, int] = {}
        """Named tensor sizes bound so far."""
        self.pace: Pace | None = None
        """Of the thread that runs it."""
        self.received = received
        self.fetched = self.started = self.first_output = 0.0
        self.ended = 0.0
        """When its function was over, if that is long ago by the time its outputs leave."""
        self.is_copied = False
        """Whether its newest item is being copied beside it, and leaves after that."""

    # --- by the thread that runs the task

    def enter_user(self) -> None:
        """From here on the thread may be interrupted. Raises Cancelled."""
        with self.lock:
            if self.reason is not None:
                raise Cancelled(self.reason)
            self.interruptible = True

    def leave_user(self) -> None:
        """From here on it may not. Raises Cancelled; call it in a `finally` round user code."""
        if strays.is_stray:
            strays.end_if_stray()
        with self.lock:
            self.interruptible = False
        if self.reason is not None:
            if self.interrupted:  # perhaps not delivered yet: never let it reach the next task
                _interrupt(self.thread, _NOTHING)
            raise Cancelled(self.reason)

    def has_credit(self) -> bool:
        """Whether one more item may leave."""
        return self.emitted_items < self.granted_items and self.emitted_bytes < self.granted_bytes

    def wait(self, condition: Callable[[], bool]) -> None:
        """Block until `condition()`, looked at with the lock held after each change. Raises Cancelled."""
        with self.lock:
            if condition():
                return
            pace = self.own_pace()
            if pace is not None:
                pace.waits()
            while not condition():
                if self.reason is not None:
                    raise Cancelled(self.reason)
                if self.changed is None:
                    self.changed = threading.Condition(self.lock)
                self.changed.wait()
        if pace is not None:
            pace.woken()

    def own_pace(self) -> Pace | None:
        """Of the calling thread, if it is the one that runs the task."""
        return self.pace if threading.get_ident() == self.thread else None

    def bind(self, async_task: asyncio.Task[Any] | None) -> None:
        """Called in a coroutine: cancellation goes to it from now on. Raises Cancelled."""
        assert async_task is not None
        with self.lock:
            if self.reason is not None:
                raise Cancelled(self.reason)
            self.async_task = (async_task.get_loop(), async_task)

    def unbind(self) -> None:
        """The coroutine is over. Raises Cancelled."""
        strays.end_if_stray()
        with self.lock:
            self.async_task = None
        if self.reason is not None:
            raise Cancelled(self.reason)

    # --- by the data unit's thread

    def cancel(self, reason: str) -> None:
        """Make the task stop at its next chance. Idempotent."""
        with self.lock:
            if self.reason is not None:
                return
            self.reason = reason
            if self.interruptible:
                self.interrupted = True
                _interrupt(self.thread, Cancelled)
                nudge.nudge(self.thread, self._nudge_again)  # with the lock held, so that it can't reach the next task
            if self.async_task is not None:
                loop, task = self.async_task
                loop.call_soon_threadsafe(task.cancel)
            self._notify()

    def _nudge_again(self) -> bool:
        with self.lock:
            if self.interruptible:
                nudge.send(self.thread)
            return self.interruptible

    def grant(self, items: int, nbytes: int) -> None:
        """Raise the limits to so many items and bytes in all."""
        with self.lock:
            self.granted_items = max(self.granted_items, items)
            self.granted_bytes = max(self.granted_bytes, nbytes)
            self._notify()

    def feed(self, name: str, values: tuple[Any, ...], ended: bool) -> None:
        """Further items of a stream input, or its end. KeyError if the task has no such stream."""
        stream = self.streams[name]
        with self.lock:
            stream.put(values, ended)
            self._notify()

    def _notify(self) -> None:
        if self.changed is not None:
            self.changed.notify_all()
        for wake in self.wakers:
            wake()
