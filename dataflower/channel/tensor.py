"""User values to and from `wire.Value`.

What a value may be: None, bool, int (64 bits), float, str, bytes, lists, tuples (they become lists), dicts with string
keys, numpy arrays and scalars (scalars become Python's), torch tensors on the CPU. Subclasses of these (OrderedDict,
Counter, named tuples, IntEnum) become the plain type. Anything else is refused with its place in the value.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from dataflower.channel import plain
from dataflower.channel.arena import Arena, Slot
from dataflower.channel.torches import INLINE_TENSOR_BYTES, Array, Bf16Bits, to_torch
from dataflower.channel.views import NUMPY_DTYPES, Views
from dataflower.errors import DataLost
from dataflower.spec.function import DTYPES
from dataflower.wire import EXT_INLINE_TENSOR, EXT_TENSOR, TensorRef, Value

INLINE_BODY_BYTES = 32768
"""Longer bodies go to the arena."""

UNCOPIED_BYTES = 16 << 20
"""Smaller arrays are copied at once: to hand one to another thread costs .2 to .3 ms of computing time in all, and to
copy this many bytes 1.2 ms."""

_pack = msgpack.packb
_unpack = msgpack.unpackb
# One packer for small values of plain types, which call nobody back: a new one each time takes four times as long.
# It keeps the room of the largest that it ever packed.
_pack_plain = msgpack.Packer().pack
_ONE_TENSOR = _pack(msgpack.ExtType(EXT_TENSOR, _pack(0)))
"""Body of a value that is an array by reference and nothing else, which is what most large values are."""


class Uncopied:
    """What of a message's arrays has room in the arena and is still to be copied there, before the message leaves.

    Large arrays that are a port's whole value; with `anywhere` also those inside lists and dicts, and torch tensors.
    """

    __slots__ = ("_anywhere", "_least_bytes", "arrays", "made", "places")

    def __init__(self, least_bytes: int = UNCOPIED_BYTES, *, anywhere: bool = False) -> None:
        self._least_bytes = least_bytes
        self._anywhere = anywhere
        self.places: list[tuple[str, Slot]] = []
        """Ports whose value is such an array, and where it goes."""
        self.arrays: list[tuple[Slot, Array]] = []
        """With `anywhere`: the arrays themselves, and where they go."""
        self.made: list[tuple[int, int]] = []
        """All slots that were taken for the message, to be released as unsent if it never leaves."""

    def takes(self, port: str | None, slot: Slot, array: Array) -> bool:
        """Whether an array is copied later. `port`: whose whole value it is."""
        if array.nbytes < self._least_bytes:
            return False
        if self._anywhere:
            self.arrays.append((slot, array))
        elif port is not None:
            self.places.append((port, slot))
        else:
            return False
        return True


class _Encoder:
    """What the values of one message share: where tensors go, and what has to be taken back if one fails."""

    __slots__ = (
        "arena",
        "cancelled",
        "claimed",
        "inline_body_bytes",
        "inline_tensor_bytes",
        "made",
        "tensors",
        "uncopied",
        "views",
    )

    def __init__(
        self,
        arena: Arena | None,
        views: Views | None,
        cancelled: Callable[[int], bool] | None,
        inline_tensor_bytes: int,
        inline_body_bytes: int,
        *,
        uncopied: Uncopied | None = None,
    ) -> None:
        self.uncopied = uncopied
        self.arena, self.views, self.cancelled = arena, views, cancelled
        self.inline_tensor_bytes, self.inline_body_bytes = inline_tensor_bytes, inline_body_bytes
        self.tensors: list[TensorRef] = []
        self.made: list[tuple[int, int]] = []  # slots of our arena that this message names
        self.claimed: set[tuple[int, int]] = set()  # those of them that hold the user's own arrays

    def value(self, value: Any, name: str) -> Value:
        self.tensors = []
        try:
            if type(value) is np.ndarray:
                extension = self._tensor(value, "", name)
                body = _ONE_TENSOR if self.tensors else _pack(extension)
                return Value(body, tuple(self.tensors))
            if type(value) not in plain.TYPES:
                plain.check(value)
            body = _pack(value, default=self._convert, strict_types=True)
        except (plain.Refused, OverflowError, ValueError, UnicodeEncodeError, RecursionError) as error:
            raise plain.explain(value, name, error) from None
        if len(body) > self.inline_body_bytes and self.arena is not None:
            slot = self.arena.allocate(len(body), cancelled=self.cancelled)
            self.made.append((slot.arena, slot.slot))
            slot.buffer[:] = body
            return Value(b"", tuple(self.tensors), slot.ref("BYTES", (len(body),)))
        return Value(body, tuple(self.tensors))

    def take_back(self) -> None:
        if self.made and self.arena is not None:
            self.arena.release(self.made, unsent=True)

    def _convert(self, value: Any) -> Any:
        """What MessagePack doesn't know, as something that it does."""
        if isinstance(value, np.ndarray):
            is_bf16 = isinstance(value, Bf16Bits) and value.dtype == NUMPY_DTYPES["BF16"]  # not after `astype`
            return self._tensor(value, "BF16" if is_bf16 else "")
        if isinstance(value, np.generic):
            return plain.from_scalar(value)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
            return self._tensor(*plain.from_torch(torch, value))
        return plain.from_subclass(value)

    def _tensor(self, array: Array, dtype: str, port: str | None = None) -> msgpack.ExtType:
        """`port`: whose whole value it is."""
        dtype = dtype or plain.array_dtype(array)
        kind = NUMPY_DTYPES[dtype]
        if array.nbytes <= self.inline_tensor_bytes or self.arena is None:
            if array.dtype.isnative or array.dtype.num not in plain.OIP_DTYPES:
                data = array.tobytes()
            else:
                data = array.astype(kind).tobytes()
            return msgpack.ExtType(EXT_INLINE_TENSOR, _pack((dtype, array.shape, data)))
        place = self._place(array) if array.flags.c_contiguous and array.dtype.isnative else None
        if place is None:
            place = self._copy(array, port)
        self.tensors.append(TensorRef(*place, array.nbytes, dtype, array.shape))
        return msgpack.ExtType(EXT_TENSOR, _pack(len(self.tensors) - 1))

    def _place(self, array: Array) -> tuple[int, int, int] | None:
        """Where in shared memory the array already lies, claimed for the receiver; or None."""
        assert self.arena is not None
        address, nbytes = array.__array_interface__["data"][0], array.nbytes
        if self.views is not None and (found := self.views.find(address, nbytes)) is not None:
            return found
        if self.claimed:
            found = self.arena.find(address, nbytes)
            if found is not None and found[:2] in self.claimed:
                return found
        found = self.arena.share(address, nbytes)
        if found is not None:
            self.claimed.add(found[:2])
            self.made.append(found[:2])
            with contextlib.suppress(ValueError):
                array.flags.writeable = False  # it has readers now: a later write through this name is an error
        return found

    def _copy(self, array: Array, port: str | None) -> tuple[int, int, int]:
        assert self.arena is not None
        slot = self.arena.allocate(array.nbytes, cancelled=self.cancelled)
        self.made.append((slot.arena, slot.slot))
        if self.uncopied is None or not self.uncopied.takes(port, slot, array):
            copy_into(slot, array)
        return slot.arena, slot.slot, slot.slot


