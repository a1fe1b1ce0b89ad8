"""What a workflow is to clients of OpenAI's API, seen by its ports alone (docs/reference/http.md, "Models")."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dataflower.spec.function import Kind, Port
from dataflower.spec.workflow import Workflow


class Role(enum.Enum):
    """Kind of model."""

    CHAT = "chat model"
    EMBEDDER = "embedder"


REQUEST = "request"
DELTAS = "deltas"
"""Input and stream output of a chat stage (docs/llm.md)."""
TEXTS = "texts"
VECTORS = "vectors"
"""Input and output of an embedder."""
_PORTS = {Role.CHAT: (REQUEST, DELTAS), Role.EMBEDDER: (TEXTS, VECTORS)}


@dataclass(frozen=True, slots=True)
class Serving:
    """The role of a workflow; None with a `reason` if its names say one but its ports don't fit."""

    role: Role | None
    reason: str = ""


def serving(workflow: Workflow) -> Serving:
    """What a workflow is served as."""
    inputs = {port.name: port for port in workflow.inputs}
    outputs = {output.name: output.type_ or Port(output.name) for output in workflow.outputs}
    for role, (takes, gives) in _PORTS.items():
        if takes in inputs and gives in outputs:
            reason = _misfit(role, inputs, takes, outputs[gives])
            return Serving(None, f"no {role.value}: {reason}") if reason else Serving(role)
    return Serving(None)


def _misfit(role: Role, inputs: dict[str, Port], takes: str, gives: Port) -> str:
    if inputs[takes].type.kind not in (Kind.JSON, Kind.ANY) or inputs[takes].stream:
        return f"input {takes!r} must be json"
    others = [port.name for name, port in inputs.items() if name != takes and not port.optional]
    if others:
        return f"it needs the input {others[0]!r} as well (a default would do)"
    if gives.stream != (role is Role.CHAT):
        return f"output {gives.name!r} must be {'a stream' if role is Role.CHAT else 'a value'}"
    return ""
