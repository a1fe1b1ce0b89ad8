"""Open Inference Protocol tensors and typed ports."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from dataflower.errors import InvalidArgument
from dataflower.gateway._generated import inference_pb2 as pb
from dataflower.gateway.infer_tensors import RawTensor, decode_input, encode_output, metadata_of
from dataflower.spec.function import Json, Kind, Port, PortType, Tensor, Text

Input = pb.ModelInferRequest.InferInputTensor
Contents = pb.InferTensorContents


def elements(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(i)) + i for i in items)


@pytest.mark.parametrize(
    ("datatype", "contents", "values"),
    [
        ("BOOL", Contents(bool_contents=[True, False]), [True, False]),
        ("INT8", Contents(int_contents=[-1, 127]), [-1, 127]),
        ("INT16", Contents(int_contents=[-1, 2]), [-1, 2]),
        ("INT32", Contents(int_contents=[-1, 2]), [-1, 2]),
        ("INT64", Contents(int64_contents=[-1, 2**62]), [-1, 2**62]),
        ("UINT8", Contents(uint_contents=[1, 255]), [1, 255]),
        ("UINT16", Contents(uint_contents=[1, 2]), [1, 2]),
        ("UINT32", Contents(uint_contents=[1, 2]), [1, 2]),
        ("UINT64", Contents(uint64_contents=[1, 2**64 - 1]), [1, 2**64 - 1]),
        ("FP32", Contents(fp32_contents=[1.5, 2]), [1.5, 2]),
        ("FP64", Contents(fp64_contents=[1.5, 2]), [1.5, 2]),
    ],
)
def test_typed_contents_of_each_datatype(datatype: str, contents: Any, values: list[Any]) -> None:
    tensor = Input(name="x", datatype=datatype, shape=[2, 1], contents=contents)
    array = decode_input(Port("x", Tensor(datatype, ["N", 1])), tensor, None)
    assert array.shape == (2, 1)
    assert array.ravel().tolist() == values


@pytest.mark.parametrize(
    ("port", "tensor", "raw", "why"),
    [
        (Port("x", Tensor("FP16")), Input(datatype="FP16", shape=[1]), None, "raw_input_contents only"),
        (Port("x", Tensor("FP32")), Input(datatype="FP32", shape=[2]), b"1234", "takes 8 bytes"),
        (Port("x", Tensor("FP32")), Input(datatype="FP32", shape=[-1]), b"1234", "negative"),
        (Port("x", Tensor("FP32")), Input(datatype="INT32", shape=[1]), b"1234", "not INT32"),
        (Port("x", Tensor("UINT8", ["N", "N"])), Input(datatype="UINT8", shape=[1, 2]), b"12", "not UINT8"),
        (Port("x", Tensor("UINT8")), Input(datatype="BYTES", shape=[1]), elements(b"a"), "not BYTES"),
        (Port("x"), Input(datatype="FLOAT", shape=[1]), b"1", "unknown datatype"),
        (Port("x", Text()), Input(datatype="BYTES", shape=[1]), b"\x05\0\0\0ab", "cut off"),
        (Port("x", Text()), Input(datatype="BYTES", shape=[1]), b"\x05\0", "cut off"),
        (Port("x", Text()), Input(datatype="BYTES", shape=[1]), elements(b"\xff"), "UTF-8"),
        (Port("x", Text()), Input(datatype="BYTES", shape=[2]), elements(b"a", b"b"), "one element"),
        (Port("x", Text()), Input(datatype="BYTES", shape=[2]), elements(b"a"), "2 elements"),
        (Port("x", Json()), Input(datatype="BYTES", shape=[1]), elements(b"{"), "not JSON"),
        (Port("x", PortType(Kind.INT)), Input(datatype="FP32", shape=[1]), b"1234", "takes int"),
        (
            Port("x", Tensor("INT8")),
            Input(datatype="INT8", shape=[1], contents=Contents(int_contents=[300])),
            None,
            "does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused(port: Port, tensor: Any, raw: bytes | None, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        decode_input(port, tensor, raw)
    assert refused.value.message.startswith("input 'x': ")


@pytest.mark.parametrize(
    ("port", "value"),
    [
        (Port("x", Text()), "hé"),
        (Port("x", PortType(Kind.BYTES)), b"\xff\0"),
        (Port("x", Json()), {"a": [1, None, "b"]}),
        (Port("x"), ["free", 1]),
        (Port("x", PortType(Kind.INT)), -3),
        (Port("x", PortType(Kind.FLOAT)), 0.5),
        (Port("x", PortType(Kind.BOOL)), True),
        (Port("x", Text(), stream=True), ["a", "b"]),
        (Port("x", PortType(Kind.INT), stream=True), [1, 2, 3]),
        (Port("x", Json(), stream=True), []),
    ],
)
def test_values_come_back_as_they_went(port: Port, value: Any) -> None:
    out = encode_output(port, value)
    assert decode_input(port, Input(datatype=out.datatype, shape=out.shape), out.data) == value


def test_streams_of_equal_arrays_are_stacked_others_are_json() -> None:
    port = Port("x", Tensor("UINT8", ["N"]), stream=True)
    ones, two = np.ones(2, np.uint8), np.array([2], np.uint8)
    assert encode_output(port, [ones, ones]) == RawTensor("UINT8", (2, 2), b"\1\1\1\1")
    assert encode_output(port, [ones, two]) == RawTensor("BYTES", (2,), elements(b"[1, 1]", b"[2]"))
    assert encode_output(port, []) == RawTensor("UINT8", (0, 0), b"")


def test_untyped_ports_take_json_or_else_text() -> None:
    tensor = Input(datatype="BYTES", shape=[1])
    assert decode_input(Port("x"), tensor, elements(b"[1]")) == [1]
    assert decode_input(Port("x"), tensor, elements(b"clip.mp4")) == "clip.mp4"


def test_metadata_of_ports() -> None:
    assert metadata_of(Port("x", Tensor("FP32", ["N", 3]))) == ("FP32", (-1, 3))
    assert metadata_of(Port("x", Tensor("FP32", [3]), stream=True)) == ("FP32", (-1, 3))
    assert metadata_of(Port("x", PortType(Kind.INT))) == ("INT64", (1,))
    assert metadata_of(Port("x", Text(), stream=True)) == ("BYTES", (-1,))
    assert metadata_of(Port("x")) == ("BYTES", (1,))
