"""What the store expects of devices: of one that host memory plays, and of the machine's own where it has one."""

import ctypes

import pytest

from dataflower.checkpoint import cuda
from dataflower.checkpoint.accelerator import Accelerator
from dataflower.checkpoint.cuda_driver import LIBRARY
from dataflower.testing import fake_device
from dataflower.testing.device_suite import DeviceSuite

LOOK = """
import ctypes, numpy
def look(block): return numpy.frombuffer((ctypes.c_ubyte * block.nbytes).from_address(block.address), "u1")
"""
"""A fake device's memory without torch, which takes seconds to import."""


def has_cuda() -> bool:
    """Whether this machine has a CUDA device, and torch can use it."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


class TestFake(DeviceSuite):
    module, name = "dataflower.testing.fake_device", fake_device.NAME
    look = LOOK
    shares_all = True

    @pytest.fixture
    def device(self) -> Accelerator:
        return fake_device.FakeDevice(fake_device.FakeLibrary(2**28))


class TestFakeWithoutRights(DeviceSuite):
    """A driver that knows no reading alone, and can't lock foreign memory."""

    module, name = "dataflower.testing.fake_device", fake_device.NAME
    look = LOOK
    pins = False

    @pytest.fixture
    def device(self, monkeypatch: pytest.MonkeyPatch) -> Accelerator:
        monkeypatch.setenv(fake_device.POOR, "1")  # for the processes that read
        return fake_device.FakeDevice(fake_device.FakeLibrary(2**28, pins=False, read_only=False))


@pytest.mark.skipif(not has_cuda(), reason="this machine has no CUDA device")
class TestCuda(DeviceSuite):
    module, name = "dataflower.checkpoint.cuda", "cuda:0"

    @pytest.fixture
    def device(self) -> Accelerator:
        return cuda.find(self.name)
