"""Values of ports <-> JSON (docs/reference/http.md, "Values").

A tensor is `{"dtype", "shape", "data"}` with nested lists, or `{"dtype", "shape", "base64"}` with its bytes, which are
little-endian; bytes are `{"base64"}`. Where a port's type says so, plain lists and base64 texts are taken too.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dataflower.errors import InvalidArgument
from dataflower.gateway.values import datatype_of, from_raw, numpy_dtype, to_array
from dataflower.spec.function import DTYPES, Kind, Port, PortType

_TENSOR_KEYS = ({"dtype", "shape", "data"}, {"dtype", "shape", "base64"})
_OIP = {numpy: oip for oip, numpy in DTYPES.items()}


class Tensors(enum.Enum):
    """How tensors are written."""

    LIST = "list"
    BASE64 = "base64"


def to_json(value: Any, tensors: Tensors = Tensors.LIST) -> Any:
    """A value as JSON can say it; InvalidArgument for an array without a datatype."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, dict):
        return {key: to_json(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, tensors) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    array = to_array(value)
    described: dict[str, Any] = {"dtype": datatype_of(array), "shape": list(array.shape)}
    if tensors is Tensors.BASE64:
        return {**described, "base64": base64.b64encode(array.tobytes()).decode()}
    return {**described, "data": (array.astype(np.float32) if described["dtype"] == "BF16" else array).tolist()}


def from_json(inputs: Mapping[str, Any], ports: Iterable[Port]) -> dict[str, Any]:
    """The inputs of a workflow out of a request; names without a port are left to the host to refuse.

    Raises:
        InvalidArgument: naming the input, what it takes and what came.
    """
    known = {port.name: port for port in ports}
    made: dict[str, Any] = {}
    for name, value in inputs.items():
        port = known.get(name)
        try:
            if port is None:
                made[name] = value
            elif port.stream:
                made[name] = [_value(port.type, item) for item in _items(value)]
            elif value is None and port.optional:
                made[name] = None
            else:
                made[name] = _value(port.type, value)
        except InvalidArgument as error:
            raise InvalidArgument(f"input {name!r}: {error.message}") from None
    return made


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgument("is a stream: give a list of its items")
    return value


def _value(type_: PortType, value: Any) -> Any:
    if type_.kind is Kind.TENSOR:
        return _tensor(type_, value)
    if type_.kind is Kind.BYTES:
        return _base64(value["base64"] if isinstance(value, dict) and set(value) == {"base64"} else value)
    if type_.kind is Kind.FLOAT and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _any(value) if type_.kind is Kind.ANY else value


def _any(value: Any) -> Any:
    """Where no type is declared, tensors and bytes are known by their keys, however deep they lie."""
    if isinstance(value, dict):
        keys = set(value)
        if keys in _TENSOR_KEYS:
            return _tensor(PortType(Kind.TENSOR), value)
        if keys == {"base64"}:
            return _base64(value["base64"])
        return {key: _any(item) for key, item in value.items()}
    return [_any(item) for item in value] if isinstance(value, list) else value


def _tensor(type_: PortType, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, dict):
        return exact_array(value, type_.dtype)
    if set(value) not in _TENSOR_KEYS:
        raise InvalidArgument(f"a {type_} is a list, or an object with dtype, shape and data (or base64)")
    dtype, shape = value["dtype"], value["shape"]
    dtype = _OIP.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InvalidArgument("dtype must be a name such as FP32, shape a list of whole numbers")
    if "base64" in value:
        return from_raw(_base64(value["base64"]), dtype, tuple(shape))
    array = exact_array(value["data"], dtype)
    if any(size < 0 for size in shape) or array.size != int(np.prod(shape, dtype=object)):
        raise InvalidArgument(f"shape {shape} does not fit the {array.size} elements in data")
    return array.reshape(shape)


def exact_array(value: Any, dtype: str) -> np.ndarray[Any, Any]:
    """Numbers in the wanted type ("" = their own); floats may be rounded.

    Raises:
        InvalidArgument: these are no numbers, or one does not fit the type.
    """
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise InvalidArgument(f"is no tensor: {error}") from None
    if given.dtype.kind not in "biuf":
        raise InvalidArgument(f"is no tensor: it holds {given.dtype.name} instead of numbers")
    if not dtype:
        return given
    wanted = numpy_dtype(dtype)
    if wanted.kind in "iu" and given.dtype.kind == "f":
        return _whole(value, wanted, dtype)  # numpy has no type for small and large ones together, and rounds
    with np.errstate(all="ignore"):
        array = given.astype(wanted)
    if wanted.kind in "biu" and not np.array_equal(array.astype(given.dtype), given):
        raise InvalidArgument(f"a number in it does not fit into {dtype}")
    return array


def _whole(value: Any, wanted: np.dtype[Any], dtype: str) -> np.ndarray[Any, Any]:
    numbers = np.asarray(value, object)
    limits = np.iinfo(wanted)
    if not all(limits.min <= number <= limits.max and number == int(number) for number in numbers.flat):
        raise InvalidArgument(f"a number in it does not fit into {dtype}")
    return numbers.astype(wanted)


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidArgument(f"bytes are a base64 text, not {type(value).__name__}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"is not base64: {error}") from None
