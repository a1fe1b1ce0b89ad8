"""What the runner needs of a model, and which of the two ways of running one fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from dataflower.llm import generic, llama, opaque, parts
from dataflower.llm.adapters import ModuleShape
from dataflower.llm.attention import StepAttention
from dataflower.llm.errors import UnsupportedModel
from dataflower.llm.fused import Decoded, Newest
from dataflower.llm.kv import KvShape
from dataflower.llm.linear import limit_kernels
from dataflower.llm.lora import Group, LoraBatch
from dataflower.llm.parts import Write
from dataflower.phases import phase
from dataflower.wire import StartKind


class Model(Protocol):
    """A causal language model that computes the tokens of many sequences side by side, in one row."""

    @property
    def kv(self) -> KvShape:
        """Shape of its keys and values."""
        ...

    @property
    def context(self) -> int:
        """Tokens that it can look back on."""
        ...

    @property
    def vocabulary(self) -> int:
        """Logits of a token."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        ...

    @property
    def device(self) -> torch.device:
        """On which it computes."""
        ...

    @property
    def modules(self) -> Mapping[str, ModuleShape]:
        """What adapters may change, by full name."""
        ...

    @property
    def groups(self) -> Mapping[str, Group]:
        """The same modules by place in the computation; see `LoraBatch.add`."""
        ...

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: StepAttention,
        lora: LoraBatch | None,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (wanted, vocabulary) after the tokens at the indices `wanted` of `tokens` (n,) at `positions` (n,).

        They are good until the next call.
        """
        ...

    def decode(self, newest: Newest) -> Decoded | None:
        """A step in which all sequences only decode.

        Nothing is prepared for it: no tensors, no plan. None: the model has no such short way, `forward` is to be used.
        """
        ...


def build(
    config: Any,
    weights: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    packed: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Model:
    """Make a model.

    Args:
        config: As `files.read_model` gives it, or any of `transformers`.
        weights: Name in the checkpoint -> tensor. They are used where they lie if they have the dtype and device
            asked for, except for what `packed` copies; they are never written.
        dtype: To compute in.
        device: To compute on.
        packed: On CPUs, keep a copy of the weights of a Llama in oneDNN's layout: faster decoding for more memory.
        metadata: Of the file that `weights` come from. Weights that were laid out for all processes of the host (see
            `record`) are known by it; they are used where they lie whatever `packed` says.

    Raises:
        UnsupportedModel: Its attention is of a kind that can't be paged, or the weights are laid out for another
            machine or dtype.
    """
    limit_kernels()
    with phase(StartKind.MODEL):
        if metadata and parts.NOTE in metadata:
            return llama.LlamaModel(config, parts.LaidOut(weights, metadata, dtype), dtype=dtype, device=device)
        if llama.fits(config, weights):
            plain = parts.Plain(weights, dtype, device, packed=packed)
            return llama.LlamaModel(config, plain, dtype=dtype, device=device)
        return generic.GenericModel(config, weights, dtype=dtype, device=device)


def record(config: Any, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, write: Write) -> Mapping[str, str]:
    """Lay the weights of a model out, once for all: `write` is given each tensor in turn, with its name.

    Returns:
        The metadata of a safetensors file that holds what was written.

    Raises:
        UnsupportedModel: This kind of model is not computed with laid-out weights, or this torch or processor has none.
    """
    if not llama.fits(config, weights):
        raise UnsupportedModel(f"{config.model_type} runs with its weights as they are")
    if reason := opaque.why_not():
        raise UnsupportedModel(reason)
    recorder = parts.Recorder(parts.Plain(weights, dtype, torch.device("cpu"), packed=True), write)
    with torch.inference_mode():
        llama.assemble(config, recorder)
    return recorder.note()
