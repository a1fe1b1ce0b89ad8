"""Bodies of the Open Inference Protocol's REST form: JSON, or JSON with the tensors' bytes behind it.

The second form is the "binary tensor data" extension: the header `Inference-Header-Content-Length` says where the JSON
ends, and `binary_data_size` of each tensor how much of the rest is its own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from dataflower.errors import InvalidArgument
from dataflower.gateway.http.body import json_object
from dataflower.gateway.http.values import exact_array
from dataflower.gateway.infer_tensors import BYTES, RawTensor, split_elements
from dataflower.gateway.values import numpy_dtype

SIZE = "binary_data_size"


class Wanted(msgspec.Struct):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class Given(msgspec.Struct):
    """An input as the JSON describes it; `data` is absent where its bytes come behind."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Any = None


class InferRequest(msgspec.Struct):
    """The JSON of a request; other keys are ignored."""

    inputs: list[Given] = []
    outputs: list[Wanted] = []
    parameters: dict[str, Any] = {}
    id: str = ""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as `infer_tensors.decode_input` takes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


def read_request(body: bytes, header_length: str | None) -> tuple[InferRequest, list[Tensor]]:
    """A request and its tensors.

    Raises:
        InvalidArgument: it does not hold together; the message names the input.
    """
    head, rest = _split(body, header_length)
    try:
        request = msgspec.convert(json_object(head), InferRequest)
    except msgspec.ValidationError as error:
        raise InvalidArgument(str(error)) from None
    tensors, at = [], 0
    for given in request.inputs:
        size = given.parameters.get(SIZE)
        if size is None:
            raw: bytes | memoryview = _from_data(given)
        elif type(size) is not int or not 0 <= size <= len(rest) - at:
            raise InvalidArgument(f"input {given.name!r}: {SIZE} {size!r} does not fit the bytes that were sent")
        elif given.data is not None:
            raise InvalidArgument(f"input {given.name!r} has both data and {SIZE}")
        else:
            raw = rest[at : at + size]
            at += size
        tensors.append(Tensor(given.name, given.datatype, tuple(given.shape), raw))
    if at != len(rest):
        raise InvalidArgument(f"{len(rest) - at} bytes behind the JSON belong to no input")
    return request, [_owned(tensor) for tensor in tensors]


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isdecimal() or int(header_length) > len(body):
        raise InvalidArgument(
            f"Inference-Header-Content-Length {header_length!r} does not fit a body of {len(body)} bytes"
        )
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def _owned(tensor: Tensor) -> Tensor:
    """Texts are taken apart, which wants bytes; arrays stay views of the body."""
    if tensor.datatype != BYTES or isinstance(tensor.raw, bytes):
        return tensor
    return Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(tensor.raw))


def _from_data(given: Given) -> bytes:
    """The little-endian bytes of a tensor whose elements are in the JSON, nested or flat."""
    if given.data is None:
        raise InvalidArgument(f"input {given.name!r} has neither data nor {SIZE}")
    try:
        if given.datatype == BYTES:
            return b"".join(struct.pack("<I", len(e)) + e for e in map(_element, _flat(given.data)))
        if given.data == [] or math.prod(given.shape) == 0:
            numpy_dtype(given.datatype)
            return b""
        return exact_array(given.data, given.datatype).tobytes()
    except InvalidArgument as error:
        raise InvalidArgument(f"input {given.name!r}: {error.message}") from None


def _flat(data: Any) -> Iterable[Any]:
    if isinstance(data, list):
        for item in data:
            yield from _flat(item)
    else:
        yield data


def _element(item: Any) -> bytes:
    if not isinstance(item, str):
        raise InvalidArgument(f"elements of a BYTES tensor are texts, not {type(item).__name__}")
    return item.encode()


def write_response(
    head: Mapping[str, Any], outputs: Mapping[str, RawTensor], binary: Iterable[str]
) -> tuple[bytes, int | None]:
    """(body, length of its JSON if bytes follow it); `binary`: outputs whose bytes go behind the JSON.

    Raises:
        InvalidArgument: a BYTES output is no text and was asked for in JSON.
    """
    behind = set(binary)
    described, parts = [], []
    for name, tensor in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if name in behind:
            entry["parameters"] = {SIZE: len(tensor.data)}
            parts.append(tensor.data)
        else:
            entry["data"] = _to_data(name, tensor)
        described.append(entry)
    text = msgspec.json.encode({**head, "outputs": described})
    return b"".join((text, *parts)), len(text) if behind & set(outputs) else None


def _to_data(name: str, tensor: RawTensor) -> list[Any]:
    if tensor.datatype != BYTES:
        array = np.frombuffer(tensor.data, numpy_dtype(tensor.datatype))
        return (array.astype(np.float32) if tensor.datatype == "BF16" else array).tolist()  # type: ignore[no-any-return]
    try:
        return [element.decode() for element in split_elements(tensor.data)]
    except UnicodeDecodeError:
        raise InvalidArgument(f"output {name!r} is no text: ask for it with binary_data") from None
