"""CUDA's driver as far as the store needs it: `libcuda.so.1` called by its C interface, without torch.

Every process of a host has that library if it has a device at all, whatever torch it runs, and the store needs none.
Names, numbers and layouts are those of `cuda.h` (driver API, stable within a major version since 11.0).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ushort, c_void_p
from typing import Any

from dataflower.errors import DataflowerError, NotFound, ResourceExhausted, Unavailable

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2
VMM_SUPPORTED = 102
"""CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED."""
DESCRIPTORS_SUPPORTED = 103
"""CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED."""
READ, READ_WRITE = 1, 3
"""CU_MEM_ACCESS_FLAGS_PROT_..."""
_PINNED, _DEVICE, _DESCRIPTOR, _PORTABLE = 1, 1, 1, 1
_EVENT_BLOCKING_SYNC, _EVENT_DISABLE_TIMING = 1, 2
_STREAM_NON_BLOCKING = 1


class _Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class _Flags(ctypes.Structure):
    _fields_ = (("compression", c_ubyte), ("rdma", c_ubyte), ("usage", c_ushort), ("reserved", c_ubyte * 4))


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int),
        ("handles", c_int),
        ("location", _Location),
        ("windows", c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", c_int))


_SIGNATURES: dict[str, Sequence[Any]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemGetAllocationGranularity": (POINTER(c_size_t), POINTER(_Properties), c_int),
    "cuMemCreate": (POINTER(c_uint64), c_size_t, POINTER(_Properties), c_uint64),
    "cuMemRelease": (c_uint64,),
    "cuMemAddressReserve": (POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemSetAccess": (c_uint64, c_size_t, POINTER(_Access), c_size_t),
    "cuMemExportToShareableHandle": (c_void_p, c_uint64, c_int, c_uint64),
    "cuMemImportFromShareableHandle": (POINTER(c_uint64), c_void_p, c_int),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
}


class CudaError(Unavailable):
    """A call of the driver failed. `number`: of the CUresult."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Driver:
    """Calls on one device, in its primary context (the one that torch uses). Blocking calls release the interpreter."""

    def __init__(self, library: Any, ordinal: int) -> None:
        """`library`: `libcuda`, or what has its functions.

        Raises:
            NotFound: the machine has fewer devices.
            CudaError: the driver refuses.
        """
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        self._call("cuInit", 0)
        count = c_int()
        self._call("cuDeviceGetCount", byref(count))
        if not 0 <= ordinal < count.value:
            raise NotFound(f"there is no cuda:{ordinal}; this machine shows {count.value} CUDA devices")
        device = c_int()
        self._call("cuDeviceGet", byref(device), ordinal)
        self.device = device.value
        self._context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self.device)

    # --- the device ----------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Make the device's context that of this thread; before any of the calls below."""
        self._call("cuCtxSetCurrent", self._context)

    def attribute(self, number: int) -> int:
        """A CUdevice_attribute."""
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self.device)
        return value.value

    def memory(self) -> tuple[int, int]:
        """(free, all) bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def synchronize(self) -> None:
        """Wait for all work of this process on the device."""
        self._call("cuCtxSynchronize")

    # --- memory that processes share -----------------------------------------------------------------------------

    def granularity(self) -> int:
        """What sizes of memory must be multiples of."""
        value = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(value), byref(self._properties()), 0)
        return value.value

    def create(self, nbytes: int) -> int:
        """Memory without an address: a handle."""
        handle = c_uint64()
        self._call("cuMemCreate", byref(handle), nbytes, byref(self._properties()), 0)
        return handle.value

    def release(self, handle: int) -> None:
        """Let go of a handle; memory that is mapped, or that others have, stays."""
        self._call("cuMemRelease", handle)

    def export(self, handle: int) -> int:
        """A descriptor of the memory, the caller's."""
        descriptor = c_int(-1)
        self._call("cuMemExportToShareableHandle", byref(descriptor), handle, _DESCRIPTOR, 0)
        return descriptor.value

    def take(self, descriptor: int) -> int:
        """The handle of memory that was exported. (The descriptor goes by value in place of a pointer: see cuda.h.)"""
        handle = c_uint64()
        self._call("cuMemImportFromShareableHandle", byref(handle), c_void_p(descriptor), _DESCRIPTOR)
        return handle.value

    def reserve(self, nbytes: int) -> int:
        """Addresses."""
        address = c_uint64()
        self._call("cuMemAddressReserve", byref(address), nbytes, 0, 0, 0)
        return address.value

    def unreserve(self, address: int, nbytes: int) -> None:
        """Give addresses back."""
        self._call("cuMemAddressFree", address, nbytes)

    def map(self, address: int, nbytes: int, handle: int) -> None:
        """Put memory at reserved addresses."""
        self._call("cuMemMap", address, nbytes, 0, handle, 0)

    def unmap(self, address: int, nbytes: int) -> None:
        """Take it away from there."""
        self._call("cuMemUnmap", address, nbytes)

    def allow(self, address: int, nbytes: int, access: int) -> None:
        """Let the device `READ`, or `READ_WRITE`, mapped memory."""
        wanted = _Access(_Location(_DEVICE, self.device), access)
        self._call("cuMemSetAccess", address, nbytes, byref(wanted), 1)

    # --- host memory and copies ----------------------------------------------------------------------------------

    def pin(self, address: int, nbytes: int) -> None:
        """Page-lock mapped host memory."""
        self._call("cuMemHostRegister_v2", address, nbytes, _PORTABLE)

    def unpin(self, address: int) -> None:
        """Undo that."""
        self._call("cuMemHostUnregister", address)

    def host_memory(self, nbytes: int) -> int:
        """Page-locked host memory."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), nbytes, _PORTABLE)
        return int(address.value or 0)

    def free_host_memory(self, address: int) -> None:
        """Give it back."""
        self._call("cuMemFreeHost", address)

    def stream(self) -> int:
        """A stream that waits for no other."""
        made = c_void_p()
        self._call("cuStreamCreate", byref(made), _STREAM_NON_BLOCKING)
        return int(made.value or 0)

    def copy(self, to: int, address: int, nbytes: int, stream: int) -> None:
        """Host to device, on a stream."""
        self._call("cuMemcpyHtoDAsync_v2", to, address, nbytes, stream)

    def finish(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cuStreamSynchronize", stream)

    def end_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def record(self, stream: int) -> int:
        """An event: what was asked of a stream so far."""
        event = c_void_p()
        self._call("cuEventCreate", byref(event), _EVENT_BLOCKING_SYNC | _EVENT_DISABLE_TIMING)
        self._call("cuEventRecord", event, stream)
        return int(event.value or 0)

    def wait(self, event: int) -> None:
        """For an event, which is destroyed."""
        try:
            self._call("cuEventSynchronize", event)
        finally:
            self._call("cuEventDestroy_v2", event)

    # --- how calls go --------------------------------------------------------------------------------------------

    def _properties(self) -> _Properties:
        return _Properties(_PINNED, _DESCRIPTOR, _Location(_DEVICE, self.device), None, _Flags())

    def _call(self, name: str, *arguments: Any) -> None:
        number = getattr(self._library, name)(*arguments)
        if number:
            raise self._error(name, number)

    def _error(self, call: str, number: int) -> DataflowerError:
        text = c_char_p()
        self._library.cuGetErrorName(number, byref(text))
        said = (text.value or b"an unknown error").decode()
        if number == OUT_OF_MEMORY:
            return ResourceExhausted(f"{call}: {said}")
        return CudaError(f"{call}: {said} ({number})", number)


@functools.cache
def library() -> Any:
    """CUDA's driver. Raises Unavailable if this machine, or this container, has none."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Unavailable(
            f"there is no CUDA driver here ({LIBRARY}: {error}); a stage on a GPU needs `resources: {{gpu: 1}}`"
        ) from error
