"""The little that the core must know about the inside of a value: scalars for `switch`, keys for `keyed`, constants."""

from __future__ import annotations

from typing import Any

import msgpack

from dataflower.core.payload import Payload
from dataflower.wire import EXT_INLINE_TENSOR, EXT_TENSOR, Value


class Opaque(ValueError):
    """The value is too large to travel in a message, so the host can't look into it."""


EMPTY = Value(body=msgpack.packb(None))
"""What a control token carries."""


def constant(value: Any) -> Value:
    """A plain value (no tensors) as a token."""
    return Value(body=msgpack.packb(value))


def look(payload: Payload) -> Any:
    """What an expression sees of a payload: tensors show as `{"dtype", "shape"}`. Raises Opaque."""
    if isinstance(payload, tuple):
        return [look(value) for value in payload]
    if payload.spilled is not None:
        raise Opaque("the value is too large to look into; give the switch a small field of its own")

    def extension(code: int, data: bytes) -> Any:
        if code == EXT_TENSOR:
            ref = payload.tensors[msgpack.unpackb(data)]
            return {"dtype": ref.dtype, "shape": list(ref.shape)}
        if code == EXT_INLINE_TENSOR:
            dtype, shape, _ = msgpack.unpackb(data)
            return {"dtype": dtype, "shape": shape}
        return None

    return msgpack.unpackb(payload.body, ext_hook=extension, strict_map_key=False)


def split_key(value: Value) -> tuple[Any, Value]:
    """Key and value of an item of a `keyed` edge. Raises Opaque, or ValueError if it isn't `{"key", "value"}`."""
    if value.spilled is not None:
        raise Opaque("an item of a keyed edge must fit in a message; send its bulk as a tensor")
    item = msgpack.unpackb(value.body, strict_map_key=False)
    if not isinstance(item, dict) or "key" not in item or "value" not in item:
        raise ValueError('an item of a keyed edge must be {"key": ..., "value": ...}')
    key = item["key"]
    if not isinstance(key, str | int | float | bool):
        raise ValueError(f"a key must be a string, a number or a bool, not {type(key).__name__}")
    return key, Value(body=msgpack.packb(item["value"]), tensors=value.tensors)
