"""A model of the transformers library over weights in shared memory: built without memory, then bound."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from dataflower.checkpoint.tensors import bind

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from transformers import PreTrainedModel

    from dataflower.checkpoint.weights import Weights


def build(weights: Weights, kind: str = "AutoModelForCausalLM") -> PreTrainedModel:
    """The model that `config.json` describes, its parameters being the tensors of `weights`: no byte is copied.

    In `eval` mode, without gradients, in the datatype of the checkpoint. `kind`: the class of transformers to use.

    Raises:
        InvalidArgument: the checkpoint does not hold what the model needs.
    """
    import transformers
    from torch import device, float32

    tensors = weights.tensors()
    config = transformers.AutoConfig.from_pretrained(weights.config_dir)
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), float32)
    with device("meta"), _uninitialised():
        model = getattr(transformers, kind).from_config(config, dtype=dtype)
    bind(model, tensors)
    for module in model.modules():
        _compute_buffers(model, module, weights.torch_device)
    model.eval()
    return model  # type: ignore[no-any-return]


def _uninitialised() -> AbstractContextManager[None]:
    """Without drawing random numbers for parameters that have no memory (half of the time otherwise)."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # another version keeps it elsewhere: it is only quicker with it
        return contextlib.nullcontext()
    return no_init_weights()


def _compute_buffers(model: PreTrainedModel, module: torch.nn.Module, device: str) -> None:
    """Buffers that no checkpoint holds, such as the frequencies of rotary embeddings: the library computes them."""
    from torch import empty_like, no_grad

    absent = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.device.type == "meta"}
    if not absent:
        return
    for name, buffer in absent.items():
        setattr(module, name, empty_like(buffer, device=device))
    with no_grad():
        model._init_weights(module)  # type: ignore[no-untyped-call]
