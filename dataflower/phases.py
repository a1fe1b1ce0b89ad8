"""What the start of a function spends its time on: noted by whoever spends it, told to the host with `Hello`.

A process has one list. Notes that nobody collects (a script, a test) are dropped beyond a hundred.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from dataflower.clock import SystemClock
from dataflower.wire import StartKind, StartPhase

_MOST = 100
_monotonic = SystemClock().monotonic
_lock = threading.Lock()
_noted: list[StartPhase] = []


def note(kind: StartKind, what: str, seconds: float, *, nbytes: int = 0, was_there: bool = False) -> None:
    """So long was spent on this. From any thread."""
    with _lock:
        if len(_noted) < _MOST:
            _noted.append(StartPhase(kind, what, seconds, nbytes, was_there))


@contextlib.contextmanager
def phase(kind: StartKind, what: str = "") -> Iterator[None]:
    """Note how long the block takes; nothing if it raises."""
    begun = _monotonic()
    yield
    note(kind, what, _monotonic() - begun)


def collect() -> tuple[StartPhase, ...]:
    """All notes since the last time."""
    with _lock:
        found = tuple(_noted)
        _noted.clear()
    return found
