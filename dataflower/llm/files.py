"""A model folder as `transformers` saves it: configuration, weights, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataflower.errors import NotFound
from dataflower.phases import phase
from dataflower.wire import StartKind

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a folder says besides its weights. `ends`: end-of-sequence tokens."""

    config: Any
    tokenizer: Any
    ends: frozenset[int]


def read_model(folder: str | Path) -> ModelFiles:
    """Read all but the weights. Raises NotFound."""
    with phase(StartKind.MODEL):
        return _read(folder)


def _read(folder: str | Path) -> ModelFiles:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise NotFound(f"{path / 'config.json'} is missing: a model is a folder as save_pretrained makes it")
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    ends = _numbers(config.eos_token_id) | _numbers(tokenizer.eos_token_id)
    if (path / "generation_config.json").is_file():
        ends |= _numbers(GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id)
    return ModelFiles(config, tokenizer, ends)


def read_weights(folder: str | Path) -> Mapping[str, torch.Tensor]:
    """The weights of a folder, mapped from its safetensors files. Raises NotFound."""
    from safetensors.torch import load_file

    path = Path(folder)
    files = ["model.safetensors"]
    if (path / INDEX).is_file():
        files = sorted(set(json.loads((path / INDEX).read_text("utf-8"))["weight_map"].values()))
    weights: dict[str, torch.Tensor] = {}
    for name in files:
        if not (path / name).is_file():
            raise NotFound(f"{path / name} is missing")
        weights.update(load_file(path / name))
    return weights


def _numbers(given: int | list[int] | None) -> frozenset[int]:
    if given is None:
        return frozenset()
    return frozenset([given] if isinstance(given, int) else given)
