"""A model folder as `transformers` saves it: configuration, weights, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dataflower.errors import InvalidArgument, NotFound
from dataflower.llm.settings import read_settings
from dataflower.llm.tokenizer import read_tokenizer
from dataflower.phases import phase
from dataflower.wire import StartKind

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a folder says besides its weights. `ends`: end-of-sequence tokens.

    Of a Llama whose tokenizer is all in `tokenizer.json`, `config` and `tokenizer` are light ones of ours (`settings`,
    `tokenizer`); of others they are those of `transformers`, which is imported then.
    """

    config: Any
    tokenizer: Any
    ends: frozenset[int]


def read_model(folder: str | Path) -> ModelFiles:
    """Read all but the weights. Raises NotFound, InvalidArgument."""
    with phase(StartKind.MODEL):
        return _read(folder)


def _read(folder: str | Path) -> ModelFiles:
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise NotFound(f"{path / 'config.json'} is missing: a model is a folder as save_pretrained makes it")
    config, tokenizer = _light(path) or _whole(path)
    ends = _numbers(config.eos_token_id) | _numbers(tokenizer.eos_token_id)
    if (path / "generation_config.json").is_file():
        ends |= _numbers(_map(path / "generation_config.json").get("eos_token_id"))
    return ModelFiles(config, tokenizer, ends)


def _light(path: Path) -> tuple[Any, Any] | None:
    """Configuration and tokenizer without `transformers`, where nothing of it is needed."""
    config = read_settings(_map(path / "config.json"))
    tokenizer = None if config is None else read_tokenizer(path)
    return None if tokenizer is None else (config, tokenizer)


def _whole(path: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path, local_files_only=True)
    return config, AutoTokenizer.from_pretrained(path, local_files_only=True)


def _map(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises InvalidArgument."""
    try:
        given = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InvalidArgument(f"{path} is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidArgument(f"{path} holds no JSON object")
    return given


def read_weights(folder: str | Path) -> Mapping[str, torch.Tensor]:
    """The weights of a folder, mapped from its safetensors files. Raises NotFound."""
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
