"""Products with a fixed weight, laid out in memory as the CPU's matrix kernels want it."""

from __future__ import annotations

import torch
from torch.nn import functional

TYPICAL_ROWS = 8
"""Batch for which oneDNN chooses the layout: a decode step's."""


class Linear:
    """`x @ weight.T + bias`.

    Packed, it holds a copy of the weight in oneDNN's own layout (torch re-packs a plain bf16 weight at every product);
    unpacked, the weight is used where it lies, so that processes may share it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, packed: bool = True) -> None:
        self.features = weight.shape[0]
        self._bias = bias
        self._packed = packed and can_pack(weight)
        self._weight = weight
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        if self._packed:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return out
        return functional.linear(x, self._weight, self._bias)

    def add(self, x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """`to + x @ weight.T + bias`, in one pass where the kernel can."""
        if self._packed:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, to, self._weight, self._bias, "add")
            return out
        return to + functional.linear(x, self._weight, self._bias)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether there is a packed layout for a weight of this kind on this machine."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32
