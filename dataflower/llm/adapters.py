"""LoRA adapters in PEFT's file format: read, checked against the model, and known by what they hold.

An adapter's identity is the digest of its files, never its name: sequences keep the adapter that they began with,
whatever is loaded under its name meanwhile, and share key-value blocks only with sequences of the same digest.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dataflower.llm.errors import AdapterInvalid, AdapterNotFound
from dataflower.phases import phase
from dataflower.wire import StartKind

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
    "alora_invocation_tokens",
)
"""Keys of PEFT's configuration that ask for more than a product of two matrices at each module."""


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """Inputs and outputs of a module that an adapter may change."""

    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class LoraPart:
    """What an adapter adds at one module: `x @ down.T @ up.T`; `down` (rank, inputs), `up` (outputs, rank), scaled."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter as loaded. `generation` counts what was loaded under its name; `digest` is that of its files."""

    name: str
    generation: int
    digest: str
    rank: int
    nbytes: int
    parts: Mapping[str, LoraPart]
    path: str = ""


class AdapterStore:
    """The adapters of one model by name. Thread-safe; loading happens on the caller's thread, off the step loop."""

    def __init__(
        self,
        modules: Mapping[str, ModuleShape],
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_rank: int = 64,
    ) -> None:
        """`modules`: what adapters may change, by full name."""
        self._modules, self._dtype, self._device, self._max_rank = modules, dtype, device, max_rank
        self._by_name: dict[str, Adapter] = {}
        self._last: dict[str, int] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def get(self, name: str) -> Adapter:
        """The adapter of this name. Raises AdapterNotFound."""
        with self._lock:
            found = self._by_name.get(name)
            known = ", ".join(sorted(self._by_name)) or "none"
        if found is None:
            raise AdapterNotFound(f"no adapter {name!r} is loaded; loaded: {known}")
        return found

    def names(self) -> list[str]:
        """Of all that are loaded."""
        with self._lock:
            return sorted(self._by_name)

    def find(self, name: str, path: str, generation: int) -> Adapter | None:
        """The adapter if that very generation is loaded from there."""
        with self._lock:
            found = self._by_name.get(name)
        return found if found is not None and (found.path, found.generation) == (path, generation) else None

    def ensure(self, name: str, path: str, generation: int = 0) -> Adapter:
        """The adapter, read from `path` unless that very generation is loaded from there. Raises AdapterInvalid."""
        with self._loading:  # one at a time: many callers of a new adapter wait for one read
            if (loaded := self.find(name, path, generation)) is not None:
                return loaded
            return self._put(
                read(path, self._modules, self._dtype, self._device, self._max_rank), name, path, generation
            )

    def load(self, name: str, path: str) -> Adapter:
        """Read an adapter as the next generation of its name. Raises AdapterInvalid; then the old one stays."""
        with self._loading:
            with phase(StartKind.ADAPTER, name):
                found = read(path, self._modules, self._dtype, self._device, self._max_rank)
            return self._put(found, name, path, self._last.get(name, 0) + 1)

    def unload(self, name: str) -> Adapter:
        """Forget an adapter; sequences that use it end with it. Raises AdapterNotFound."""
        found = self.get(name)
        with self._lock:
            self._by_name.pop(name, None)
        return found

    def _put(self, found: _Read, name: str, path: str, generation: int) -> Adapter:
        nbytes = sum((part.down.numel() + part.up.numel()) * self._dtype.itemsize for part in found.parts.values())
        adapter = Adapter(name, generation, found.digest, found.rank, nbytes, found.parts, path)
        with self._lock:
            self._by_name[name] = adapter
            self._last[name] = max(generation, self._last.get(name, 0))
        return adapter


@dataclass(frozen=True, slots=True)
class _Read:
    digest: str
    rank: int
    parts: Mapping[str, LoraPart]


