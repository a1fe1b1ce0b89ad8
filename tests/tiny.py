"""Tiny models with random weights, and what `transformers` itself generates with them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from dataflower.llm.model import build
from dataflower.llm.runner import Runner
from dataflower.llm.scheduler import Limits

CPU = torch.device("cpu")
WORDS = 300
_SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # tied and random, a model says one word for ever
}
CONFIGS = {
    "llama": LlamaConfig(**_SHAPE),
    "llama3": LlamaConfig(
        **_SHAPE,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": Qwen2Config(**_SHAPE | {"tie_word_embeddings": True}),
    "qwen3": Qwen3Config(**_SHAPE),
    "gemma3": Gemma3TextConfig(**_SHAPE, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "gpt2": GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=1024, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
"""The first three take the fast path, the others run as they are."""


@cache
def reference(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model of `transformers`."""
    torch.manual_seed(7)
    net = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.3) if parameter.ndim > 1 else parameter.data.add_(
            torch.randn(parameter.shape) * 0.05
        )
    return net.to(dtype)


def weights(name: str) -> dict[str, torch.Tensor]:
    """Of the model."""
    return dict(reference(name).state_dict())


@cache
def model(name: str, dtype: torch.dtype = torch.float32, packed: bool = True) -> Any:
    """Ours, of the same weights."""
    return build(CONFIGS[name], weights(name), dtype=dtype, device=CPU, packed=packed)


def runner(
    name: str = "llama", *, blocks: int = 64, tokenizer: Any = None, dtype: Any = torch.float32, **limits: Any
) -> Runner:
    """A started one, with blocks of 4 tokens."""
    made = model(name, dtype)
    size = 4 * made.kv.token_bytes(dtype)
    return Runner(
        made,
        ends=[2],
        tokenizer=tokenizer,
        block_size=4,
        kv_bytes=blocks * size,
        limits=Limits(**{"step_tokens": 64, "sequences": 8} | limits),
    ).start()


def greedy(net: Any, prompt: list[int], tokens: int) -> list[int]:
    """What `transformers` generates, without the end-of-sequence token."""
    given = torch.tensor([prompt])
    with torch.inference_mode():
        out = net.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found[: found.index(2)] if 2 in found else found


def prompt(seed: int, length: int) -> list[int]:
    """Random tokens, none of them special."""
    return torch.randint(3, WORDS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@cache
def tokenizer() -> Any:
    """Bytes are tokens 3 to 258; the others stand for nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: index + 3 for index, letter in enumerate(alphabet)}
    vocabulary |= {f"<{index}>": index for index in range(len(vocabulary), WORDS)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def adapter(folder: Path, modules: dict[str, tuple[int, int]], *, seed: int, rank: int = 4, **config: Any) -> str:
    """Write a random adapter in PEFT's format for modules {full name: (inputs, outputs)}."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=chance) * 0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=chance) * 0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in modules})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return str(folder)


def targets(name: str, *ends: str) -> dict[str, tuple[int, int]]:
    """Modules of a model whose names end so."""
    return {n: (s.inputs, s.outputs) for n, s in model(name).modules.items() if n.endswith(ends)}
