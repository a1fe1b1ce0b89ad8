"""Weights on a device as a function holds them: tensors over memory that all functions of the host share.

The same names and shapes as over host memory; what differs is where the bytes are. Functions get device memory mapped
for reading only, where the driver knows that right. Whoever holds a descriptor could map it otherwise, so this guards
against mistakes and not against malice: who must not be able to harm another's weights needs a device of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping as Readonly
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataflower.channel.link import Link
from dataflower.checkpoint import accelerator, heads, protocol
from dataflower.checkpoint.accelerator import Accelerator, Block
from dataflower.checkpoint.client import ATTEMPTS, OnProgress, enter, refusal
from dataflower.checkpoint.copying import copy
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.layout import pages
from dataflower.checkpoint.loader import Progress, ignore
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.plan import find
from dataflower.checkpoint.region import Mapping, Owned
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.weights import Weights
from dataflower.clock import SystemClock
from dataflower.errors import EndOfStream, InvalidArgument, NotFound, PeerGone, Unavailable

if TYPE_CHECKING:
    import torch

_monotonic = SystemClock().monotonic


class DeviceWeights(Weights):
    """A model's weights on a device, as `checkpoint.open(model, device=...)` gives them; see `Weights`.

    `read` gives the small files alone; of safetensors files the processor has the headers.
    """

    def __init__(
        self,
        manifest: Manifest,
        mapping: Mapping,
        folder: Path,
        name: str,
        digest: str,
        *,
        block: Block,
        on: Accelerator,
        shared: bool,
    ) -> None:
        """`mapping`: of the heads (`checkpoint.heads`); `block`: of the files; `on`: the device that has it."""
        super().__init__(manifest, mapping, folder, name, digest, shared=shared)
        self.device, self.torch_device = on.name, on.torch_device
        self._block: Block | None = block
        lengths = heads.read_lengths(manifest, mapping.view(0, heads.table_bytes(manifest)))
        self._heads = {place.name: place for place in heads.places(manifest, lengths)[1:]}

    @property
    def may_copy(self) -> bool:
        """False: a device's memory is never had twice for the asking."""
        return False

    def read(self, file: str) -> memoryview:
        """A file of the model that is not of weights.

        Raises:
            NotFound: the model has no such file.
            InvalidArgument: it is a safetensors file: its bytes are on the device.
        """
        if file in self._places and file.endswith(".safetensors"):
            raise InvalidArgument(f"{self.name}/{file} is on the device {self.torch_device}: use `tensors`")
        return super().read(file)

    def tensors(self) -> Readonly[str, torch.Tensor]:
        """Name -> tensor on the device, read-only by right or by convention. They keep its memory."""
        self._open_mapping()
        parsed = self._parsed()
        assert self._block is not None
        whole = self._block.tensor()
        return self._views(parsed, lambda place: whole[place.offset : place.offset + place.nbytes])

    def close(self) -> None:
        """See `Weights`."""
        self._block = None
        super().close()

    def _data(self, file: str) -> memoryview:
        mapping = self._open_mapping()
        place = self._heads.get(file)
        if place is None:
            raise NotFound(f"{self.name} has no file {file!r}; it has {', '.join(self._places)}")
        return mapping.array(place.offset, place.nbytes)


@dataclass(frozen=True, slots=True)
class _Got:
    """What a store handed over."""

    message: protocol.OnDevice
    descriptors: list[int]
    link: Link
    was_there: bool


@dataclass(frozen=True, slots=True)
class DeviceAttachment:
    """What a store gave: the weights, whether it had them there, and the seconds that mapping them took."""

    weights: DeviceWeights
    was_there: bool
    map_s: float


def attach(door: int, model: str, device: str, on_progress: OnProgress) -> DeviceAttachment:
    """Weights on a device from the store behind `door`; blocks.

    `on_progress`: told of a load that is waited for, never of less than before.

    What a store that has died handed over stays usable; the next one brings the weights there again for who asks it.

    Raises:
        DataflowerError: the store's refusal: no such model or device, damaged files, no room on the device.
        Unavailable: the store can't be reached, or died again and again; or the device can't be opened here.
    """
    for _ in range(ATTEMPTS):
        try:
            got = _ask(enter(door), model, device, on_progress)
        except (EndOfStream, PeerGone):
            continue
        begun = _monotonic()
        weights = _open(got, model)
        return DeviceAttachment(weights, got.was_there, _monotonic() - begun)
    raise Unavailable(f"the store of weights ended while {model} was asked for on {device} (its log may say why)")


def load(model: str, device: str, config: StoreConfig, progress: Progress = ignore) -> DeviceWeights:
    """The same without a store, in memory of this process alone: read into host memory and copied behind that.

    Raises:
        NotFound, WeightsInvalid, ResourceExhausted, Unavailable: see `checkpoint.open`.
    """
    on = accelerator.find(config.accelerators, device)
    plan = find(DiskTier(config), model)
    owned = Owned(plan.memory_bytes)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            plan.fill(owned, progress)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read, name="weights", daemon=True)
    try:
        block = on.allocate(plan.memory_bytes)
        thread.start()
        complete = copy(on, block, plan, owned)
        thread.join()
        if errors:
            block.close()
            raise errors[0]
        assert complete
        assert plan.manifest is not None
        kept = heads.take(plan.manifest, owned)
        mapping = Mapping([segment.fd for segment in kept.segments], kept.nbytes)
        kept.close()
    finally:
        if thread.is_alive():
            thread.join()
        owned.close()
    digest = plan.manifest.digest
    return DeviceWeights(plan.manifest, mapping, plan.folder, model, digest, block=block, on=on, shared=False)


def _ask(link: Link, model: str, device: str, on_progress: OnProgress) -> _Got:
    so_far = total = 0
    try:
        link.send(protocol.encode(protocol.Ask(model, device=device)))
        while True:
            payload, descriptors = link.receive()
            match protocol.decode_from_store(payload):
                case protocol.Progress(arrived, total):
                    if arrived > so_far:  # a load that began again is silent until it is as far
                        so_far = arrived
                        on_progress(so_far, total)
                case protocol.OnDevice() as message:
                    if so_far < total:
                        on_progress(total, total)
                    return _Got(message, descriptors, link, not total)
                case protocol.Refused(code, text):
                    raise refusal(code, text)
                case _:
                    raise PeerGone("the store said what it should not")
    except BaseException:
        link.close()
        raise


def _open(got: _Got, model: str) -> DeviceWeights:
    message, opened = got.message, False
    try:
        on = accelerator.find(message.accelerators, message.device)
        mapping = Mapping(got.descriptors[1:], _heads_bytes(got.descriptors[1:]))
        block = on.open(got.descriptors[0], message.nbytes, got.link.close)
        opened = True
    finally:
        for descriptor in got.descriptors:
            os.close(descriptor)
        if not opened:
            got.link.close()
    return DeviceWeights(
        message.manifest,
        mapping,
        Path(message.folder),
        model,
        message.digest,
        block=block,
        on=on,
        shared=True,
    )


def _heads_bytes(descriptors: list[int]) -> int:
    """Size of the memory of heads: that of its pieces."""
    return sum(pages(os.fstat(descriptor).st_size) for descriptor in descriptors)
