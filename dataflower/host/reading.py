"""How a caller reads an invocation: its outputs one at a time, or all of them.

Apart from the invocation itself because coroutines that clean up must not be compiled (`container.coroutines`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol

from dataflower.errors import Failure, InvocationFailed
from dataflower.host.api import OutputItem
from dataflower.wire import Value


class Referable:
    """Base of a class that may be compiled and is held by weak references: compiled ones alone know none."""


class Source(Protocol):
    """An invocation that can be read. `failure`, `is_over`: as of the whole."""

    failure: Failure | None
    is_over: bool

    def begin_reading(self) -> None:
        """Raises if somebody reads already, or nothing is left."""
        ...

    def next_output(self) -> tuple[str, int, Value] | None:
        """The next that is there: port, index, value."""
        ...

    def look_at(self, value: Value) -> Any:
        """What a caller is given: tensors are views."""
        ...

    def took(self, port: str, index: int, value: Value, before: int) -> None:
        """The caller has let go of an output, and of so many of this port before it."""
        ...

    def begin_collecting(self) -> None:
        """Take what is there, and from now on what comes."""
        ...

    def collected(self) -> dict[str, Any]:
        """All that was collected."""
        ...

    def changed(self) -> Awaitable[None]:
        """Done when something has happened."""
        ...

    def end_reading(self) -> None:
        """Let go of what is left."""
        ...


async def read(source: Source) -> AsyncIterator[OutputItem]:
    """Results as they come; raises `InvocationFailed` at the end if it failed. Leaving the loop early cancels."""
    source.begin_reading()
    taken: dict[str, int] = {}
    try:
        while True:
            while (output := source.next_output()) is not None:
                port, index, value = output
                yield OutputItem(port, index, source.look_at(value))
                before = taken.get(port, 0)
                source.took(port, index, value, before)
                taken[port] = before + 1
            if source.is_over:
                break
            await source.changed()
    finally:
        source.end_reading()
    if source.failure is not None:
        raise InvocationFailed(source.failure)


async def collect(source: Source) -> dict[str, Any]:
    """All outputs, streams as lists, absent ones left out (tensors copied). Raises `InvocationFailed`."""
    source.begin_reading()
    try:
        source.begin_collecting()
        while not source.is_over:
            await source.changed()
    finally:
        source.end_reading()
    if source.failure is not None:
        raise InvocationFailed(source.failure)
    return source.collected()
