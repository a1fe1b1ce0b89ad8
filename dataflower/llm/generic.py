"""Any causal language model of `transformers`, run as it is: only its attention goes to our rows of keys and values.

`transformers` lets the function that computes attention be named. Ours is told which step it works for by the thread
it runs on, takes queries, keys and values of all sequences in one row, and does what the fast path does with them. So
batching, paging and adapters are the same for every architecture.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dataflower.llm.adapters import ModuleShape
from dataflower.llm.attention import StepAttention
from dataflower.llm.errors import UnsupportedModel
from dataflower.llm.fused import Newest
from dataflower.llm.kv import KvShape
from dataflower.llm.lora import Group, LoraBatch

NAME = "dataflower_rows"
IGNORED = frozenset({"dropout", "position_ids", "use_cache", "output_attentions", "position_bias", "is_causal"})
"""Arguments of attention that change nothing here."""

_local = threading.local()


@dataclass(slots=True)
class _Work:
    """What a thread is running: a step, or (without one) a look at the shapes."""

    attention: StepAttention | None
    lora: LoraBatch | None
    shapes: dict[int, tuple[int, int]]


class GenericModel:
    """See `dataflower.llm.model.Model`."""

    def __init__(
        self, config: Any, weights: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """See `dataflower.llm.model.build`."""
        self.dtype, self.device = dtype, device
        self.net = _assemble(config, weights, dtype, device)
        text = config.get_text_config()
        length: Any = getattr(text, "max_position_embeddings", None)
        self.context = int(length or getattr(text, "n_positions", 2048))
        self.vocabulary: int = text.vocab_size
        self.kv = self._look(config.model_type)
        self.modules: dict[str, ModuleShape] = {}
        for name, module in self.net.named_modules():
            shape = _shape(module)
            if shape is not None and module is not self.net.get_output_embeddings():
                self.modules[name] = shape
                module.register_forward_hook(_Adapt(name))
        self.groups = {name: Group(((name, shape.outputs),)) for name, shape in self.modules.items()}

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: StepAttention,
        lora: LoraBatch | None,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """See `dataflower.llm.model.Model`."""
        with _working(_Work(attention, lora, {})):
            answer = self.net(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
            )
        logits: torch.Tensor = answer.logits[0]
        return logits

    def decode(self, newest: Newest) -> None:
        """See `dataflower.llm.model.Model`: it has no short way."""

    def _look(self, kind: str) -> KvShape:
        """Run one token to see which keys and values there are. Raises UnsupportedModel."""
        work = _Work(None, None, {})
        one = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        with torch.inference_mode(), _working(work):
            self.net(input_ids=one, position_ids=one, use_cache=False)
        layers = sorted(work.shapes)
        if layers != list(range(len(layers))) or not layers:
            raise UnsupportedModel(f"{kind}: not every layer attends by keys and values (layers seen: {layers})")
        if len(set(work.shapes.values())) != 1:
            raise UnsupportedModel(f"{kind}: its layers have keys and values of differing shapes")
        heads, size = work.shapes[0]
        return KvShape(len(layers), heads, size)


class _Adapt:
    """Hook of a linear module: adds what the adapters of the step add there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        work: _Work | None = getattr(_local, "work", None)
        if work is None or work.lora is None:
            return out
        flat = work.lora.add(self.name, inputs[0].reshape(-1, inputs[0].shape[-1]), out.view(-1, out.shape[-1]))
        return flat.view(out.shape)


@contextmanager
def _working(work: _Work) -> Iterator[None]:
    _local.work = work
    try:
        yield
    finally:
        _local.work = None


def attend(  # noqa: PLR0917 - transformers chooses how it calls
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention that `transformers` calls, on (1, heads, tokens, size)."""
    work: _Work | None = getattr(_local, "work", None)
    if work is None:
        raise UnsupportedModel("attention outside a step")
    unknown = sorted(name for name, given in others.items() if given is not None and name not in IGNORED)
    if unknown or key.shape != value.shape:
        what = ", ".join(unknown) or "keys and values of differing sizes"
        raise UnsupportedModel(f"{type(module).__name__}: its attention uses {what}, which is not supported")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedModel(f"{type(module).__name__} does not say which layer it is")
    if work.attention is None:
        work.shapes[layer] = (key.shape[1], key.shape[3])
        return query.transpose(1, 2).contiguous(), None
    q = query[0].transpose(0, 1)
    kv = torch.cat((key[0], value[0])).transpose(0, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = work.attention.attend(layer, q, kv, scale=scale, window=sliding_window, softcap=softcap)
    return out.view(1, q.shape[0], q.shape[1], q.shape[2]), None


def _assemble(config: Any, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> Any:
    """The model with these weights bound in place: not copied where dtype and device fit."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface
    from transformers.utils import logging

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UnsupportedModel(f"{config.model_type}: transformers has no causal language model of this kind")
    AttentionInterface.register(NAME, attend)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    net, loading = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=dtype,
        attn_implementation=NAME,
        output_loading_info=True,
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UnsupportedModel(f"{config.model_type}: no weights for {', '.join(missing[:3])} ({len(missing)} in all)")
    return net.to(device).eval().requires_grad_(False)


def _shape(module: torch.nn.Module) -> ModuleShape | None:
    if isinstance(module, torch.nn.Linear):
        return ModuleShape(module.in_features, module.out_features)
    if type(module).__name__ == "Conv1D":  # GPT-2's: a Linear with its weight turned round
        weight = module.get_parameter("weight")
        return ModuleShape(weight.shape[0], weight.shape[1])
    return None
