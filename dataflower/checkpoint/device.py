"""The device tier: weights of a model as tensors of an accelerator, copied while they are still being read.

One stretch of device memory per model, and one copy in flight while the next part arrives: the slower of the two sets
the pace. On the CPU the same code makes a private, writable copy.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping as Readonly
from pathlib import Path
from typing import TYPE_CHECKING

from dataflower.checkpoint.client import attach, find_door
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.format import LENGTH_BYTES, header_length, parse_header
from dataflower.checkpoint.layout import place
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.plan import find
from dataflower.checkpoint.region import Mapping, Owned
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.tensors import views

if TYPE_CHECKING:
    import torch


class Copier:
    """Takes the beginning of a model's memory as it grows, and copies what is new."""

    def __init__(self, device: str | torch.device) -> None:
        """`device`: where to, such as `cuda:0`. Nothing is allocated before the size is known."""
        import torch

        self._device = torch.device(device)
        self._copied = 0
        self._memory: torch.Tensor | None = None

    def advance(self, mapping: Mapping, manifest: Manifest, prefix: int) -> None:
        """The first `prefix` bytes of `mapping` are there; copy those that were not there before."""
        import torch

        if self._memory is None:
            self._memory = torch.empty(mapping.nbytes, dtype=torch.uint8, device=self._device)
        if prefix > self._copied:
            part = torch.frombuffer(mapping.array(self._copied, prefix - self._copied), dtype=torch.uint8)
            self._memory[self._copied : prefix].copy_(part, non_blocking=True)
            self._copied = prefix

    def tensors(self, mapping: Mapping, manifest: Manifest) -> dict[str, torch.Tensor]:
        """Name -> tensor on the device, once everything is there; waits for the last copy."""
        import torch

        self.advance(mapping, manifest, mapping.nbytes)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        assert self._memory is not None
        found: dict[str, torch.Tensor] = {}
        for file in place((file.name, file.nbytes) for file in manifest.files):
            if file.name.endswith(".safetensors"):
                data = mapping.view(file.offset, file.nbytes)
                header_length(data[:LENGTH_BYTES], file.nbytes, file.name)
                header = parse_header(data, file.nbytes, file.name)
                found.update(views(header, self._memory[file.offset : file.offset + file.nbytes]))
        return found


def load(model: str | Path, device: str, *, config: StoreConfig | None = None) -> Readonly[str, torch.Tensor]:
    """The tensors of a model on a device, from whichever tier has it; blocks until all of them can be used.

    The device's memory is the caller's alone and lives as long as one of the tensors; the host's is not held.

    Raises:
        NotFound, WeightsInvalid, ResourceExhausted, Unavailable: see `checkpoint.open`.
    """
    copier = Copier(device)
    door = find_door()
    if door is not None:
        got = attach(door, str(model), on_prefix=copier.advance)
        return copier.tensors(got.mapping, got.manifest)
    return _load_here(str(model), config or StoreConfig(), copier)


def _load_here(model: str, config: StoreConfig, copier: Copier) -> dict[str, torch.Tensor]:
    """Without a store: a thread reads, this one copies behind it."""
    plan = find(DiskTier(config), model)
    owned = Owned(plan.memory_bytes)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            plan.fill(owned)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read, name="weights", daemon=True)
    try:
        mapping = Mapping([segment.fd for segment in owned.segments], owned.nbytes)
        thread.start()
        prefix = 0
        while (there := plan.arrival.wait(prefix)) > prefix:
            copier.advance(mapping, plan.brief(), there)
            prefix = there
        thread.join()
    finally:
        if thread.is_alive():
            thread.join()
        owned.close()
    if errors:
        raise errors[0]
    assert plan.manifest is not None
    return copier.tensors(mapping, plan.manifest)
