"""Frequencies of rotary position embeddings (Su et al., RoFormer, section 3.4), with the ways to stretch them."""

from __future__ import annotations

import math
from typing import Any

import torch

ROPES = frozenset({"default", "linear", "llama3"})
"""Kinds whose frequencies do not depend on the length of the input."""


def frequencies(config: Any, device: torch.device) -> torch.Tensor:
    """By how much each pair of a head's values turns from one position to the next: (size / 2,), in fp32.

    `config`: with `rope_parameters` of one of `ROPES`. Equal to the last bit to what `transformers` works out.
    """
    rope = config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain: torch.Tensor = 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        plain = plain / rope["factor"]
    elif kind == "llama3":
        plain = _stretched(plain, rope)
    return plain.to(device)


def _stretched(plain: torch.Tensor, rope: Any) -> torch.Tensor:
    """Slow turns are slowed by a factor, quick ones left alone, those between by degrees."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    trained = rope["original_max_position_embeddings"]
    waves = 2 * math.pi / plain
    slowed = torch.where(waves > trained / low, plain / factor, plain)
    degree = (trained / waves - low) / (high - low)
    between = (1 - degree) * slowed / factor + degree * slowed
    inside = (waves >= trained / high) & (waves <= trained / low)
    return torch.where(inside, between, slowed)
