"""What a workflow is to clients of OpenAI's API."""

from dataclasses import replace

import pytest

from dataflower.spec.function import Json, Port, PortType, Tensor, Text
from dataflower.spec.serving import Role, serving
from dataflower.spec.workflow import Edge, Output, PortRef, Workflow


def workflow(inputs: tuple[Port, ...], *outputs: Port) -> Workflow:
    made = tuple(Output(port.name, Edge(PortRef("s", port.name)), port) for port in outputs)
    return Workflow("w", {}, inputs, made)


REQUEST, DELTAS = Port("request", Json()), Port("deltas", Json(), stream=True)
TEXTS, VECTORS = Port("texts", PortType()), Port("vectors", Tensor("FP32", ["N", 4]))
MORE = Port("more", Text(), optional=True)


def test_roles_are_known_by_the_ports() -> None:
    assert serving(workflow((REQUEST,), DELTAS)).role is Role.CHAT
    assert serving(workflow((REQUEST, MORE), DELTAS, Port("x"))).role is Role.CHAT
    assert serving(workflow((TEXTS, MORE), VECTORS, Port("tokens"))).role is Role.EMBEDDER
    assert serving(workflow((REQUEST,), VECTORS)).role is None
    assert serving(workflow((), DELTAS)) == serving(workflow((Port("x"),), Port("y")))


@pytest.mark.parametrize(
    ("inputs", "output", "reason"),
    [
        ((replace(REQUEST, type=Text()),), DELTAS, "no chat model: input 'request' must be json"),
        ((replace(REQUEST, stream=True),), DELTAS, "no chat model: input 'request' must be json"),
        ((REQUEST, Port("x")), DELTAS, "no chat model: it needs the input 'x' as well (a default would do)"),
        ((REQUEST,), replace(DELTAS, stream=False), "no chat model: output 'deltas' must be a stream"),
        ((TEXTS,), replace(VECTORS, stream=True), "no embedder: output 'vectors' must be a value"),
    ],
)
def test_a_near_miss_is_explained(inputs: tuple[Port, ...], output: Port, reason: str) -> None:
    assert serving(workflow(inputs, output)).reason == reason
