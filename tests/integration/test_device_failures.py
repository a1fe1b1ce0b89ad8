"""A device that fails is its users' trouble, never the store's."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from weights_for_tests import make

from dataflower.checkpoint import StoreConfig, protocol
from dataflower.checkpoint.accelerator import Room
from dataflower.checkpoint.copying import Ring
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.lending import Borrower
from dataflower.checkpoint.plan import Plan, find
from dataflower.checkpoint.shelves import Shelves
from dataflower.clock import SystemClock
from dataflower.errors import Code, ResourceExhausted, Unavailable
from dataflower.testing import fake_device
from dataflower.testing.fake_device import NAME, FakeDevice, FakeLibrary


class Device(FakeDevice):
    """Works, until it does not."""

    def __init__(self) -> None:
        super().__init__(FakeLibrary(2**30))
        self.has_failed = False
        self.buffers = 0

    def room(self) -> Room:
        if self.has_failed:
            raise Unavailable("cuMemGetInfo_v2: CUDA_ERROR_LAUNCH_FAILED (719)")
        return super().room()

    def buffer(self, nbytes: int) -> Any:
        self.buffers += 1
        if self.buffers == 4:
            raise ResourceExhausted("cuMemHostAlloc: CUDA_ERROR_OUT_OF_MEMORY")
        return super().buffer(nbytes)


class Lender:
    """A store that lends nothing."""

    def __init__(self, config: StoreConfig) -> None:
        self._disk = DiskTier(config)
        self._said: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.answers: list[protocol.FromStore] = []
        self.asked: list[str] = []

    def post(self, say: Callable[[], None]) -> None:
        self._said.put(say)

    def hear(self) -> None:
        self._said.get(timeout=20)()

    def locate(self, model: str) -> Plan:
        return find(self._disk, model)

    def lend(self, model: str, borrower: Borrower) -> int:
        self.asked.append(model)
        return 1

    def give_back(self, number: int) -> None:
        raise AssertionError(number)

    def is_here(self, client: int) -> bool:
        return True

    def answer(self, client: int, message: protocol.FromStore, descriptors: Sequence[int] = ()) -> bool:
        self.answers.append(message)
        return True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(fake_device, "find", lambda name: made)
    return made


@pytest.fixture
def lender(tmp_path: Path) -> Lender:
    make(tmp_path / "m", 1)
    return Lender(StoreConfig(models_dir=tmp_path / "store"))


@pytest.fixture
def shelves(tmp_path: Path, lender: Lender) -> Shelves:
    config = StoreConfig(models_dir=tmp_path / "store", accelerators=fake_device.__name__)
    return Shelves(config, lender, SystemClock(), lambda name, nbytes, seconds: None)


def test_who_asks_for_weights_on_a_failed_device_is_told(
    device: Device, lender: Lender, shelves: Shelves, tmp_path: Path
) -> None:
    device.has_failed = True
    shelves.ask(1, protocol.Ask(str(tmp_path / "m"), device=NAME))
    lender.hear()
    assert lender.answers == [protocol.Refused(Code.UNAVAILABLE, "cuMemGetInfo_v2: CUDA_ERROR_LAUNCH_FAILED (719)")]
    assert shelves.statistics() == ()


def test_a_device_that_fails_later_has_no_room(
    device: Device, lender: Lender, shelves: Shelves, tmp_path: Path
) -> None:
    shelves.ask(1, protocol.Ask(str(tmp_path / "m"), device=NAME))
    lender.hear()
    assert lender.asked == [str(tmp_path / "m")]
    (before,) = shelves.statistics()
    device.has_failed = True
    (after,) = shelves.statistics()
    assert (before.total_bytes, after.total_bytes, after.free_bytes) == (2**30, 2**30, 0)
    assert after.models == before.models


def test_buffers_are_given_back_if_there_is_no_memory_for_all(device: Device) -> None:
    with pytest.raises(ResourceExhausted, match="cuMemHostAlloc"):
        Ring(device)
    assert device.buffers == 4
    assert not device.library.pinned
    assert not device.library._streams
