"""A machine without a GPU plays one: CUDA's driver over host memory, with handles, streams, a cap and refusals.

What is fake is the driver's library alone, so the code above it is that of a real device. Memory is a memfd, a
descriptor of which is what processes hand each other; streams are threads, so a copy that nobody waits for is missed;
copies out of memory that is not page-locked are refused; who opens memory of others gets it read-only, and a write is
a segmentation fault. Tensors over it are the CPU's. `StoreConfig(accelerators="dataflower.testing.fake_device")` has a
store use it, under the name `fake:0`.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dataflower.checkpoint.cuda import Cuda, CudaBlock
from dataflower.checkpoint.cuda_driver import DESCRIPTORS_SUPPORTED, OUT_OF_MEMORY, READ, VMM_SUPPORTED, Driver
from dataflower.errors import NotFound

if TYPE_CHECKING:
    import torch

NAME = "fake:0"
BYTES = "DATAFLOWER_FAKE_DEVICE_BYTES"
"""Environment variable: how much memory the device has; 1 GiB by default."""
POOR = "DATAFLOWER_FAKE_DEVICE_POOR"
"""Environment variable: `1` makes it a device that knows no reading alone, and can't page-lock foreign memory."""
GRANULARITY = 65536
_INVALID, _NOT_SUPPORTED = 1, 801
_NAMES = {1: b"CUDA_ERROR_INVALID_VALUE", 2: b"CUDA_ERROR_OUT_OF_MEMORY", 801: b"CUDA_ERROR_NOT_SUPPORTED"}
_MAP_FIXED = 0x10


class _Call:
    """A function of the library, by the C interface: `argtypes` and `restype` are set by who calls it."""

    def __init__(self, function: Callable[..., int | None]) -> None:
        self._function = function
        self.argtypes: Any = ()
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        assert len(arguments) == len(self.argtypes), self._function
        return self._function(*(_plain(argument) for argument in arguments)) or 0


def _plain(argument: Any) -> Any:
    """What a pointer points to stays an object; numbers become numbers."""
    pointed = getattr(argument, "_obj", None)
    if pointed is not None:
        return pointed
    return (argument.value or 0) if isinstance(argument, ctypes.c_void_p) else argument


