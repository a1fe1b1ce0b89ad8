"""What user values may consist of: the rules, conversions to plain types, and messages that name the place."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Set
from typing import Any

import msgpack
import numpy as np

from dataflower.channel.views import NUMPY_DTYPES
from dataflower.errors import InvalidArgument
from dataflower.spec.function import DTYPES

OIP_DTYPES = {
    np.dtype(char).num: next(name for name, kind in NUMPY_DTYPES.items() if kind == np.dtype(char) and name != "BF16")
    for char in "?bBhHiIlLqQefd"
}
"""numpy's number of a dtype (either byte order) -> datatype of the Open Inference Protocol."""
TYPES = frozenset({bytes, str, int, float, bool, type(None)})
"""Types that MessagePack writes as they are and that contain nothing else."""

MAX_DEPTH = 256
"""Levels of lists and dicts in each other; the reader's stack is limited too."""

_ALLOWED = "None, bool, int, float, str, bytes, list, tuple, dict with string keys, numpy arrays, torch tensors"
_DEPTH = "nested too deeply, or it contains itself"


class Refused(Exception):
    """A part of a value that can't travel."""


def check(value: Any, depth: int = 0) -> None:
    """Find what MessagePack would let pass although it must not: keys that are not strings. Raises Refused."""
    if depth > MAX_DEPTH:
        raise RecursionError(_DEPTH)
    if isinstance(value, dict):
        if set(map(type, value)) != {str} and not all(isinstance(key, str) for key in value):
            odd = next(key for key in value if not isinstance(key, str))
            raise Refused(f"dict with the key {odd!r} of type {_type_name(odd)} (keys must be strings)")
        parts: Any = value.values()
    elif isinstance(value, (list, tuple)):
        if isinstance(value, msgpack.ExtType):
            raise Refused(f"{_type_name(value)} (allowed: {_ALLOWED})")
        parts = value
    elif isinstance(value, msgpack.Timestamp):
        raise Refused(f"{_type_name(value)} (send a float)")
    else:
        return
    if not TYPES.issuperset(map(type, parts)):
        for part in parts:
            if type(part) not in TYPES:
                check(part, depth + 1)


def from_subclass(value: Any) -> Any:
    """A subclass of a plain type, or a buffer, as the plain type. Raises Refused for all else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, dict):
        return dict(value)
    if type(value) is int:
        raise Refused("int outside the 64-bit range (send it as a string)")
    # The base type's own method: an enum's `__str__` gives its name, not its value.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise Refused(f"{_type_name(value)} ({_hint(value)})")


def from_scalar(value: np.generic) -> Any:
    """A numpy scalar as a Python one. Raises Refused."""
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, np.floating) and value.dtype.itemsize <= 8:
        return float(value)
    if isinstance(value, (np.str_, np.bytes_)):
        return value.item()
    if value.dtype.name == "bfloat16":
        return float(value)
    raise Refused(f"{_type_name(value)} (convert it to a float, an int or a string)")


def from_torch(torch: Any, tensor: Any) -> tuple[np.ndarray[Any, Any], str]:
    """The tensor's memory as a numpy array, with its datatype if numpy has none such."""
    if tensor.device.type != "cpu":
        raise Refused(f"torch.Tensor on {tensor.device} (move it with .cpu() first)")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise Refused("torch.Tensor that is sparse or quantized (use .to_dense() or .dequantize())")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16), "BF16"
    try:
        return tensor.numpy(), ""
    except (TypeError, RuntimeError) as error:
        raise Refused(f"torch.Tensor of {tensor.dtype} (convert it with .to(torch.float32))") from error


def foreign_dtype(dtype: np.dtype[Any]) -> str:
    """Datatype of a numpy array that numpy itself has no number for: ml_dtypes' bfloat16, or refused."""
    if dtype.name == "bfloat16":
        return "BF16"
    hint = "make it a list of strings" if dtype.kind in "US" else f"convert it to one of {', '.join(DTYPES.values())}"
    raise Refused(f"numpy array of {dtype} ({hint})")


def explain(value: Any, name: str, error: Exception) -> InvalidArgument:
    """The error for the user, with the place of the first offending part."""
    try:
        for path, part in _walk(value, name):
            reason = _reason(part)
            if reason:
                return InvalidArgument(f"{path}: cannot send {reason}")
    except RecursionError:
        pass
    deep = isinstance(error, RecursionError) or "recursion" in str(error)
    return InvalidArgument(f"{name}: cannot send this {_type_name(value)}: {_DEPTH if deep else error}")


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All parts, containers before what they contain."""
    yield path, value
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _walk(part, f'{path}["{key}"]')
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _walk(part, f"{path}[{index}]")


def _reason(part: Any) -> str:
    """Why this part, leaving aside what it contains, can't travel; empty if it can."""
    try:
        if isinstance(part, np.ndarray):
            array_dtype(part)
        elif isinstance(part, np.generic):
            from_scalar(part)
        elif (torch := sys.modules.get("torch")) is not None and isinstance(part, getattr(torch, "Tensor", ())):
            array_dtype(from_torch(torch, part)[0])
        elif isinstance(part, (dict, list, tuple)):
            if isinstance(part, (msgpack.ExtType, dict)):
                check(part if isinstance(part, msgpack.ExtType) else dict.fromkeys(part))
        else:
            msgpack.packb(part, default=from_subclass, strict_types=True)
    except Refused as refused:
        return str(refused)
    except (UnicodeEncodeError, ValueError, OverflowError) as error:
        return f"{_type_name(part)}: {error}"
    return ""


def array_dtype(array: np.ndarray[Any, Any]) -> str:
    """Datatype of an array. Raises Refused if there is none."""
    if isinstance(array, np.ma.MaskedArray):
        raise Refused("masked array (use .filled() or send .data and .mask)")
    return OIP_DTYPES.get(array.dtype.num) or foreign_dtype(array.dtype)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _hint(value: Any) -> str:
    if isinstance(value, type):
        return f"allowed: {_ALLOWED}"
    if isinstance(value, Set):
        return "send sorted(...) or list(...)"
    if isinstance(value, (datetime.date, datetime.time, datetime.datetime)):
        return "send .isoformat()"
    if isinstance(value, datetime.timedelta):
        return "send .total_seconds()"
    if isinstance(value, complex):
        return "send [x.real, x.imag]"
    if isinstance(value, Iterator):
        return "send list(...), or yield its items one by one"
    if hasattr(value, "model_dump"):
        return "send .model_dump(mode='json')"
    if hasattr(value, "__dataclass_fields__"):
        return "send dataclasses.asdict(...)"
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return "send numpy.asarray(...)"
    return f"allowed: {_ALLOWED}"
