"""The `Context` that a function may ask for."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from dataflower.channel import tensor
from dataflower.channel.arena import Arena
from dataflower.clock import SystemClock
from dataflower.container.failure import Cancelled
from dataflower.container.running import RunningTask
from dataflower.errors import Closed, DataflowerError
from dataflower.spec.context import StageAdapter

_monotonic = SystemClock().monotonic
_log = logging.getLogger("dataflower.task")


class TaskContext:
    """See `dataflower.spec.context.Context`."""

    __slots__ = ("_arena", "_stage", "_starve", "_task")

    def __init__(self, task: RunningTask, arena: Arena, stage: str, starve: Callable[[RunningTask, int], bool]) -> None:
        """`starve`: see `DataUnit.starve`."""
        self._task = task
        self._arena = arena
        self._starve = starve
        self._stage = stage

    @property
    def invocation(self) -> str:
        """Id of the client call."""
        return self._task.run.invocation

    @property
    def tag(self) -> tuple[int, ...]:
        """Item of each enclosing fan-out."""
        return self._task.run.tag

    @property
    def attempt(self) -> int:
        """1 for the first try."""
        return self._task.run.attempt

    @property
    def stage(self) -> str:
        """Name of the stage."""
        served = self._task.run.served
        return self._stage if served is None else served.stage

    @property
    def adapter(self) -> StageAdapter | None:
        """Of the task's stage, if the container serves several."""
        served = self._task.run.served
        if served is None:
            return None
        return StageAdapter(f"{served.workflow}/{served.stage}", served.adapter, served.version)

    @property
    def deadline_s(self) -> float:
        """CLOCK_MONOTONIC; 0 = none."""
        return self._task.run.deadline_s

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        deadline = self._task.run.deadline_s
        return max(0.0, deadline - _monotonic()) if deadline else math.inf

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result."""
        return self._task.reason is not None

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Lines that name the invocation."""
        return logging.LoggerAdapter(_log, {"invocation": self._task.run.invocation or "-", "stage": self.stage})

    def empty(self, shape: Sequence[int] | int, dtype: Any = "float32") -> Any:
        """A writable array in the arena. Raises ResourceExhausted, Cancelled."""
        task = self._task
        shielded = task.interruptible and threading.get_ident() == task.thread
        if shielded:
            task.leave_user()
        try:
            whole = (shape,) if isinstance(shape, int) else tuple(shape)
            return tensor.empty(self._arena, whole, dtype, cancelled=lambda released: self._starve(task, released))
        except (DataflowerError, Closed):
            if task.reason is not None:
                raise Cancelled(task.reason) from None
            raise
        finally:
            if shielded:
                task.enter_user()
