"""CUDA devices as the store uses them: memory shared by descriptors, host memory page-locked, copies on streams.

Memory is shared by the driver's virtual memory management rather than by `cudaIpcMemHandle`s: what is handed over is a
descriptor, like that of host memory, so it goes through the same socket, means something in whatever namespace (the
older handles name a process, and containers have process numbers of their own), can be mapped read-only, and stays
valid when its owner dies: the driver frees memory when the last handle, mapping or descriptor of it is gone (CUDA
programming guide, "Interprocess communication" and "Virtual memory management").
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dataflower.checkpoint import accelerator
from dataflower.checkpoint.accelerator import Room
from dataflower.checkpoint.cuda_driver import (
    DESCRIPTORS_SUPPORTED,
    READ,
    READ_WRITE,
    VMM_SUPPORTED,
    CudaError,
    Driver,
    library,
)
from dataflower.errors import DataflowerError, NotFound, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    import torch

_PREFIX = "cuda:"
_lock = threading.Lock()
_devices: dict[int, Cuda] = {}


class CudaBlock:
    """Mapped device memory; see `accelerator.Block`."""

    def __init__(
        self,
        device: Cuda,
        handle: int,
        nbytes: int,
        access: int,
        on_unmapped: Callable[[], object] | None = None,
    ) -> None:
        """Takes the handle over, also on error."""
        driver = device.driver
        self._device, self._handle, self.nbytes = device, handle, nbytes
        whole = device.whole(nbytes)
        try:
            self.address = driver.reserve(whole)
        except BaseException:
            driver.release(handle)
            raise
        try:
            driver.map(self.address, whole, handle)
            try:
                self.read_only = _allow(driver, self.address, whole, access)
            except BaseException:
                driver.unmap(self.address, whole)
                raise
        except BaseException:
            driver.unreserve(self.address, whole)
            driver.release(handle)
            raise
        self._finalizer = weakref.finalize(self, _release, device, self.address, whole, handle, on_unmapped)
        self._finalizer.atexit = False  # at exit the driver does it, and tensors may still be looked at

    def export(self) -> int:
        """See `Block`."""
        self._device.driver.enter()
        return self._device.driver.export(self._handle)

    def tensor(self) -> torch.Tensor:
        """See `Block`."""
        return self._device.tensor_over(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How libraries see it (numba's CUDA array interface, version 3); the flag would say read-only: torch wants
        False."""
        return {
            "shape": (self.nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def close(self) -> None:
        """See `Block`."""
        self._finalizer()


class CudaBuffer:
    """Page-locked host memory; see `accelerator.Buffer`."""

    def __init__(self, device: Cuda, nbytes: int) -> None:
        self._device = device
        self.address = device.driver.host_memory(nbytes)

    def close(self) -> None:
        """See `Buffer`."""
        address, self.address = self.address, 0
        if address:
            self._device.driver.enter()
            self._device.driver.free_host_memory(address)


class CudaStream:
    """See `accelerator.Stream`."""

    def __init__(self, device: Cuda) -> None:
        self._device = device
        self._stream = device.driver.stream()

    def copy(self, block: accelerator.Block, offset: int, address: int, nbytes: int) -> None:
        """See `Stream`."""
        assert isinstance(block, CudaBlock)
        self._device.driver.enter()
        self._device.driver.copy(block.address + offset, address, nbytes, self._stream)

    def mark(self) -> Callable[[], None]:
        """See `Stream`."""
        driver = self._device.driver
        driver.enter()
        event = driver.record(self._stream)

        def wait() -> None:
            driver.enter()
            driver.wait(event)

        return wait

    def close(self) -> None:
        """See `Stream`."""
        stream, self._stream = self._stream, 0
        if stream:
            self._device.driver.enter()
            try:
                self._device.driver.finish(stream)
            finally:
                self._device.driver.end_stream(stream)


class Cuda:
    """One CUDA device; see `accelerator.Accelerator`."""

    def __init__(self, driver: Driver, name: str) -> None:
        """Raises Unavailable if its memory can't be shared by descriptors."""
        self.driver, self.name = driver, name
        driver.enter()
        if not (driver.attribute(VMM_SUPPORTED) and driver.attribute(DESCRIPTORS_SUPPORTED)):
            raise Unavailable(f"{name} can't share memory between processes by descriptors (WSL, or an old driver)")
        self._granularity = driver.granularity()

    @property
    def torch_device(self) -> str:
        """See `Accelerator`."""
        return self.name

    def tensor_over(self, block: CudaBlock) -> torch.Tensor:
        """A tensor that keeps the block."""
        import torch

        return torch.as_tensor(block, device=self.torch_device)

    def whole(self, nbytes: int) -> int:
        """Rounded up to what the device gives."""
        return -(-max(nbytes, 1) // self._granularity) * self._granularity

    def room(self) -> Room:
        """See `Accelerator`."""
        self.driver.enter()
        return Room(*self.driver.memory())

    def allocate(self, nbytes: int) -> CudaBlock:
        """See `Accelerator`."""
        self.driver.enter()
        try:
            return CudaBlock(self, self.driver.create(self.whole(nbytes)), nbytes, READ_WRITE)
        except ResourceExhausted as error:
            room = self.room()
            raise ResourceExhausted(
                f"{self.name} has no room for {nbytes / 2**20:.0f} MiB of weights: {room.free_bytes / 2**20:.0f} of "
                f"its {room.total_bytes / 2**20:.0f} MiB are free ({error.message})"
            ) from error

    def open(self, descriptor: int, nbytes: int, on_unmapped: Callable[[], object] | None = None) -> CudaBlock:
        """See `Accelerator`."""
        self.driver.enter()
        try:
            return CudaBlock(self, self.driver.take(descriptor), nbytes, READ, on_unmapped)
        except DataflowerError as error:
            raise Unavailable(f"the weights on {self.name} can't be opened here: {error.message}") from error

    def pin(self, address: int, nbytes: int) -> Callable[[], None] | None:
        """See `Accelerator`."""
        self.driver.enter()
        try:
            self.driver.pin(address, nbytes)
        except DataflowerError:
            return None

        def undo() -> None:
            self.driver.enter()
            self.driver.synchronize()  # a copy may still read it
            self.driver.unpin(address)

        return undo

    def buffer(self, nbytes: int) -> CudaBuffer:
        """See `Accelerator`."""
        self.driver.enter()
        return CudaBuffer(self, nbytes)

    def stream(self) -> CudaStream:
        """See `Accelerator`."""
        self.driver.enter()
        return CudaStream(self)


def find(name: str) -> Cuda:
    """The device `cuda` (the first) or `cuda:N`, one object per process.

    Raises:
        NotFound: there is no such device.
        Unavailable: there is no driver, or it refuses.
    """
    number = name.removeprefix(_PREFIX) if name != "cuda" else "0"
    if not number.isdecimal():
        raise NotFound(f"there is no device {name!r}: say cpu, or cuda:0 for the first CUDA device")
    with _lock:
        ordinal = int(number)
        if ordinal not in _devices:
            _devices[ordinal] = Cuda(Driver(library(), ordinal), f"{_PREFIX}{ordinal}")
        return _devices[ordinal]


def _allow(driver: Driver, address: int, nbytes: int, access: int) -> bool:
    """Whether it can be read only. A driver that knows no such right gives both: then not writing is a convention."""
    if access == READ:
        try:
            driver.allow(address, nbytes, READ)
        except CudaError:
            pass
        else:
            return True
    driver.allow(address, nbytes, READ_WRITE)
    return False


def _release(device: Cuda, address: int, nbytes: int, handle: int, on_unmapped: Callable[[], object] | None) -> None:
    driver = device.driver
    try:
        driver.enter()
        driver.synchronize()  # kernels that read it may still run
        driver.unmap(address, nbytes)
        driver.unreserve(address, nbytes)
        driver.release(handle)
    finally:
        if on_unmapped is not None:
            on_unmapped()
