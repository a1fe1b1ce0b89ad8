"""Which case of a switch is taken."""

from __future__ import annotations

from collections.abc import Sequence

from dataflower.core.payload import Payload
from dataflower.core.program import StageProgram
from dataflower.core.values import look


def choose(program: StageProgram, payloads: Sequence[Payload | None]) -> str | None:
    """The first true case, else the default, else None. Raises ExpressionError, or ValueError for a value too large."""
    variables = {
        entry.name: look(payload)
        for entry, payload in zip(program.inputs, payloads, strict=True)
        if not entry.is_control and payload is not None
    }
    for name, expression in program.cases:
        if expression is not None and expression.evaluate(variables) is True:
            return name
    return next((name for name, expression in program.cases if expression is None), None)
