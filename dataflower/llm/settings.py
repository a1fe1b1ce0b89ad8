"""What `config.json` of a Llama says, read without `transformers`: its import alone takes 110 MB and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflower.llm.rope import ROPES

MODEL_TYPE = "llama"
_NEEDED = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "vocab_size": int,
    "max_position_embeddings": int,
    "rms_norm_eps": float | int,
    "hidden_act": str,
}
_OTHERWISE = ("layer_types", "sliding_window", "quantization_config", "partial_rotary_factor", "default_theta")
"""What makes a model another one than those that are read here."""
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor")
THETA = 10000.0


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """The part of the configuration that computing takes, in the names of `transformers`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    rope_parameters: Mapping[str, Any]
    eos_token_id: int | list[int] | None
    model_type: str = MODEL_TYPE


def read_settings(given: Mapping[str, Any]) -> LlamaSettings | None:
    """The settings in the map that `config.json` holds. None: `transformers` has to read this one."""
    if given.get("model_type") != MODEL_TYPE or "eos_token_id" not in given:
        return None
    if any(given.get(key) is not None for key in _OTHERWISE):
        return None
    if not all(isinstance(given.get(key), kind) and not isinstance(given[key], bool) for key, kind in _NEEDED.items()):
        return None
    rope = _rope(given)
    ends = given["eos_token_id"]
    if rope is None or not (ends is None or _whole(ends) or (isinstance(ends, list) and all(map(_whole, ends)))):
        return None
    heads = given["num_attention_heads"]
    fields = {key: given[key] for key in _NEEDED}
    shared = given.get("num_key_value_heads")
    size = given.get("head_dim")
    tied = given.get("tie_word_embeddings", False)
    if not (shared is None or _whole(shared)) or not (size is None or _whole(size)) or not isinstance(tied, bool):
        return None
    return LlamaSettings(
        **fields,
        num_key_value_heads=heads if shared is None else shared,
        head_dim=given["hidden_size"] // heads if size is None else size,
        tie_word_embeddings=tied,
        rope_parameters=rope,
        eos_token_id=ends,
    )


def _rope(given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The rotary embedding; files written before `transformers` 5 say it in two fields."""
    said = given.get("rope_scaling") or given.get("rope_parameters") or {}
    if not isinstance(said, dict) or any(isinstance(value, dict) for value in said.values()):
        return None
    rope = {"rope_theta": given.get("rope_theta", THETA), **said}
    rope.setdefault("rope_type", rope.get("type", "default"))
    kind = rope["rope_type"]
    if kind not in ROPES or not _number(rope["rope_theta"]) or rope.get("partial_rotary_factor") is not None:
        return None
    if kind == "linear" and not _number(rope.get("factor")):
        return None
    if kind == "llama3":
        if "original_max_position_embeddings" in given or not all(_number(rope.get(key)) for key in _LLAMA3):
            return None
        rope.setdefault("original_max_position_embeddings", given["max_position_embeddings"])
        if not _number(rope["original_max_position_embeddings"]):
            return None
    return rope


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
