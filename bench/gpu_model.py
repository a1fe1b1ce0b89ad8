"""A backbone for bench.gpu: the shape of a model, random weights, as files that a user would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
}
"""Llama 2 7B, TinyLlama 1.1B (without its grouped queries), and one for a dry run."""
VOCABULARY = 32000
_SHARD_BYTES = 2 * 10**9


def write(folder: Path, shape: str, device: str) -> int:
    """Write the model's files; gives the bytes of its weights. `device`: of torch, which draws the numbers."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, dtype="bfloat16", **SHAPES[shape])
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room, total = _SHARD_BYTES, 0
    for name, size in _tensors(config):
        nbytes = 2 * size[0] * (size[1] if len(size) > 1 else 1)
        if nbytes > room:
            shards.append({})
            room = _SHARD_BYTES
        shards[-1][name] = size
        room -= nbytes
        total += nbytes
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name, size in shard.items():
            if len(size) == 1:
                tensors[name] = torch.ones(size, dtype=torch.bfloat16)
            else:
                tensors[name] = (torch.randn(size, device=device, dtype=torch.bfloat16) * 0.02).cpu()
            index[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    return total


def _tensors(config: Any) -> list[tuple[str, tuple[int, ...]]]:
    width, inner = config.hidden_size, config.intermediate_size
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (VOCABULARY, width))]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        found += [(f"{name}.self_attn.{part}_proj.weight", (width, width)) for part in "qkvo"]
        found += [(f"{name}.mlp.{part}_proj.weight", (inner, width)) for part in ("gate", "up")]
        found.append((f"{name}.mlp.down_proj.weight", (width, inner)))
        found += [(f"{name}.{part}_layernorm.weight", (width,)) for part in ("input", "post_attention")]
    return [*found, ("model.norm.weight", (width,)), ("lm_head.weight", (VOCABULARY, width))]
