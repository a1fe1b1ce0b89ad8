"""BF16 data, which numpy does not know, and torch tensors on the memory of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

INLINE_TENSOR_BYTES = 8192
"""Tensors up to this size ride inside the message."""

Array = np.ndarray[Any, Any]


class Bf16Bits(Array):
    """BF16 data in a process without torch: the raw bits as uint16, encoded as BF16 again. No arithmetic."""

    __array_ufunc__ = None  # type: ignore[assignment]


class _Alias:
    """The memory of a read-only array under numpy's array interface as if it were writable; keeps the array alive."""

    __slots__ = ("__array_interface__", "view")

    def __init__(self, view: Array) -> None:
        self.view = view
        interface = dict(view.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def to_torch(view: Array) -> Any:
    """A torch tensor on the same memory (arrays of up to INLINE_TENSOR_BYTES are copied); `Bf16Bits` become bfloat16.

    Treat it as read-only: torch can't know that it is, and an in-place write to shared memory kills this process.
    """
    import torch

    source = view.view(np.ndarray)
    if not source.flags.writeable:  # torch would warn; the alias says the same in this docstring
        source = source.copy() if source.nbytes <= INLINE_TENSOR_BYTES else np.asarray(_Alias(source))
    if isinstance(view, Bf16Bits):
        return torch.from_numpy(source.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(source)
