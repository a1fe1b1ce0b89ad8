"""Python values <-> `dataflower.v1.Value`.

Going out, a tensor is copied once (into the message); coming in, the array is a read-only view of the message's bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dataflower.errors import InvalidArgument
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.spec.function import DTYPES

MAX_DEPTH = 30
"""Lists and maps inside each other; protobuf readers give up soon after."""

_DATATYPES = {numpy: datatype for datatype, numpy in DTYPES.items()}
_INT64 = range(-(2**63), 2**63)


def datatype_of(array: np.ndarray[Any, Any]) -> str:
    """Open Inference Protocol datatype of an array; InvalidArgument if there is none (strings, objects, dates)."""
    try:
        return _DATATYPES[array.dtype.name]
    except KeyError:
        raise InvalidArgument(f"an array of {array.dtype} has no datatype here; known: {', '.join(DTYPES)}") from None


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The numpy type of a datatype; InvalidArgument if it is unknown. BF16 needs the package `ml_dtypes`."""
    name = DTYPES.get(datatype)
    if name is None:
        raise InvalidArgument(f"unknown datatype {datatype!r}; known: {', '.join(DTYPES)}")
    if datatype == "BF16":
        try:
            import ml_dtypes
        except ImportError:
            raise InvalidArgument("BF16 tensors need the package ml_dtypes (pip install ml_dtypes)") from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def to_array(value: Any) -> np.ndarray[Any, Any]:
    """Anything with `__array__` as a contiguous little-endian array, without a copy if it is one already."""
    if not isinstance(value, np.ndarray):
        value = _from_torch(value) if type(value).__module__ == "torch" else np.asarray(value)
    if value.dtype.byteorder == ">":
        value = value.astype(value.dtype.newbyteorder("<"))
    return value  # type: ignore[no-any-return]


def _from_torch(value: Any) -> np.ndarray[Any, Any]:
    value = value.detach()
    torch = sys.modules["torch"]
    if value.dtype is torch.bfloat16:  # numpy has no such type, torch no way to name the one of ml_dtypes
        return value.contiguous().view(torch.int16).numpy().view(numpy_dtype("BF16"))  # type: ignore[no-any-return]
    return value.numpy()  # type: ignore[no-any-return]


def from_raw(data: bytes | memoryview, datatype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A read-only array over little-endian bytes.

    Raises:
        InvalidArgument: their number does not fit the shape, or no array has such a shape.
    """
    dtype = numpy_dtype(datatype)
    if any(size < 0 for size in shape):
        raise InvalidArgument(f"shape {list(shape)} has a negative size")
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != len(data):
        raise InvalidArgument(
            f"{datatype} of shape {list(shape)} takes {count * dtype.itemsize} bytes, but {len(data)} were sent"
        )
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # too many dimensions, or sizes beyond an address space next to one of 0
        raise InvalidArgument(f"a shape of {len(shape)} sizes can't be had: {error}") from None


def encode(value: Any, into: pb.Value, depth: int = 0) -> None:
    """Write a Python value into an empty message.

    Raises:
        InvalidArgument: a type that can't cross, an integer beyond 64 bits, or nesting deeper than `MAX_DEPTH`.
    """
    match value:
        case None:
            into.null = pb.NULL_VALUE_UNSPECIFIED
        case str():
            into.text = _text(value)
        case bool():
            into.boolean = value
        case int():
            if value not in _INT64:
                raise InvalidArgument(f"the integer {value} does not fit in 64 bits with a sign")
            into.integer = value
        case np.generic() if value.dtype.name not in _DATATYPES or value.dtype.kind in "biuf":
            encode(value.item(), into, depth)
        case float():
            into.real = value
        case bytes() | bytearray() | memoryview():
            into.binary = bytes(value)
        case list() | tuple():
            _check(depth)
            values = into.list.values
            into.list.SetInParent()
            for item in value:
                encode(item, values.add(), depth + 1)
        case dict() | Mapping():
            _check(depth)
            entries = into.map.entries
            into.map.SetInParent()
            for key, item in value.items():
                encode(item, entries.add(key=_key(key)).value, depth + 1)
        case _ if hasattr(value, "__array__"):
            _encode_tensor(to_array(value), into.tensor)
        case _:
            raise InvalidArgument(
                f"a {type(value).__module__}.{type(value).__qualname__} can't be sent; "
                "use None, bool, int, float, str, bytes, list, dict or an array"
            )


def encode_map(values: Mapping[str, Any], into: Any) -> None:
    """Write named values into a `map<string, Value>` field.

    Raises:
        InvalidArgument: as in `encode`; the message names the value.
    """
    for name, value in values.items():
        key = _key(name)
        try:
            encode(value, into[key])
        except InvalidArgument as error:
            raise InvalidArgument(f"{name!r}: {error.message}") from None


def decode(message: pb.Value) -> Any:
    """The Python value of a message; a message without a kind is None. InvalidArgument for a broken tensor."""
    kind = message.WhichOneof("kind")
    if kind is None or kind == "null":
        return None
    if kind == "list":
        return [decode(item) for item in message.list.values]
    if kind == "map":
        return {entry.key: decode(entry.value) for entry in message.map.entries}
    if kind == "tensor":
        tensor = message.tensor
        return from_raw(tensor.data, tensor.datatype, tuple(tensor.shape))
    return getattr(message, kind)


def decode_map(fields: Mapping[str, pb.Value]) -> dict[str, Any]:
    """The values of a `map<string, Value>` field."""
    return {name: decode(fields[name]) for name in fields}


def _encode_tensor(array: np.ndarray[Any, Any], into: pb.Tensor) -> None:
    into.datatype = datatype_of(array)
    into.shape.extend(array.shape)
    into.data = array.tobytes()


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidArgument(f"keys are strings, not {type(name).__name__}: {name!r}")
    return _text(name)


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the string {value[:40]!r} is not valid Unicode: {error.reason}") from None
    return value


def _check(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise InvalidArgument(f"values are nested deeper than {MAX_DEPTH} lists and maps")
