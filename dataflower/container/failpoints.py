"""Named places at which a test can make a container die.

    DATAFLOWER_FAILPOINTS="container.mid_compute:kill:stage=detect:attempt=1,container.before_start:exit"

A point fires each time that it is passed and its conditions hold: `stage`, `attempt`, `hit` (the n-th passage, from 1).
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "DATAFLOWER_FAILPOINTS"


class Point(enum.Enum):
    """Where a container can be made to die."""

    BEFORE_START = "container.before_start"
    """Forked; user code not imported yet."""
    BEFORE_RUN = "container.before_run"
    """A task was received; the function not called yet."""
    MID_COMPUTE = "container.mid_compute"
    """User code has yielded an item that has not left yet."""
    MID_WRITE = "container.mid_write"
    """Outputs stand in the arena; the message that names them is not sent."""
    MID_HANDOVER = "container.mid_handover"
    """A report is posted; the outputs that it speaks of have not left for the next container."""
    AFTER_HANDOVER = "container.after_handover"
    """`TaskDone` is sent, or posted and the outputs have left."""


class Action(enum.Enum):
    """How it dies."""

    KILL = "kill"
    """SIGKILL to itself."""
    EXIT = "exit"
    """Leaves with status 70, at once."""
    STOP = "stop"
    """SIGSTOP: it lives but does nothing more."""


@dataclass(frozen=True, slots=True)
class _Armed:
    action: Action
    stage: str | None
    attempt: int | None
    hit: int | None


class FailPoints:
    """The armed points of one container."""

    def __init__(self, armed: Mapping[Point, _Armed], stage: str) -> None:
        self._armed = {point: what for point, what in armed.items() if what.stage in (None, stage)}
        self._passed = dict.fromkeys(Point, 0)

    def __bool__(self) -> bool:
        return bool(self._armed)

    def hit(self, point: Point, attempt: int = 0) -> None:
        """Die here, if the point is armed and its conditions hold."""
        armed = self._armed.get(point)
        if armed is None or armed.attempt not in (None, attempt):
            return
        self._passed[point] += 1
        if armed.hit not in (None, self._passed[point]):
            return
        if armed.action is Action.EXIT:
            os._exit(70)
        os.kill(os.getpid(), signal.SIGKILL if armed.action is Action.KILL else signal.SIGSTOP)


def load(environ: Mapping[str, str], stage: str) -> FailPoints | None:
    """The points armed for `stage`, or None: callers test that once per passage. Raises ValueError on nonsense."""
    text = environ.get(VARIABLE, "")
    if not text:
        return None
    points = FailPoints(dict(_parse(entry) for entry in text.split(",") if entry.strip()), stage)
    return points if points else None


def _parse(entry: str) -> tuple[Point, _Armed]:
    name, action, *conditions = entry.strip().split(":")
    given = dict(condition.split("=", 1) for condition in conditions)
    stage, attempt, hit = given.pop("stage", None), given.pop("attempt", None), given.pop("hit", None)
    if given:
        raise ValueError(f"unknown condition in fail point {entry!r}: {', '.join(given)}")
    return Point(name), _Armed(
        Action(action),
        stage,
        None if attempt is None else int(attempt),
        None if hit is None else int(hit),
    )