def copy_into(slot: Slot, array: Array) -> None:
    """Write an array into a slot of its size, in the order of its elements. Other threads run meanwhile."""
    kind = NUMPY_DTYPES[plain.array_dtype(array)]
    source = array if array.dtype.num in plain.OIP_DTYPES else array.view(kind)
    np.copyto(np.ndarray(array.shape, kind, slot.buffer), source.view(np.ndarray))


def encode(
    value: Any,
    *,
    arena: Arena | None,
    views: Views | None,
    cancelled: Callable[[int], bool] | None = None,
    inline_tensor_bytes: int = INLINE_TENSOR_BYTES,
    inline_body_bytes: int = INLINE_BODY_BYTES,
    name: str = "out",
) -> Value:
    """Pack a user value. Slots that the result names must be released by its receivers.

    Arrays that live in `views` or are made by `arena.array` go by reference (the latter become read-only), others are
    copied once into the arena, small ones ride inside. Without an arena everything rides inside. On any error nothing
    stays allocated. `name` is the root of paths in messages. Raises InvalidArgument (with type and path), and what
    `Arena.allocate` raises.
    """
    if (quick := _quick(value, arena, views, inline_body_bytes)) is not None:
        return quick
    encoder = _Encoder(arena, views, cancelled, inline_tensor_bytes, inline_body_bytes)
    try:
        return encoder.value(value, name)
    except BaseException:
        encoder.take_back()
        raise


def encode_ports(
    values: Mapping[str, Any],
    *,
    arena: Arena | None,
    views: Views | None,
    cancelled: Callable[[int], bool] | None = None,
    inline_tensor_bytes: int = INLINE_TENSOR_BYTES,
    inline_body_bytes: int = INLINE_BODY_BYTES,
    uncopied: Uncopied | None = None,
) -> dict[str, Value]:
    """`encode` for the ports of one message: all or nothing, and two ports may name the same own slot.

    `uncopied`: takes up the large arrays that the caller will copy (`copy_into`).
    """
    if len(values) == 1:
        ((name, value),) = values.items()
        if (quick := _quick(value, arena, views, inline_body_bytes)) is not None:
            return {name: quick}
    encoder = _Encoder(arena, views, cancelled, inline_tensor_bytes, inline_body_bytes, uncopied=uncopied)
    try:
        encoded = {name: encoder.value(value, name) for name, value in values.items()}
        if uncopied is not None:
            uncopied.made = encoder.made
        return encoded
    except BaseException:
        encoder.take_back()
        raise


