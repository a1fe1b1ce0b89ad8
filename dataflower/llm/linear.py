"""Products with a fixed weight, laid out in memory as the CPU's matrix kernels want it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch.nn import functional

TYPICAL_ROWS = 8
"""Batch for which oneDNN chooses the layout: a decode step's."""
KERNELS = "256"
"""Kernels that oneDNN keeps at most. It makes one for each shape, so for each length of a prompt; its own limit of 1024
is half a GB of each function that runs for long."""


def limit_kernels() -> None:
    """To be called before the first product of the process, unless the user has set something else."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)


class Linear:
    """`x @ weight.T + bias`; several weights stand for one whose rows they are, side by side.

    A weight in oneDNN's own layout (`lay_out`) is quicker: torch brings a plain bf16 weight into it at every product.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None = None, *, owner: torch.Tensor | None = None
    ) -> None:
        """`weights`: plain, or one that is laid out. `owner`: of its memory, kept as long as this."""
        self.weights, self.bias = tuple(weights), bias
        self.features = sum(weight.shape[0] for weight in weights)
        self.inputs = weights[0].shape[1]
        self.packed = weights[0].is_mkldnn
        """Whether there is one weight, in oneDNN's layout."""
        self._owner = owner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        if self.packed:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weights[0], self.bias, "none", [], "")
            return out
        if len(self.weights) == 1:
            return functional.linear(x, self.weights[0], self.bias)
        joined = torch.cat([functional.linear(x, weight) for weight in self.weights], -1)
        return joined if self.bias is None else joined + self.bias

    def add(self, x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """`to + x @ weight.T + bias`, in one pass where the kernel can."""
        if self.packed:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, to, self.weights[0], self.bias, "add")
            return out
        return to + self(x)


def lay_out(weight: torch.Tensor) -> torch.Tensor:
    """A copy of the weight in oneDNN's layout, where there is one on this machine; else the weight itself."""
    if not can_pack(weight):
        return weight
    laid: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
    return laid


def can_pack(weight: torch.Tensor) -> bool:
    """Whether there is a packed layout for a weight of this kind on this machine."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32
