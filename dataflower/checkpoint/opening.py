"""`checkpoint.open`: weights from the host's store, or from the disk straight into this process."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from dataflower.checkpoint.client import OnProgress, attach, find_door
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.layout import pages, place
from dataflower.checkpoint.loader import Load, Progress, describe, ignore
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.region import Mapping, Owned
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.weights import Weights


def open_weights(model: str | Path, *, config: StoreConfig | None = None, progress: Progress = ignore) -> Weights:
    """The weights of a model, loaded once per host; blocks until they are there and checked.

        with checkpoint.open("smollm2") as weights:
            tensors = weights.tensors()          # read-only views, nothing is copied

    Inside a container the host's store has them or loads them, and this process maps its memory. Elsewhere they are
    read into this process, once for all who open them here at the same time.

    Args:
        model: a name that `dataflower models ls` knows, a folder with safetensors files, or one such file.
        config: where models lie, for a process without a store; by default `StoreConfig()`.
        progress: told of bytes as they arrive, from any thread.

    Raises:
        NotFound: there is no such model.
        WeightsInvalid: a file is damaged, cut off, or no safetensors file.
        ResourceExhausted: it does not fit into the store's memory.
        Unavailable: the store died again and again.
    """
    door = find_door()
    if door is None:
        return _open_here(str(model), config or StoreConfig(), progress)
    got = attach(door, str(model), _differences(progress))
    return Weights(got.manifest, got.mapping, got.folder, str(model), got.digest)


def _differences(progress: Progress) -> OnProgress:
    """From what has arrived so far to what has just arrived."""
    before = 0

    def tell(arrived: int, total: int) -> None:
        nonlocal before
        progress(arrived - before)
        before = arrived

    return tell


@dataclass(slots=True, weakref_slot=True)
class _Resident:
    """Weights that this process has loaded; they live as long as their mapping."""

    manifest: Manifest
    mapping: weakref.ref[Mapping]


_here: dict[str, _Resident] = {}
_lock = threading.Lock()


def _open_here(model: str, config: StoreConfig, progress: Progress) -> Weights:
    disk = DiskTier(config)
    with _lock:  # one load at a time: two would only share the disk
        located = disk.locate(model)
        key = str(located.folder) + "\0" + "\0".join(located.names)
        resident = _here.get(key)
        if resident is not None and located.manifest == resident.manifest:
            mapping = resident.mapping()
            if mapping is not None:
                return Weights(resident.manifest, mapping, located.folder, model)
        manifest, mapping = load_private(disk, model, progress)
        _here[key] = _Resident(manifest, weakref.ref(mapping, lambda _: _here.pop(key, None)))
        return Weights(manifest, mapping, located.folder, model)


def load_private(disk: DiskTier, model: str, progress: Progress = ignore) -> tuple[Manifest, Mapping]:
    """Read a model from the disk into memory of this process."""
    located = disk.locate(model)
    placed = place(located.sizes())
    owned = Owned(sum(pages(file.nbytes) for file in placed))
    try:
        known = {file.name: file for file in located.manifest.files} if located.manifest else {}
        load = Load(located.folder, placed, owned, known, progress=progress, threads=disk.config.models_threads)
        load.run()
        manifest = located.manifest
        if manifest is None:
            manifest = describe(located.folder, located.names, load, name=located.name)
            disk.remember(located, manifest)
        mapping = Mapping([segment.fd for segment in owned.segments], owned.nbytes)
    finally:
        owned.close()
    return manifest, mapping