def _quick(value: Any, arena: Arena | None, views: Views | None, inline_body_bytes: int) -> Value | None:
    """The two cases that need no encoder: plain values of moderate size, and arrays passed on just as they came."""
    kind = type(value)
    if kind in plain.TYPES:
        large = (kind is bytes or kind is str) and len(value) > inline_body_bytes
        if large and arena is not None:
            return None
        try:
            body = _pack(value) if large else _pack_plain(value)
        except (OverflowError, ValueError):  # refused by the encoder, with the reason
            return None
        if len(body) <= inline_body_bytes or arena is None:
            return Value(body)
    elif kind is np.ndarray and arena is not None and views is not None:
        ref = views.given(value)
        if ref is not None:
            return Value(_ONE_TENSOR, (ref,))
    return None


def decode(value: Value, views: Views | None, *, copy: bool = False) -> Any:
    """Unpack. Tensors are read-only zero-copy numpy arrays (BF16: torch tensors if torch is loaded, else `Bf16Bits`).

    `copy`: writable copies instead, nothing held. Raises ValueError for a value that does not hold together, DataLost
    for one whose bytes are gone.
    """

    try:
        if value.spilled is None:
            if value.body == _ONE_TENSOR:
                return _referred(value, views, 0, copy)
            if not value.tensors and not copy:
                return _unpack(value.body, ext_hook=_inline)
        return _decode(value, views, copy)
    except DataLost:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"a value does not hold together: {error}") from error


def _decode(value: Value, views: Views | None, copy: bool) -> Any:
    """Any value."""

    def extension(code: int, data: bytes) -> Any:
        if code == EXT_TENSOR:
            return _referred(value, views, _unpack(data), copy)
        return _inline(code, data, copy)

    if value.spilled is None:
        return _unpack(value.body, ext_hook=extension)
    if views is None:
        raise ValueError("a body by reference where no arena is attached")
    return _unpack(views.view(value.spilled).data, ext_hook=extension)


def _referred(value: Value, views: Views | None, index: int, copy: bool) -> Any:
    """An array by reference. Raises ValueError."""
    if views is None:
        raise ValueError("a tensor by reference where no arena is attached")
    if not 0 <= index < len(value.tensors):
        raise ValueError(f"tensor {index} of {len(value.tensors)}")
    ref = value.tensors[index]
    array = views.array(ref)
    if copy:
        array = array.copy()
    return _bf16(array) if ref.dtype == "BF16" else array


def _inline(code: int, data: bytes, copy: bool = False) -> Any:
    """An array inside a message. Raises ValueError."""
    if code != EXT_INLINE_TENSOR:
        raise ValueError(f"extension {code} where only arrays inside the message may be")
    dtype, shape, content = _unpack(data)
    kind = NUMPY_DTYPES[dtype]
    if math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"{dtype}{shape} does not take {len(content)} bytes")
    array: Array = np.ndarray(shape, kind, content)
    if copy:
        array = array.copy()
    return _bf16(array) if dtype == "BF16" else array


def empty(
    arena: Arena, shape: Sequence[int], dtype: Any = "FP32", *, cancelled: Callable[[int], bool] | None = None
) -> Any:
    """A writable array already in the arena; returning or yielding it copies nothing (and makes it read-only).

    `dtype`: a numpy dtype, or a name in either spelling of `spec.function.DTYPES` (BF16 gives `Bf16Bits`); or a torch
    dtype, which gives a torch tensor. TypeError if it has no name there.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, getattr(torch, "dtype", ())):
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES.values():
            raise TypeError(f"{dtype} can't be handed on; what can: {', '.join(DTYPES.values())}")
        return to_torch(empty(arena, shape, name, cancelled=cancelled))
    if isinstance(dtype, str):
        dtype = DTYPES.get(dtype, dtype)
        if dtype == "bfloat16":
            return arena.array(shape, NUMPY_DTYPES["BF16"], cancelled=cancelled).view(Bf16Bits)
    return arena.array(shape, dtype, cancelled=cancelled)


def _bf16(array: Array) -> Any:
    bits = array.view(Bf16Bits)
    return to_torch(bits) if "torch" in sys.modules else bits