def read(
    path: str | Path, modules: Mapping[str, ModuleShape], dtype: torch.dtype, device: torch.device, max_rank: int
) -> _Read:
    """Read and check a folder in PEFT's format.

    Raises:
        AdapterInvalid: It is not one, or not one for this model; the message names the file and what is wrong.
    """
    folder = Path(path)
    config, raw = _config(folder)
    tensors = _tensors(folder, device)
    digest = hashlib.sha256(raw + b"\0" + (folder / WEIGHTS).read_bytes()).hexdigest()
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, half = key.removesuffix(".weight").removesuffix(".default").rpartition(".lora_")
        if half not in ("A", "B") or not key.startswith(PREFIX):
            raise AdapterInvalid(f"{folder / WEIGHTS}: {key} is neither lora_A nor lora_B of a module")
        halves.setdefault(module.removeprefix(PREFIX), {})[half] = tensor
    parts, highest = {}, 0
    for module, pair in halves.items():
        parts[module] = _part(folder, module, pair, config, modules.get(module), dtype)
        highest = max(highest, parts[module].down.shape[0])
    if not parts:
        raise AdapterInvalid(f"{folder / WEIGHTS}: it holds no weights")
    if highest > max_rank:
        raise AdapterInvalid(f"{folder / WEIGHTS}: rank {highest} is above the limit of {max_rank}")
    return _Read(digest, highest, parts)


def _config(folder: Path) -> tuple[dict[str, Any], bytes]:
    path = folder / CONFIG
    try:
        raw = path.read_bytes()
        config = json.loads(raw)
    except OSError as error:
        raise AdapterInvalid(
            f"{path}: {error.strerror}; an adapter is a folder as PEFT's save_pretrained makes it"
        ) from None
    except ValueError as error:
        raise AdapterInvalid(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterInvalid(f"{path}: peft_type is not LORA")
    if wrong := [key for key in UNSUPPORTED if config.get(key)]:
        raise AdapterInvalid(f"{path}: {', '.join(wrong)}: not supported")
    if config.get("bias", "none") != "none":
        raise AdapterInvalid(f"{path}: bias: only 'none' is supported")
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), int | float):
        raise AdapterInvalid(f"{path}: r and lora_alpha must be numbers")
    return config, raw


def _tensors(folder: Path, device: torch.device) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    try:
        return dict(load_file(path, device=str(device)))
    except OSError as error:
        raise AdapterInvalid(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise AdapterInvalid(f"{path}: damaged: {error}") from None


def _part(  # noqa: PLR0917
    folder: Path,
    module: str,
    pair: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    shape: ModuleShape | None,
    dtype: torch.dtype,
) -> LoraPart:
    where = f"{folder / WEIGHTS}: {module}"
    if shape is None:
        raise AdapterInvalid(f"{where}: the model has no such module that could be adapted")
    if len(pair) != 2:
        raise AdapterInvalid(f"{where}: lora_{'B' if 'A' in pair else 'A'} is missing")
    down, up = pair["A"], pair["B"]
    rank = down.shape[0]
    if down.shape != (rank, shape.inputs) or up.shape != (shape.outputs, rank):
        raise AdapterInvalid(
            f"{where}: shapes {list(down.shape)} and {list(up.shape)} do not fit a module "
            f"with {shape.inputs} inputs and {shape.outputs} outputs"
        )
    if rank != _of_pattern(config, "rank_pattern", module, config["r"]):
        raise AdapterInvalid(f"{where}: its rank is {rank}, but {CONFIG} says otherwise")
    if not (down.isfinite().all() and up.isfinite().all()):
        raise AdapterInvalid(f"{where}: it holds NaN or infinity")
    alpha = float(_of_pattern(config, "alpha_pattern", module, config["lora_alpha"]))
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return LoraPart(down.to(dtype), (up.float() * scale).to(dtype))


def _of_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """PEFT's patterns name modules by the end of their names."""
    for pattern, value in (config.get(key) or {}).items():
        if module == pattern or module.endswith("." + pattern):
            return value
    return default
