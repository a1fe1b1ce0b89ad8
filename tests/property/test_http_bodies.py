"""Whatever a caller sends, it is read or refused as the caller's fault; what is written can be read again."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataflower.errors import InvalidArgument
from dataflower.gateway.http.infer_json import SIZE, read_request, write_response
from dataflower.gateway.http.openai import requests
from dataflower.gateway.http.status import BadField
from dataflower.gateway.http.values import Tensors, from_json, to_json
from dataflower.gateway.infer_tensors import RawTensor
from dataflower.gateway.values import datatype_of
from dataflower.spec.function import Kind, Port, PortType, Tensor

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
NAMES = ("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data", SIZE)
REQUESTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5)
DTYPES = st.sampled_from(
    [np.dtype(name) for name in ("bool", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64")]
)
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


def tensor(**known: Any) -> st.SearchStrategy[dict[str, Any]]:
    fields = {"name": st.just("x"), "datatype": st.sampled_from(["FP32", "BYTES", "UINT8", "X"]), "data": JSON}
    fields["shape"] = st.lists(st.integers(-2, 5), max_size=3)
    fields["parameters"] = st.dictionaries(st.just(SIZE), st.integers(-1, 9) | JSON, max_size=1)
    return st.fixed_dictionaries({}, optional=fields)


@given(
    st.binary(max_size=60)
    | (REQUESTS | st.fixed_dictionaries({"inputs": st.lists(tensor(), max_size=2)})).map(
        lambda body: json.dumps(body).encode()
    ),
    st.none() | st.text(max_size=3) | st.integers(0, 80).map(str),
    st.binary(max_size=10),
)
def test_any_infer_request_is_read_or_refused(body: bytes, length: str | None, rest: bytes) -> None:
    try:
        request, tensors = read_request(body + rest, length)
    except InvalidArgument:
        return
    assert len(request.inputs) == len(tensors)


@given(st.lists(ARRAYS, min_size=1, max_size=3), st.booleans())
def test_tensors_come_back_as_they_went(arrays: list[np.ndarray[Any, Any]], binary: bool) -> None:
    raw = {f"t{i}": RawTensor(datatype_of(a), a.shape, a.tobytes()) for i, a in enumerate(arrays)}
    if not binary and any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays):
        return  # JSON has no such numbers
    text, length = write_response({}, raw, raw if binary else ())
    document = json.loads(text[:length])
    back = json.dumps({"inputs": document["outputs"]}).encode()
    _, tensors = read_request(back + (text[length:] if binary else b""), str(len(back)) if binary else None)
    for array, made in zip(arrays, tensors, strict=True):
        assert made.shape == array.shape
        assert bytes(made.raw) == array.tobytes()


@given(st.lists(st.text(max_size=5), max_size=4))
def test_texts_come_back_as_they_went(texts: list[str]) -> None:
    data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    text, _ = write_response({}, {"t": RawTensor("BYTES", (len(texts),), data)}, ())
    _, (made,) = read_request(json.dumps({"inputs": json.loads(text)["outputs"]}).encode(), None)
    assert made.raw == data


PORTS = [
    Port("x", type_, stream=stream)
    for stream in (False, True)
    for type_ in (
        PortType(),
        Tensor("UINT8", ["N", 2]),
        Tensor("FP32"),
        PortType(Kind.BYTES),
        PortType(Kind.INT),
        PortType(Kind.JSON),
    )
]


@given(
    st.sampled_from(PORTS),
    JSON
    | st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data": JSON})
    | st.fixed_dictionaries({"base64": JSON}),
)
def test_any_input_is_read_or_refused(port: Port, value: Any) -> None:
    try:
        made = from_json({"x": value}, (port,))
    except InvalidArgument:
        return
    assert set(made) == {"x"}


@given(ARRAYS, st.sampled_from(Tensors))
def test_values_come_back_as_they_went(array: np.ndarray[Any, Any], tensors: Tensors) -> None:
    if tensors is Tensors.LIST and array.dtype.kind == "f" and not np.isfinite(array).all():
        return
    value = {"a": [array, b"\x00\xff"], "n": 1}
    written = json.loads(json.dumps(to_json(value, tensors)))
    back = from_json({"x": written}, (Port("x"),))["x"]
    np.testing.assert_array_equal(back["a"][0], array)
    assert (back["a"][0].dtype, back["a"][0].shape) == (array.dtype, array.shape)
    assert (back["a"][1], back["n"]) == (b"\x00\xff", 1)


FIELDS = (
    "model",
    "messages",
    "prompt",
    "n",
    "stream",
    "stream_options",
    "stop",
    "seed",
    "logprobs",
    "best_of",
    "tools",
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), st.booleans())
def test_any_model_request_is_read_or_refused(body: dict[str, Any], chat: bool) -> None:
    known = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a"}
    try:
        asked = (requests.chat if chat else requests.completion)({**known, **body})
    except BadField as error:
        refused = error
    else:
        refused = None
        assert asked.sequences
    assert refused is None or refused.param
