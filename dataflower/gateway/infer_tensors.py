"""Tensors of the Open Inference Protocol <-> values of typed ports (docs/reference/inference.md).

A tensor port maps to a tensor; a number or truth value to one element; text, bytes and JSON to one BYTES element. A
stream has one more dimension in front: its items.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflower.errors import InvalidArgument
from dataflower.gateway.values import datatype_of, from_raw, numpy_dtype, to_array
from dataflower.spec.function import Kind, Port, PortType

BYTES = "BYTES"

_SCALARS = {Kind.INT: "INT64", Kind.FLOAT: "FP64", Kind.BOOL: "BOOL"}
_ACCEPTED = {Kind.INT: "iu", Kind.FLOAT: "fiu", Kind.BOOL: "b"}
"""numpy kinds of the tensors from which a scalar port may be fed."""
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as it travels: `data` little-endian, BYTES elements each behind their 4-byte length."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


def metadata_of(port: Port) -> tuple[str, tuple[int, ...]]:
    """Datatype and shape that ModelMetadata shows; -1 for a size that is not fixed, BYTES where no type is declared."""
    type_ = port.type
    front = (-1,) if port.stream else ()
    if type_.kind is Kind.TENSOR and type_.dtype:
        sizes = (-1,) if type_.shape is None else tuple(d if isinstance(d, int) else -1 for d in type_.shape)
        return type_.dtype, front + sizes
    return _SCALARS.get(type_.kind, BYTES), front or (1,)


def decode_input(port: Port, tensor: Any, raw: Any) -> Any:
    """The value for `port` of a ModelInferRequest's input tensor.

    `raw`: its entry in `raw_input_contents` (bytes, or a view of them for all but BYTES tensors), None if the request
    uses typed contents. Arrays are read-only views of the message. InvalidArgument if tensor and port, or shape and
    contents, don't fit.
    """
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise InvalidArgument(f"input {port.name!r}: shape {list(shape)} has a negative size")
    try:
        if tensor.datatype == BYTES:
            elements = split_elements(raw) if raw is not None else list(tensor.contents.bytes_contents)
            _check_count(len(elements), shape)
            return _from_elements(port, elements, shape)
        array = from_raw(raw, tensor.datatype, shape) if raw is not None else _from_contents(tensor, shape)
        return _from_array(port, array, tensor.datatype)
    except InvalidArgument as error:
        raise InvalidArgument(f"input {port.name!r}: {error.message}") from None


def encode_output(port: Port, value: Any) -> RawTensor:
    """The tensor for an output; a stream's items are stacked if they are arrays of one shape, else JSON texts each."""
    items = list(value) if port.stream else [value]
    if port.type.kind in _SCALARS:
        datatype = _SCALARS[port.type.kind]
        return _raw(np.array(items, numpy_dtype(datatype)))
    if _is_stack(items):
        arrays = [to_array(item) for item in items]
        return _raw(np.stack(arrays) if port.stream else arrays[0])
    if not items and port.type.kind is Kind.TENSOR and port.type.dtype:
        datatype, shape = metadata_of(port)
        return RawTensor(datatype, tuple(max(size, 0) for size in shape), b"")
    elements = [_element(port.type, item) for item in items]
    return RawTensor(BYTES, (len(elements),), b"".join(struct.pack("<I", len(e)) + e for e in elements))


# --- in ---


def _from_array(port: Port, array: np.ndarray[Any, Any], datatype: str) -> Any:
    kind = port.type.kind
    if kind in _ACCEPTED:
        if array.dtype.kind not in _ACCEPTED[kind]:
            raise InvalidArgument(f"takes {port.type}, not {datatype}")
        return _single(port, [_SCALAR_TYPES[kind](item) for item in array.ravel().tolist()])
    if kind not in (Kind.TENSOR, Kind.ANY):
        raise InvalidArgument(f"takes {port.type} in a BYTES tensor, not {datatype}")
    if kind is Kind.TENSOR and port.type.dtype not in ("", datatype):
        raise InvalidArgument(f"takes {port.type}, not {datatype}{list(array.shape)}")
    if port.stream and not array.ndim:
        raise InvalidArgument("a stream needs a first dimension: its items")
    _check_shape(port.type, array.shape[1:] if port.stream else array.shape, datatype)
    return list(array) if port.stream else array


_SCALAR_TYPES: dict[Kind, type] = {Kind.INT: int, Kind.FLOAT: float, Kind.BOOL: bool}


def _check_shape(type_: PortType, shape: tuple[int, ...], datatype: str) -> None:
    if type_.shape is None:
        return
    named: dict[str, int] = {}
    fits = len(type_.shape) == len(shape)
    for wanted, size in zip(type_.shape, shape, strict=False):
        fits = fits and size == (wanted if isinstance(wanted, int) else named.setdefault(wanted, size))
    if not fits:
        raise InvalidArgument(f"takes {type_}, not {datatype}{list(shape)}")


def _from_elements(port: Port, elements: Sequence[bytes], shape: tuple[int, ...]) -> Any:
    kind = port.type.kind
    if kind is Kind.TENSOR or kind in _SCALARS:
        raise InvalidArgument(f"takes {port.type}, not BYTES{list(shape)}")
    if kind is Kind.BYTES:
        return _single(port, elements)
    texts = []
    for element in elements:
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    if kind is Kind.STRING:
        return _single(port, texts)
    return _single(port, [_parse(text, strict=kind is Kind.JSON) for text in texts])


def _parse(text: str, *, strict: bool) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if strict:
            raise InvalidArgument(f"is not JSON: {error}") from None
        return text


def _single(port: Port, items: Sequence[Any]) -> Any:
    if port.stream:
        return list(items)
    if len(items) != 1:
        raise InvalidArgument(f"takes one element, not {len(items)}")
    return items[0]


def split_elements(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its length; InvalidArgument if one is cut off."""
    elements, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise InvalidArgument("its BYTES contents are cut off inside a length")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            raise InvalidArgument(f"its BYTES contents are cut off: an element of {size} bytes at byte {at}")
        elements.append(raw[at : at + size])
        at += size
    return elements


def _from_contents(tensor: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    dtype = numpy_dtype(tensor.datatype)
    if tensor.datatype not in _CONTENTS:
        raise InvalidArgument(f"{tensor.datatype} travels in raw_input_contents only")
    contents = getattr(tensor.contents, _CONTENTS[tensor.datatype])
    _check_count(len(contents), shape)
    wide = np.array(contents, {"i": np.int64, "u": np.uint64}.get(dtype.kind, dtype))
    array = wide.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(wide, array):
        raise InvalidArgument(f"a number in its contents does not fit into {tensor.datatype}")
    return array.reshape(shape)


def _check_count(count: int, shape: tuple[int, ...]) -> None:
    if count != math.prod(shape):
        raise InvalidArgument(f"shape {list(shape)} takes {math.prod(shape)} elements, but {count} were sent")


# --- out ---


def _is_stack(items: Sequence[Any]) -> bool:
    return bool(items) and all(
        hasattr(item, "__array__")
        and not isinstance(item, np.generic)
        and item.shape == items[0].shape
        and item.dtype == items[0].dtype
        for item in items
    )


def _raw(array: np.ndarray[Any, Any]) -> RawTensor:
    return RawTensor(datatype_of(array), array.shape, array.tobytes())


def _element(type_: PortType, item: Any) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if type_.kind is Kind.STRING and isinstance(item, str):
        return item.encode()
    return json.dumps(item, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "__array__"):
        return to_array(value).tolist()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    raise InvalidArgument(f"an output holds a {type(value).__qualname__}, which JSON can't")
