"""Constants in a workflow file that can't be right: found where they stand."""

from __future__ import annotations

import pytest

from dataflower.errors import WorkflowInvalid
from dataflower.spec.load import load

SOURCE = """
class Count:
    def setup(self, labels: list, limit: int = 3, seed: int = None): ...
    def __call__(self, text: str) -> int: ...
"""
FILE = """apiVersion: dataflower/v1
kind: Workflow
metadata: {name: w}
inputs:
  text: {type: string, default: a}
  top: {type: int, default: DEFAULT}
stages:
  count:
    function: f:Count
    inputs: {text: inputs.text}
    params: PARAMS
outputs: {n: count}
"""


def problems(params: str, default: str) -> list[str]:
    text = FILE.replace("PARAMS", params).replace("DEFAULT", default)
    try:
        load(text, file="w.yaml", read=lambda _: None, find_source=lambda _: ("f.py", SOURCE))
    except WorkflowInvalid as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("params", "default", "expected"),
    [
        ("{labels: [x]}", "5", []),
        ("{labels: [x], seed: null}", "5", []),
        ("{limit: 2}", "5", ["w.yaml:11:5: setup of f:Count needs 'labels' (write `params: {labels: ...}`)"]),
        ("{labels: [x], limit: two}", "5", ["w.yaml:11:34: 'limit' of f:Count is int, not 'two'"]),
        ("{labels: [x]}", "many", ["w.yaml:6:29: the default of 'top' is no int: 'many'"]),
    ],
)
def test_constants(params: str, default: str, expected: list[str]) -> None:
    assert problems(params, default) == expected


def test_a_constant_of_a_stateless_function_has_its_inputs_type() -> None:
    text = FILE.replace("DEFAULT", "5").replace("inputs: {text: inputs.text}", "inputs: {}").replace("f:Count", "f:cut")
    source = "def cut(text: str, rows: Stream[int] = (), at: float = 0.5) -> int: ..."

    def findings(params: str) -> list[str]:
        with pytest.raises(WorkflowInvalid) as caught:
            load(
                text.replace("PARAMS", params),
                file="w.yaml",
                read=lambda _: None,
                find_source=lambda _: ("f.py", source),
            )
        return [str(problem) for problem in caught.value.problems]

    assert findings("{text: 5, rows: [1], at: 1}") == ["w.yaml:11:20: 'text' of f:cut is string, not 5"]
