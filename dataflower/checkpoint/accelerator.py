"""What the store wants of an accelerator: memory that processes share, and a way into it beside the processor.

`cuda` is the real one, `dataflower.testing.fake_device` plays one in host memory; one conformance suite holds both to
what is said here. Whoever needs a device names a module that has `find(name) -> Accelerator`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

HOST = "cpu"
"""The device that needs no tier of its own: functions compute on the host's memory."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of a device in bytes, for all processes that use it."""

    free_bytes: int
    total_bytes: int


class Block(Protocol):
    """A stretch of device memory. Usable from any thread of the process that has it mapped."""

    @property
    def nbytes(self) -> int:
        """As many as were asked for."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether the device refuses writes here. Not of one's own, nor where the driver knows no such right."""
        ...

    def export(self) -> int:
        """A descriptor by which another process opens the same memory; the caller closes it. For the owner."""
        ...

    def tensor(self) -> torch.Tensor:
        """All of it as bytes (`uint8`); it keeps the block mapped. Not to be written by who opened it."""
        ...

    def close(self) -> None:
        """Let go of it. The memory is free when every process has; for who has no tensor of it any more. Idempotent."""
        ...


class Buffer(Protocol):
    """Page-locked host memory, for bytes that come from memory that can't be locked."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    def close(self) -> None:
        """Give it back; no copy from it may be under way. Idempotent."""
        ...


class Stream(Protocol):
    """Copies in the order in which they were asked for, beside the processor. Any thread may ask."""

    def copy(self, block: Block, offset: int, address: int, nbytes: int) -> None:
        """Begin to copy host memory into a block of this process's own; returns before it is done.

        The host memory must be page-locked, and stay as it is until then.
        """
        ...

    def mark(self) -> Callable[[], None]:
        """A function that waits for all that was asked for before now. Raises Unavailable if the device failed."""
        ...

    def close(self) -> None:
        """Wait for everything and end. Idempotent."""
        ...


class Accelerator(Protocol):
    """One device, in this process. Usable from any thread."""

    @property
    def name(self) -> str:
        """What it was asked for by, such as `cuda:0`."""
        ...

    @property
    def torch_device(self) -> str:
        """What torch calls it."""
        ...

    def room(self) -> Room:
        """How much memory there is."""
        ...

    def allocate(self, nbytes: int) -> Block:
        """Memory of one's own, to write into.

        Raises:
            ResourceExhausted: the device has less; the message says how much.
        """
        ...

    def open(self, descriptor: int, nbytes: int, on_unmapped: Callable[[], object] | None = None) -> Block:
        """Memory that another process exported. The descriptor is not needed afterwards; the caller closes it.

        `on_unmapped` is called once it can't be read any more, in whatever thread. The memory stays as long as anybody
        has it open, also when its owner has ended.

        Raises:
            Unavailable: the device refuses.
        """
        ...

    def pin(self, address: int, nbytes: int) -> Callable[[], None] | None:
        """Page-lock host memory that is mapped writable, whole pages; gives what undoes it. None: it can't be."""
        ...

    def buffer(self, nbytes: int) -> Buffer:
        """Page-locked host memory. Raises ResourceExhausted."""
        ...

    def stream(self) -> Stream:
        """A new one."""
        ...


def find(module: str, name: str) -> Accelerator:
    """The device `name` of a module of devices.

    Raises:
        NotFound: there is no such device.
        Unavailable: its driver is not there, or refuses.
    """
    found: Accelerator = importlib.import_module(module).find(name)
    return found
