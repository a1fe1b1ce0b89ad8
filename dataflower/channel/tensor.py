"""User values to and from `wire.Value`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dataflower.channel.arena import Arena
from dataflower.channel.views import Views
from dataflower.wire import Value

INLINE_TENSOR_BYTES = 8192
INLINE_BODY_BYTES = 32768


def encode(
    value: Any,
    *,
    arena: Arena | None,
    views: Views | None,
    cancelled: Callable[[], bool] | None = None,
    inline_tensor_bytes: int = INLINE_TENSOR_BYTES,
    inline_body_bytes: int = INLINE_BODY_BYTES,
    name: str = "out",
) -> Value:
    """Pack a user value. Slots that the result names must be released by its receivers.

    Arrays that live in `arena` or `views` go by reference (own arrays become read-only), others are copied once into the
    arena, small ones ride inside. Without an arena everything rides inside. On any error nothing stays allocated.
    `name` is the root of paths in messages. Raises InvalidArgument (naming type and path), and what `Arena.allocate` raises.
    """
    raise NotImplementedError


def encode_ports(
    values: Mapping[str, Any],
    *,
    arena: Arena | None,
    views: Views | None,
    cancelled: Callable[[], bool] | None = None,
    inline_tensor_bytes: int = INLINE_TENSOR_BYTES,
    inline_body_bytes: int = INLINE_BODY_BYTES,
) -> dict[str, Value]:
    """`encode` for the ports of one message: all or nothing, and two ports may name the same own slot."""
    raise NotImplementedError


def decode(value: Value, views: Views | None, *, copy: bool = False) -> Any:
    """Unpack. Tensors are read-only zero-copy numpy arrays (BF16: torch tensors if torch is loaded, else `Bf16Bits`).

    `copy`: writable copies instead, nothing held. Raises ValueError for a value that does not hold together.
    """
    raise NotImplementedError


def empty(
    arena: Arena, shape: Sequence[int], dtype: Any = "FP32", *, cancelled: Callable[[], bool] | None = None
) -> np.ndarray[Any, Any]:
    """A writable array already in the arena; returning or yielding it copies nothing (and makes it read-only).

    `dtype`: a numpy dtype, or a name in either spelling of `spec.function.DTYPES`.
    """
    raise NotImplementedError


def to_torch(view: np.ndarray[Any, Any]) -> Any:
    """A torch tensor on the same memory (small arrays are copied). Read-only: an in-place write to it kills the process."""
    raise NotImplementedError


class Bf16Bits(np.ndarray[Any, Any]):
    """BF16 data in a process without torch: the raw bits as uint16, encoded as BF16 again. No arithmetic."""
