"""What a workflow file may say about batches, and what is wrong when it can't be meant."""

from __future__ import annotations

import sys
import types

import pytest

from dataflower.errors import WorkflowInvalid
from dataflower.spec.dump import dump
from dataflower.spec.function import Kind
from dataflower.spec.load import load
from dataflower.spec.signature import inspect_signature, read_signature
from dataflower.spec.workflow import Batch, Workflow

SOURCE = """
from dataflower import Context, Stream, function

@function(batch=True)
def embed(text: list[str], weight: list[float] = (), *, context: list[Context]) -> list[str]: ...

@function(batch=True)
class Score:
    def setup(self, model: str = "m"): ...
    def __call__(self, text: list[str]) -> list[float]: ...

@function(batch=True)
def spread(text: list[str]):
    yield text

def single(text: str) -> str: ...
"""
FILE = """apiVersion: dataflower/v1
kind: Workflow
metadata: {name: w}
inputs: {text: string}
stages:
  a:
    function: f:FUNCTION
    inputs: {text: inputs.text}
    BATCH
outputs: {n: a}
"""


def read(function: str, batch: str) -> Workflow:
    text = FILE.replace("FUNCTION", function).replace("BATCH", batch)
    return load(text, file="w.yaml", read=lambda _: None, find_source=lambda _: ("f.py", SOURCE))


def problems(function: str, batch: str) -> list[str]:
    with pytest.raises(WorkflowInvalid) as caught:
        read(function, batch)
    return [str(problem) for problem in caught.value.problems]


def test_ports_are_those_of_one_task() -> None:
    signature = read_signature(SOURCE, "f.py", "embed")
    assert signature.batch
    assert [(port.name, port.type.kind) for port in signature.inputs] == [
        ("text", Kind.STRING),
        ("weight", Kind.FLOAT),
    ]
    assert signature.outputs[0].type.kind is Kind.STRING
    assert not read_signature(SOURCE, "f.py", "single").batch


@pytest.mark.parametrize("name", ["embed", "Score", "single"])
def test_source_and_live_object_agree(name: str) -> None:
    module = types.ModuleType("batch_sample")
    exec(compile(SOURCE, "f.py", "exec"), module.__dict__)
    sys.modules["batch_sample"] = module
    try:
        live = inspect_signature(getattr(module, name))
    finally:
        del sys.modules["batch_sample"]
    written = read_signature(SOURCE, "f.py", name)
    assert (live.inputs, live.outputs, live.batch) == (written.inputs, written.outputs, written.batch)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Batch()),
        ("batch: {max_size: 32, wait_ms: 5}", Batch(32, 5.0)),
        ("batch: {max_batch_size: 4, batch_wait_timeout_s: 10ms}", Batch(4, 10.0)),
        ("batch: {max_queue_delay_microseconds: 500}", Batch(8, 0.5)),
        ("batch: {max_latency_ms: 20}", Batch(8, 20.0)),
        ("batch: {cost: size(text), max_cost: 4096}", Batch(8, 0.0, "size(text)", 4096.0)),
        ("batch: {same_shape: false}", Batch(same_shape=False)),
    ],
)
def test_what_is_written_is_read_and_written_again(text: str, expected: Batch) -> None:
    workflow = read("embed", text)
    assert workflow.stages["a"].batch == expected
    again = load(dump(workflow), file="w.yaml", read=lambda _: None, find_source=lambda _: None)
    assert again.stages["a"].batch == expected


def test_a_function_without_batches_has_none() -> None:
    assert read("single", "").stages["a"].batch is None


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        ("single", "batch: {max_size: 2}", "w.yaml:9:5: the function does not take batches"),
        ("embed", "batch: {max_size: 0}", "w.yaml:9:23: max_size: input should be greater than or equal to 1"),
        (
            "embed",
            "batch: {max_size: 2, max_batch_size: 2}",
            "w.yaml:9:26: 'max_batch_size' and 'max_size' say the same",
        ),
        ("embed", "batch: {cost: size(text)}", "w.yaml:9:13: 'cost' goes with 'max_cost'"),
        ("embed", "batch: {max_cost: 3}", "w.yaml:9:13: 'max_cost' goes with 'cost'"),
        ("embed", "batch: {cost: size(txt), max_cost: 3}", "w.yaml:9:19: `size(txt)`: no input 'txt'"),
        ("embed", "batch: {cost: 'size(', max_cost: 3}", "w.yaml:9:19: `size(`: "),
        ("embed", "batch: {size: 3}", "w.yaml:9:13: "),
        ("spread", "", "w.yaml:6:3: a.out is a stream, and the function takes batches"),
    ],
)
def test_what_can_not_be_meant_is_said(function: str, text: str, expected: str) -> None:
    found = problems(function, text)
    assert any(problem.startswith(expected) for problem in found), found
