"""A signal that reaches a function inside a system call, so that an interruption finds it while it sleeps or waits.

An exception from another thread is raised between two instructions of Python, so not before `time.sleep`, a read or a
wait for a lock returns. A signal breaks them off: Python calls the handler right there, and the exception is raised as
that begins. So this module must not be compiled. Handlers run on the main thread alone; of a container's further
threads (`max_ongoing_requests`) an interruption still waits for the call to return.

A signal that comes between Python's last look and the system call breaks off nothing. So it is sent again, after longer
and longer pauses, while the function runs.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

FIRST_PAUSE_S, LAST_PAUSE_S = 0.001, 2.0
_SIGNAL = signal.SIGURG
"""Ignored wherever nobody handles it."""
_listening: int | None = None
"""The thread that can be nudged."""


def listen() -> None:
    """From now on the calling thread can be nudged; it must be the main thread."""
    global _listening
    signal.signal(_SIGNAL, _nudged)
    _listening = threading.get_ident()


def nudge(thread: int, again: Callable[[], bool]) -> None:
    """Break off the system call that the thread is in, if it listens. Python's own calls go on if nothing is raised.

    `again` calls `send` if that is still wanted, and says whether it was; asked by another thread, soon and repeatedly.
    """
    if thread == _listening:
        send(thread)
        threading.Thread(target=_repeat, args=(again,), name="nudge", daemon=True).start()


def send(thread: int) -> None:
    """The signal."""
    signal.pthread_kill(thread, _SIGNAL)


def _repeat(again: Callable[[], bool]) -> None:
    pause_s = FIRST_PAUSE_S
    while pause_s < LAST_PAUSE_S:
        time.sleep(pause_s)
        if not again():
            return
        pause_s *= 2


def _nudged(number: int, frame: FrameType | None) -> None:
    """Nothing: the exception that waits for the thread is raised on the way in."""
