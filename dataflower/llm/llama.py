"""The fast path: models of the Llama family, with fused projections, packed weights and no module overhead."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from dataflower.llm.adapters import ModuleShape
from dataflower.llm.attention import StepAttention
from dataflower.llm.embedding import Embedding
from dataflower.llm.fused import ROWS, Decoded, Newest, fuse
from dataflower.llm.kv import KvShape
from dataflower.llm.linear import Linear
from dataflower.llm.lora import Group, LoraBatch
from dataflower.llm.parts import Parts
from dataflower.llm.rope import ROPES, frequencies

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head"
FAMILY = frozenset({"llama", "mistral", "qwen2"})


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: torch.Tensor
    qkv: Linear
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    name: str


def fits(config: Any, weights: Container[str]) -> bool:
    """Whether the fast path computes this architecture exactly."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILY
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in ROPES
        and rope.get("partial_rotary_factor") in {None, 1.0}
        and not _window(config)
        and "model.layers.0.self_attn.q_proj.weight" in weights
    )


@dataclass(frozen=True, slots=True)
class Body:
    """All weights of a model."""

    embedding: Embedding
    layers: list[_Layer]
    norm: torch.Tensor
    head: Linear


def assemble(config: Any, parts: Parts) -> Body:
    """Ask `parts` for every weight, in the order of the computation."""
    layers = []
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}"
        layers.append(
            _Layer(
                norm=parts.tensor(f"{name}.input_layernorm.weight"),
                qkv=parts.linear(f"{name}.qkv", [f"{name}.self_attn.{part}_proj" for part in "qkv"]),
                out=parts.linear(f"{name}.out", [f"{name}.self_attn.o_proj"]),
                mlp_norm=parts.tensor(f"{name}.post_attention_layernorm.weight"),
                gate_up=parts.linear(f"{name}.gate_up", [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"]),
                down=parts.linear(f"{name}.down", [f"{name}.mlp.down_proj"]),
                name=name,
            )
        )
    norm = parts.tensor("model.norm.weight")
    tied = config.tie_word_embeddings or not parts.has("lm_head.weight")
    head = parts.linear(HEAD, [EMBEDDING.removesuffix(".weight") if tied else "lm_head"])
    return Body(parts.embedding(EMBEDDING, HEAD if tied else None), layers, norm, head)


class LlamaModel:
    """See `dataflower.llm.model.Model`."""

    def __init__(self, config: Any, parts: Parts, *, dtype: torch.dtype, device: torch.device) -> None:
        """See `dataflower.llm.model.build`."""
        self.dtype, self.device = dtype, device
        self.heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.kv = KvShape(config.num_hidden_layers, config.num_key_value_heads, size)
        self.context = config.max_position_embeddings
        self.vocabulary = config.vocab_size
        self.epsilon = config.rms_norm_eps
        self.width = config.hidden_size
        body = assemble(config, parts)
        self.embedding, self.layers, self.norm, self.head = body.embedding, body.layers, body.norm, body.head
        self.frequencies = frequencies(config, device)
        self.modules = _modules(config, self.kv, self.heads)
        self.groups = _groups(self.kv.layers, self.modules)
        self.fused = fuse(self, body)
        """Decode steps as one call; None where they run on torch's operators."""

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention: StepAttention,
        lora: LoraBatch | None,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """See `dataflower.llm.model.Model`."""
        if self.fused is not None and self.fused.takes(attention, len(tokens), len(wanted)):
            return self.fused(tokens, positions, attention, lora, wanted)
        heads, kv_heads, size = self.heads, self.kv.heads, self.kv.size
        n, rotated, scale = len(tokens), heads + kv_heads, size**-0.5
        cos, sin = self._angles(positions)
        x = self.embedding(tokens)
        for index, layer in enumerate(self.layers):
            h = functional.rms_norm(x, (self.width,), layer.norm, self.epsilon)
            z = layer.qkv(h)
            if lora is not None:
                z = lora.add(f"{layer.name}.qkv", h, z)
            z = z.view(n, rotated + kv_heads, size)
            r = z[:, :rotated]
            r = torch.addcmul(r * cos, r.roll(size // 2, -1), sin)
            kv = torch.cat((r[:, heads:], z[:, rotated:]), 1)
            a = attention.attend(index, r[:, :heads], kv, scale=scale)
            x = layer.out.add(a, x)
            if lora is not None:
                x = lora.add(f"{layer.name}.out", a, x)
            h = functional.rms_norm(x, (self.width,), layer.mlp_norm, self.epsilon)
            g = layer.gate_up(h)
            if lora is not None:
                g = lora.add(f"{layer.name}.gate_up", h, g)
            half = g.shape[1] // 2
            h = functional.silu(g[:, :half]) * g[:, half:]
            x = layer.down.add(h, x)
            if lora is not None:
                x = lora.add(f"{layer.name}.down", h, x)
        x = functional.rms_norm(x.index_select(0, wanted), (self.width,), self.norm, self.epsilon)
        return self.head(x)

    def decode(self, newest: Newest) -> Decoded | None:
        """See `dataflower.llm.model.Model`."""
        if self.fused is None or len(newest.tokens) > ROWS:
            return None
        return self.fused.decode(newest)

    def _angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines (n, 1, size) of the rotary embedding."""
        angles = positions[:, None].float() * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        return (
            torch.cat((cos, cos), -1)[:, None].to(self.dtype),
            torch.cat((-sin, sin), -1)[:, None].to(self.dtype),
        )


def _window(config: Any) -> int | None:
    """The sliding window, if one is in use."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return None if all(kind == "full_attention" for kind in kinds) else getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        return None
    return getattr(config, "sliding_window", None)


def _modules(config: Any, kv: KvShape, heads: int) -> dict[str, ModuleShape]:
    width, inner = config.hidden_size, config.intermediate_size
    q, k = heads * kv.size, kv.heads * kv.size
    shapes = (
        ("self_attn.q_proj", width, q),
        ("self_attn.k_proj", width, k),
        ("self_attn.v_proj", width, k),
        ("self_attn.o_proj", q, width),
        ("mlp.gate_proj", width, inner),
        ("mlp.up_proj", width, inner),
        ("mlp.down_proj", inner, width),
    )
    return {
        f"model.layers.{index}.{name}": ModuleShape(inputs, outputs)
        for index in range(kv.layers)
        for name, inputs, outputs in shapes
    }


def _groups(layers: int, modules: Mapping[str, ModuleShape]) -> dict[str, Group]:
    fused = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }
    groups = {}
    for index in range(layers):
        layer = f"model.layers.{index}"
        for key, names in fused.items():
            parts = tuple((f"{layer}.{name}", modules[f"{layer}.{name}"].outputs) for name in names)
            groups[f"{layer}.{key}"] = Group(parts)
    return groups