class FakeLibrary:
    """Plays `libcuda.so.1` for one process."""

    def __init__(self, nbytes: int, *, pins: bool = True, read_only: bool = True) -> None:
        """`nbytes`: of the device. `pins`: foreign memory can be page-locked. `read_only`: such access is known."""
        self.total, self.pins, self.read_only = nbytes, pins, read_only
        self.used = 0
        """Bytes that this process has allocated."""
        self.pinned: dict[int, int] = {}
        """Page-locked memory: address -> bytes."""
        self.copied = 0
        """Bytes that have been copied."""
        self._numbers = itertools.count(1)
        self._handles: dict[int, tuple[int, int]] = {}
        self._mapped: dict[int, int] = {}
        self._memory: dict[int, mmap.mmap] = {}
        self._streams: dict[int, queue.SimpleQueue[Callable[[], object] | None]] = {}
        self._events: dict[int, threading.Event] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (*(ctypes.c_void_p, ctypes.c_size_t), *(ctypes.c_int,) * 3, ctypes.c_long)
        self._libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def __getattr__(self, name: str) -> _Call:
        function = getattr(type(self), "_" + name.removesuffix("_v2"), None) if name.startswith("cu") else None
        if function is None:
            raise AttributeError(name)
        call = _Call(function.__get__(self))
        setattr(self, name, call)
        return call

    # --- the device ----------------------------------------------------------------------------------------------

    def _cuInit(self, flags: int) -> None:
        assert flags == 0

    def _cuGetErrorName(self, number: int, text: Any) -> None:
        text.value = _NAMES.get(number)

    def _cuDeviceGetCount(self, count: Any) -> None:
        count.value = 1

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:
        device.value = ordinal

    def _cuDeviceGetAttribute(self, value: Any, number: int, device: int) -> None:
        value.value = int(number in {VMM_SUPPORTED, DESCRIPTORS_SUPPORTED})

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        context.value = 1

    def _cuCtxSetCurrent(self, context: int) -> None:
        assert context == 1

    def _cuCtxSynchronize(self) -> None:
        for stream in list(self._streams):
            self._cuStreamSynchronize(stream)

    def _cuMemGetInfo(self, free: Any, total: Any) -> None:
        free.value, total.value = self.total - self.used, self.total

    # --- memory --------------------------------------------------------------------------------------------------

    def _cuMemGetAllocationGranularity(self, value: Any, properties: Any, option: int) -> None:
        value.value = GRANULARITY

    def _cuMemCreate(self, handle: Any, nbytes: int, properties: Any, flags: int) -> int | None:
        if nbytes % GRANULARITY or not properties.handles:
            return _INVALID
        if nbytes > self.total - self.used:
            return OUT_OF_MEMORY
        descriptor = os.memfd_create("dataflower-fake-device", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        self.used += nbytes
        handle.value = self._keep(descriptor, nbytes)
        return None

    def _cuMemRelease(self, handle: int) -> None:
        descriptor, nbytes = self._handles.pop(handle)
        self.used -= nbytes
        os.close(descriptor)

    def _cuMemExportToShareableHandle(self, descriptor: Any, handle: int, kind: int, flags: int) -> None:
        descriptor.value = os.dup(self._handles[handle][0])

    def _cuMemImportFromShareableHandle(self, handle: Any, descriptor: int, kind: int) -> int | None:
        try:
            handle.value = self._keep(os.dup(descriptor), 0)  # others have paid for it
        except OSError:
            return _INVALID
        return None

    def _keep(self, descriptor: int, nbytes: int) -> int:
        number = next(self._numbers)
        self._handles[number] = (descriptor, nbytes)
        return number

    def _cuMemAddressReserve(self, address: Any, nbytes: int, alignment: int, wanted: int, flags: int) -> None:
        address.value = self._libc.mmap(None, nbytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)

    def _cuMemAddressFree(self, address: int, nbytes: int) -> None:
        assert address not in self._mapped, "it is mapped"
        self._libc.munmap(address, nbytes)

    def _cuMemMap(self, address: int, nbytes: int, offset: int, handle: int, flags: int) -> int | None:
        descriptor = self._handles[handle][0]
        if os.fstat(descriptor).st_size < nbytes:
            return _INVALID
        self._libc.mmap(address, nbytes, 0, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0)
        self._mapped[address] = nbytes
        return None

    def _cuMemUnmap(self, address: int, nbytes: int) -> None:
        assert self._mapped.pop(address) == nbytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        self._libc.mmap(address, nbytes, 0, flags, -1, 0)

    def _cuMemSetAccess(self, address: int, nbytes: int, wanted: Any, count: int) -> int | None:
        if wanted.flags == READ and not self.read_only:
            return _NOT_SUPPORTED
        protection = mmap.PROT_READ if wanted.flags == READ else mmap.PROT_READ | mmap.PROT_WRITE
        assert self._libc.mprotect(address, nbytes, protection) == 0
        return None

    # --- host memory ---------------------------------------------------------------------------------------------

    def _cuMemHostRegister(self, address: int, nbytes: int, flags: int) -> int | None:
        if not self.pins or address % mmap.PAGESIZE or address in self.pinned:
            return _INVALID if self.pins else _NOT_SUPPORTED
        self.pinned[address] = nbytes
        return None

    def _cuMemHostUnregister(self, address: int) -> None:
        del self.pinned[address]

    def _cuMemHostAlloc(self, address: Any, nbytes: int, flags: int) -> None:
        memory = mmap.mmap(-1, nbytes)
        address.value = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._memory[address.value] = memory
        self.pinned[address.value] = nbytes

    def _cuMemFreeHost(self, address: int) -> None:
        del self.pinned[address]
        del self._memory[address]

    # --- streams -------------------------------------------------------------------------------------------------

    def _cuMemcpyHtoDAsync(self, to: int, address: int, nbytes: int, stream: int) -> int | None:
        pinned = list(self.pinned.items())
        if not any(begin <= address and address + nbytes <= begin + size for begin, size in pinned):
            return _INVALID
        self._streams[stream].put(lambda: self._copy(to, address, nbytes))
        return None

    def _copy(self, to: int, address: int, nbytes: int) -> None:
        ctypes.memmove(to, address, nbytes)
        self.copied += nbytes

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:
        stream.value = next(self._numbers)
        work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._streams[stream.value] = work
        threading.Thread(target=_run, args=(work,), daemon=True, name="fake stream").start()

    def _cuStreamSynchronize(self, stream: int) -> None:
        done = threading.Event()
        self._streams[stream].put(done.set)
        done.wait()

    def _cuStreamDestroy(self, stream: int) -> None:
        self._streams.pop(stream).put(None)

    def _cuEventCreate(self, event: Any, flags: int) -> None:
        event.value = next(self._numbers)
        self._events[event.value] = threading.Event()

    def _cuEventRecord(self, event: Any, stream: int) -> None:
        self._streams[stream].put(self._events[event].set)

    def _cuEventSynchronize(self, event: int) -> None:
        self._events[event].wait()

    def _cuEventDestroy(self, event: int) -> None:
        del self._events[event]


def _run(work: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (one := work.get()) is not None:
        one()


class FakeDevice(Cuda):
    """A device over a `FakeLibrary`."""

    def __init__(self, library: FakeLibrary, name: str = NAME) -> None:
        self.library = library
        super().__init__(Driver(library, 0), name)

    @property
    def torch_device(self) -> str:
        """Tensors are the CPU's."""
        return "cpu"

    def tensor_over(self, block: CudaBlock) -> torch.Tensor:
        """See `Cuda`."""
        import torch

        array = (ctypes.c_char * block.nbytes).from_address(block.address)
        array._block = block  # type: ignore[attr-defined]  # the tensor keeps the array, the array keeps the block
        return torch.frombuffer(memoryview(array).cast("B"), dtype=torch.uint8)


_lock = threading.Lock()
_found: list[FakeDevice] = []


def find(name: str) -> FakeDevice:
    """The one device, `fake:0`, as the environment wants it. Raises NotFound."""
    if name != NAME:
        raise NotFound(f"there is no device {name!r}; this machine plays {NAME}")
    with _lock:
        if not _found:
            nbytes, rich = int(os.environ.get(BYTES) or 2**30), os.environ.get(POOR) != "1"
            _found.append(FakeDevice(FakeLibrary(nbytes, pins=rich, read_only=rich)))
        return _found[0]
