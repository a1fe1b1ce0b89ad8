"""Whether a value is what a port carries. A host checks inputs with it, a container what a function hands out."""

from __future__ import annotations

from typing import Any

from dataflower.errors import InvalidArgument
from dataflower.spec.function import DTYPES, Kind, Port

_NUMPY_NAMES = {numpy: name for name, numpy in DTYPES.items()}


def check_value(port: Port, value: Any, sizes: dict[str, int]) -> None:
    """Check one value (of a stream port: one item).

    `sizes`: the named sizes met so far in this task; those met here are added. A tensor is anything with `dtype` and
    `shape` (numpy, torch). None is fine for an optional port whose default it is.

    Raises:
        InvalidArgument: with the port, what it expects and what it got.
    """
    kind = port.type.kind
    if kind is Kind.ANY or (value is None and port.optional and port.default is None):
        return
    if kind is Kind.TENSOR:
        _check_tensor(port, value, sizes)
    elif kind is Kind.JSON:
        where = _not_json(value)
        if where is not None:
            raise _wrong(port, f"{where[1]} at {where[0]}" if where[0] else where[1])
    elif not _is_scalar(kind, value):
        raise _wrong(port, describe(value))


def describe(value: Any) -> str:
    """A value's type as the messages show it: `FP32[2, 3]`, `str`."""
    dtype, shape = _dtype(value), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return "nothing (None)" if value is None else type(value).__name__
    return f"{dtype}[{', '.join(str(size) for size in shape)}]"


def _check_tensor(port: Port, value: Any, sizes: dict[str, int]) -> None:
    dtype, shape = _dtype(value), getattr(value, "shape", None)
    if dtype is None or shape is None:
        raise _wrong(port, describe(value))
    if port.type.dtype and dtype != port.type.dtype:
        raise _wrong(port, describe(value))
    if port.type.shape is None:
        return
    if len(shape) != len(port.type.shape):
        raise _wrong(port, f"{describe(value)} (rank {len(shape)} instead of {len(port.type.shape)})")
    met: dict[str, int] = {}
    for wanted, size in zip(port.type.shape, map(int, shape), strict=True):
        known = wanted if isinstance(wanted, int) else met.get(wanted, sizes.get(wanted, size))
        if size != known:
            named = f" ({wanted} is {known} in this task)" if isinstance(wanted, str) else ""
            raise _wrong(port, f"{describe(value)}{named}")
        if isinstance(wanted, str):
            met[wanted] = size
    sizes.update(met)


def _dtype(value: Any) -> str | None:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    return _NUMPY_NAMES.get(name, name)


def _is_scalar(kind: Kind, value: Any) -> bool:
    """Scalars of numpy count as what they hold."""
    held = (_dtype(value) or "") if getattr(value, "shape", None) == () else ""
    if kind is Kind.STRING:
        return isinstance(value, str)
    if kind is Kind.BYTES:
        return isinstance(value, bytes | bytearray | memoryview)
    if kind is Kind.BOOL:
        return isinstance(value, bool) or held == "BOOL"
    whole = (isinstance(value, int) and not isinstance(value, bool)) or held.startswith(("INT", "UINT"))
    return whole or (kind is Kind.FLOAT and (isinstance(value, float) or held.startswith(("FP", "BF"))))


def _not_json(value: Any, path: str = "") -> tuple[str, str] | None:
    """Where in the value the first thing stands that JSON has not, and what it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if (found := _not_json(item, f"{path}[{index}]")) is not None:
                return found
        return None
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return path, f"a map with the key {key!r}"
            if (found := _not_json(item, f"{path}.{key}")) is not None:
                return found
        return None
    return path, describe(value)


def _wrong(port: Port, got: str) -> InvalidArgument:
    return InvalidArgument(f"port {port.name!r} expects {port.type}, got {got}")
