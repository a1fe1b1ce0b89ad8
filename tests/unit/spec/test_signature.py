"""Source and live object must tell the same about a function."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dataflower.spec.function import Kind, Port, PortType, Signature, Tensor
from dataflower.spec.signature import SignatureError, inspect_signature, read_signature

sys.path.insert(0, str(Path(__file__).parent))
import signature_samples as samples

SOURCE = Path(samples.__file__).read_text(encoding="utf-8")
NAMES = [
    name for name, obj in vars(samples).items() if getattr(obj, "__module__", "") == samples.__name__ and name[0] != "_"
]


def read(source: str, name: str) -> Signature:
    return read_signature(source, "module.py", name)


@pytest.mark.parametrize("name", NAMES)
def test_reading_and_inspecting_agree(name: str) -> None:
    assert read(SOURCE, name) == inspect_signature(getattr(samples, name))


def test_samples_cover_every_form() -> None:
    assert len(NAMES) >= 20


def test_plain_function_has_one_value_port() -> None:
    signature = read("def double(x: int, by=2) -> int: return x * by", "double")
    assert signature.inputs == (Port("x", PortType(Kind.INT)), Port("by", optional=True, default=2))
    assert signature.outputs == (Port("out", PortType(Kind.INT)),)
    assert not signature.stateful


def test_generator_streams_its_default_port() -> None:
    signature = read("def walk(n) -> Iterator[str]:\n  yield 'a'", "walk")
    assert signature.outputs == (Port("out", PortType(Kind.STRING), stream=True),)


def test_yield_of_an_inner_function_does_not_count() -> None:
    assert not read("def f():\n  def g():\n    yield 1\n  return g", "f").outputs[0].stream


def test_generator_with_value_types_only_streams_all_of_them() -> None:
    source = "@function(outputs={'a': Json(), 'b': Text()})\ndef f():\n  yield {}"
    assert [port.stream for port in read(source, "f").outputs] == [True, True]


def test_generator_that_marks_streams_returns_the_rest() -> None:
    source = "@function(outputs={'a': Stream(Json()), 'b': Text()})\ndef f():\n  yield {}"
    assert [port.stream for port in read(source, "f").outputs] == [True, False]


def test_tensor_types_and_constants_are_read() -> None:
    source = "N = 3\nIMAGE = Tensor('uint8', ['H', 'W', N])\n@function(outputs={'o': Stream(IMAGE)})\ndef f():\n yield"
    assert read(source, "f").outputs == (Port("o", Tensor("UINT8", ["H", "W", 3]), stream=True),)


def test_heavy_imports_are_preloaded_in_order() -> None:
    source = (
        "import torch.nn as nn, json\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import pandas\n"
        "try:\n  import cv2\nexcept ImportError:\n  cv2 = None\nfrom PIL import Image\ndef f():\n  import scipy\n"
    )
    assert read(source, "f").preload == ("torch", "cv2", "PIL")


def test_setup_parameters_are_params() -> None:
    source = "class A:\n  def setup(self, size: int = 1, **rest): ...\n  def __call__(self, x): ...\n"
    signature = read(source, "A")
    assert signature.params == (Port("size", PortType(Kind.INT), optional=True, default=1),)
    assert signature.takes_any_param
    assert signature.stateful
    assert [port.name for port in signature.inputs] == ["x"]


@pytest.mark.parametrize(
    ("source", "name", "message", "hint"),
    [
        ("def detect(): ...", "detec", "defines no function or class 'detec'", "did you mean 'detect'?"),
        ("class A: ...", "A", "class A has no __call__", "define __call__"),
        ("def f(x, /): ...", "f", "parameter 'x' is positional-only", "drop the /"),
        ("def f(:", "f", "is not valid Python", ""),
        ("@function(outputs=ports())\ndef f(): ...", "f", "can't be known without running", "literally"),
        (
            "from dataflower import Int\n@function(outputs={'a': Int()})\ndef f(): ...",
            "f",
            "dataflower has no port type `Int`",
            "known: Tensor, Json, Text",
        ),
        (
            "from dataflower import function\n@function(outputs={'a': Text()})\ndef f(): ...",
            "f",
            "`Text` is not imported",
            "from dataflower import Text",
        ),
        ("@function(inputs={'y': Json()})\ndef f(yy): ...", "f", "f has no parameter 'y'", "did you mean 'yy'?"),
        ("@function(outputs={'a': Tensor('FP31')})\ndef f(): ...", "f", "unknown dtype 'FP31'", ""),
        ("class A:\n def __init__(self, x): ...\n def __call__(self): ...", "A", "wants 'x' in __init__", "setup"),
    ],
)
def test_what_cannot_be_read_is_said(source: str, name: str, message: str, hint: str) -> None:
    with pytest.raises(SignatureError) as caught:
        read(source, name)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_inspect_refuses_what_is_no_function() -> None:
    with pytest.raises(SignatureError, match="not callable"):
        inspect_signature(3)
