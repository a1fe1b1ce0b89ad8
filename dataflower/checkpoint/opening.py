"""`checkpoint.open`: weights from the host's store, or from the disk straight into this process."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from dataflower import phases, wire
from dataflower.checkpoint.accelerator import HOST
from dataflower.checkpoint.client import Attachment, OnProgress, attach, find_door
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.loader import Progress, ignore
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.packing import Wanted
from dataflower.checkpoint.plan import Plan, find
from dataflower.checkpoint.region import Mapping, Owned
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.weights import Weights
from dataflower.clock import SystemClock
from dataflower.core.device.artifact import placed
from dataflower.errors import FailedPrecondition, ResourceExhausted, Unavailable

_log = logging.getLogger(__name__)
_monotonic = SystemClock().monotonic


def open_weights(
    model: str | Path,
    *,
    config: StoreConfig | None = None,
    progress: Progress = ignore,
    packed: str = "",
    device: str = HOST,
) -> Weights:
    """The weights of a model, loaded once per host; blocks until they are there and checked.

        with checkpoint.open("smollm2") as weights:
            tensors = weights.tensors()          # read-only views, nothing is copied

    Inside a container the host's store has them or loads them, and this process maps its memory. Elsewhere they are
    read into this process, once for all who open them here at the same time.

    Args:
        model: a name that `dataflower models ls` knows, a folder with safetensors files, one such file, or a URL of
            either, which is fetched once.
        config: where models lie, for a process without a store; by default `StoreConfig()`.
        progress: told of bytes as they arrive, from any thread.
        packed: dtype of laid-out weights that are wanted rather, see `packing`; inside a container, and if the model is
            of a kind that has them, `Weights.metadata` says how they are laid out. Otherwise the weights are as ever.
            On other devices than the CPU there are none.
        device: where the tensors are to be: `cpu`, or such as `cuda:0`. A device has one copy, too, which goes when
            nobody uses it any more; it is made while the weights are read, and `progress` is told of what has come
            as far as there.

    Raises:
        NotFound: there is no such model, or device.
        WeightsInvalid: a file is damaged, cut off, or no safetensors file; or another than the one that was added.
        ResourceExhausted: it does not fit into the store's memory, onto the disk, or onto the device.
        Unavailable: the device's driver refuses, its source can't be reached, or the store died again and again.
    """
    door = find_door()
    if device != HOST:
        return _open_on(device, door, str(model), config or StoreConfig(), progress)
    if door is None:
        return _open_here(str(model), config or StoreConfig(), progress)
    begun, name = _monotonic(), str(Wanted(packed, str(model)))
    got = _attach_packed(door, name, progress) if packed else None
    if got is None:
        name = str(model)
        got = attach(door, name, _differences(progress))
    waited_s, nbytes = max(0.0, _monotonic() - begun - got.map_s), got.mapping.nbytes
    phases.note(wire.StartKind.WEIGHTS, name, waited_s, nbytes=nbytes, was_there=got.was_there)
    phases.note(wire.StartKind.MAP, name, got.map_s)
    return Weights(got.manifest, got.mapping, got.folder, str(model), got.digest, shared=True)


def _open_on(device: str, door: int | None, model: str, config: StoreConfig, progress: Progress) -> Weights:
    from dataflower.checkpoint.device import attach as attach_on
    from dataflower.checkpoint.device import load

    if door is None:
        return load(model, device, config, progress)
    begun = _monotonic()
    got = attach_on(door, model, device, _differences(progress))
    name, waited_s = placed(model, got.weights.device), max(0.0, _monotonic() - begun - got.map_s)
    phases.note(wire.StartKind.WEIGHTS, name, waited_s, nbytes=got.weights.nbytes, was_there=got.was_there)
    phases.note(wire.StartKind.MAP, name, got.map_s)
    return got.weights


def _attach_packed(door: int, name: str, progress: Progress) -> Attachment | None:
    """None: there are none, which is no reason not to run."""
    try:
        return attach(door, name, _differences(progress))
    except (FailedPrecondition, ResourceExhausted, Unavailable) as error:
        _log.info("%s are not to be had, so the weights are used as they are: %s", name, error.message)
        return None


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
    with _lock:  # one load at a time: two would only share the disk
        plan = find(DiskTier(config), model)
        known = plan.located.manifest
        if known is not None:  # under whatever name it was loaded
            plan.key = next((key for key, held in _here.items() if held.manifest.digest == known.digest), plan.key)
        resident = _here.get(plan.key)
        mapping = None if resident is None else resident.mapping()
        if resident is not None and mapping is not None:
            return Weights(resident.manifest, mapping, plan.folder, model)
        manifest, mapping = load_private(plan, progress)
        _here[plan.key] = _Resident(manifest, weakref.ref(mapping, lambda _: _here.pop(plan.key, None)))
        return Weights(manifest, mapping, plan.folder, model)


def load_private(plan: Plan, progress: Progress = ignore) -> tuple[Manifest, Mapping]:
    """Read a model into memory of this process alone."""
    owned = Owned(plan.memory_bytes)
    try:
        plan.fill(owned, progress)
        assert plan.manifest is not None
        mapping = Mapping([segment.fd for segment in owned.segments], owned.nbytes)
    finally:
        owned.close()
    return plan.manifest, mapping
