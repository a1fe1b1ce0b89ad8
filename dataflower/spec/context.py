"""What a task may know about itself. A function gets it by a parameter named `context` or annotated `Context`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

PARAMETER = "context"
"""A parameter of this name is filled by the engine; it is no input port."""


@dataclass(frozen=True, slots=True)
class StageAdapter:
    """The LoRA adapter of a task's stage, where stages share a container.

    Attributes:
        name: `workflow/stage`: no two stages have the same.
        path: as the workflow file says it; empty: the bare model.
        version: of the workflow; what was read of the path for another version may not be what is there now.
    """

    name: str
    path: str
    version: int


@runtime_checkable
class Context(Protocol):
    """The running task, as user code sees it. Valid until the task ends."""

    @property
    def invocation(self) -> str:
        """Id of the client call that this task belongs to."""
        ...

    @property
    def tag(self) -> tuple[int, ...]:
        """Which item of each enclosing fan-out this task works on, outermost first."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first try, one more for every retry."""
        ...

    @property
    def stage(self) -> str:
        """Name of the stage."""
        ...

    @property
    def adapter(self) -> StageAdapter | None:
        """That of the task's stage, if the container serves several (`isolation: shared`); else `setup` was told."""
        ...

    @property
    def deadline_s(self) -> float:
        """CLOCK_MONOTONIC time by which the result is worthless; 0 = none."""
        ...

    def remaining_s(self) -> float:
        """Seconds left until the deadline, never negative; infinite without one."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more. Long loops in C code may look here between two calls."""
        ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines name the invocation; they end in the container's log."""
        ...

    def empty(self, shape: Sequence[int] | int, dtype: Any = "float32") -> Any:
        """A writable numpy array in shared memory: handing it out costs no copy. Don't write after handing it out.

        A torch dtype (`torch.bfloat16`) gives a torch tensor on such memory.

        Raises ResourceExhausted if the container's arena can't hold it.
        """
        ...
