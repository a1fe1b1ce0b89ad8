"""Payloads of behaviours as wire values, their tensors in slots that exist only as numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from dataflower.core.events import Slot
from dataflower.testing.behaviour import FakeTensor
from dataflower.wire import EXT_TENSOR, TensorRef, Value

Allocate = Callable[[FakeTensor], TensorRef]
"""Finds a place for a tensor that has none."""


def pack(payload: Any, allocate: Allocate) -> Value:
    """A value; a tensor that lies somewhere already is passed on by reference."""
    refs: list[TensorRef] = []

    def extension(item: Any) -> msgpack.ExtType:
        if not isinstance(item, FakeTensor):
            raise TypeError(f"no payload holds a {type(item).__name__}")
        refs.append(item.ref if item.ref is not None else allocate(item))
        return msgpack.ExtType(EXT_TENSOR, msgpack.packb(len(refs) - 1))

    return Value(msgpack.packb(payload, default=extension), tuple(refs))


def plain(payload: Any) -> Value:
    """A value without tensors."""

    def refuse(tensor: FakeTensor) -> TensorRef:
        raise TypeError(f"{tensor} needs a slot")

    return pack(payload, refuse)


def unpack(value: Value) -> Any:
    """The payload of a value; its tensors remember where they lie."""

    def extension(code: int, data: bytes) -> FakeTensor:
        if code != EXT_TENSOR:
            raise ValueError(f"extension {code} in a payload")
        ref = value.tensors[msgpack.unpackb(data)]
        return FakeTensor(ref.shape[0], ref)

    return msgpack.unpackb(value.body, ext_hook=extension, strict_map_key=False)


def slots_of(value: Value) -> tuple[Slot, ...]:
    """The slots that a value refers to, each once."""
    refs = (*value.tensors, value.spilled) if value.spilled is not None else value.tensors
    return tuple(dict.fromkeys((ref.arena, ref.slot) for ref in refs))
