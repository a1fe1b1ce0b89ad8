"""Failures that the core itself states, and what a caught one leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflower.core.instance import Instance
from dataflower.core.program import goto_port
from dataflower.core.values import EMPTY, constant
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import ERROR_PORT
from dataflower.wire import Value


def timed_out(instance: Instance) -> Failure:
    """The task's attempt took too long."""
    limit = instance.program.stage.timeout_s
    message = f"the task took longer than timeout_s = {limit:g}"
    return Failure(Code.DEADLINE_EXCEEDED, "Timeout", message, instance.program.name, instance.attempt)


def late_start(stage: str, limit_s: float) -> Failure:
    """A container of the stage was not ready in time."""
    message = f"no container of stage {stage!r} was ready within start_timeout_s = {limit_s:g} (import and setup)"
    return Failure(Code.DEADLINE_EXCEEDED, "StartTimeout", message, stage, 1)


def stage_too_large(stage: str, weights: Mapping[str, int], own: int, cap_bytes: int) -> Failure:
    """A stage whose weights, and a container of `own` bytes (0: not known), are more than all such stages may take."""
    parts = [f"{_mib(nbytes)} of weights {name}" for name, nbytes in weights.items()]
    parts += [f"{_mib(own)} for a container"] * (own > 0)
    need = sum(weights.values()) + own
    message = (
        f"stage {stage!r} needs {_mib(need)} of memory ({', '.join(parts)}), and device_memory_bytes allows "
        f"{_mib(cap_bytes)}: set it to {-(-need // 2**20)}MiB at least in the server's settings, or use smaller weights"
    )
    return Failure(Code.FAILED_PRECONDITION, "StageTooLarge", message, stage, 1)


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // 2**20)} MiB"


def crashed(stage: str, attempt: int, what: str) -> Failure:
    """The stage's container died; `what` as in 'was killed by signal 9'."""
    return Failure(Code.INTERNAL, "ContainerCrashed", f"the container of stage {stage!r} {what}", stage, attempt)


def on_attempt(failure: Failure, attempt: int) -> Failure:
    """The same, as it befell another attempt."""
    return Failure(failure.code, failure.kind, failure.message, failure.stage, attempt, failure.traceback)


def stand_in(goto: str | None, output: Any, failure: Failure) -> dict[str, Value]:
    """What a caught failure puts on the stage's value ports."""
    values = {port: constant(value) for port, value in (output or {}).items()}
    if goto is not None:
        values[goto_port(goto)] = EMPTY
        values[ERROR_PORT] = constant(
            {"kind": failure.kind, "message": failure.message, "stage": failure.stage, "attempt": failure.attempt}
        )
    return values
