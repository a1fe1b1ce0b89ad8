"""User values at the host's border: from callers into shared memory, out of it again, and to and from the journal.

A blob is a MessagePack map from port to value, where a value is itself MessagePack as `channel.tensor` writes it,
with tensors inside; a stream is the list of such values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from dataflower.channel.tensor import Uncopied, decode, encode, encode_ports
from dataflower.channel.views import Views
from dataflower.errors import Code, DataflowerError, InvalidArgument, ResourceExhausted
from dataflower.host.input_arenas import InputArenas
from dataflower.wire import Value

Recorded = bytes | list[bytes]
_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.Decoder(dict[str, Recorded]).decode


def _always(released: int) -> bool:
    return True


def size_of(value: Value) -> int:
    """Bytes of a value as it lies in messages and arenas."""
    size = len(value.body)
    for ref in value.tensors:
        size += ref.nbytes
    return size if value.spilled is None else size + value.spilled.nbytes


class Border:
    """Packs what callers give and unpacks what they get. Never waits: a full arena is an error."""

    def __init__(self, arenas: InputArenas, views: Views, max_input_bytes: int) -> None:
        """`arenas`: the host's own. `views`: of every arena that outputs may lie in."""
        self._arenas = arenas
        self._views = views
        self._max = max_input_bytes

    def pack(self, workflow: str, values: Mapping[str, Any], uncopied: Uncopied | None = None) -> dict[str, Value]:
        """Inputs of one invocation. Raises InvalidArgument and ResourceExhausted; nothing stays allocated then.

        `uncopied`: takes up what the caller is to copy.
        """
        try:
            arena = self._arenas.of(workflow)
            packed = encode_ports(values, arena=arena, views=None, cancelled=_always, uncopied=uncopied)
        except DataflowerError as error:
            if error.code is Code.CANCELLED:  # the arena would have had to wait
                raise ResourceExhausted("no shared memory left for inputs; try again", retry_after_s=1.0) from error
            raise
        size = 0
        for value in packed.values():
            size += size_of(value)
        if size > self._max:
            self.release(packed)
            raise ResourceExhausted(f"the inputs have {size} bytes, more than the allowed {self._max}")
        return packed

    def release(self, packed: Mapping[str, Value]) -> None:
        """Free inputs that nobody was given."""
        slots = {
            (ref.arena, ref.slot)
            for value in packed.values()
            for ref in (*value.tensors, *(() if value.spilled is None else (value.spilled,)))
        }
        self._arenas.release(slots)

    def view(self, value: Value) -> Any:
        """A value whose tensors are read-only views, valid until its slots are let go."""
        return decode(value, self._views)

    def copy(self, value: Value) -> Any:
        """A value of the caller's own."""
        return decode(value, self._views, copy=True)

    def record(self, value: Value) -> bytes:
        """A value for a blob, tensors inside."""
        if not value.tensors and value.spilled is None:
            return value.body
        return encode(decode(value, self._views), arena=None, views=None).body


def pack_blob(values: Mapping[str, Recorded]) -> bytes:
    """Values as `Border.record` and `record_inputs` give them, as one blob."""
    return _pack(values)


def record_inputs(inputs: Mapping[str, Any]) -> bytes:
    """The inputs of a submitted invocation as a blob. Raises InvalidArgument for what can't be packed."""
    packed = encode_ports(inputs, arena=None, views=None)
    return _pack({name: value.body for name, value in packed.items()})


def read_blob(blob: bytes) -> dict[str, Any]:
    """The plain values of a blob, streams as lists."""
    return {
        name: [_read(item) for item in body] if isinstance(body, list) else _read(body)
        for name, body in _unpack(blob).items()
    }


def _read(body: bytes) -> Any:
    return decode(Value(body=body), None, copy=True)


def fingerprint(inputs: Mapping[str, Any]) -> bytes:
    """The same for the same inputs, whatever the order of the keys of their maps."""
    return hashlib.sha256(record_inputs({name: _sorted(inputs[name]) for name in sorted(inputs)})).digest()


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidArgument("maps among the inputs must have strings as keys")
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value
