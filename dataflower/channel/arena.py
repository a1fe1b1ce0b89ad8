"""Memory that one process writes and others read: the owner's side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from dataflower.wire import TensorRef

SEGMENT_BYTES = 64 << 20
"""Size of a first segment. Segments are sparse: memory is spent on pages that were written, not on size."""


class Slot(msgspec.Struct, frozen=True):
    """A piece of an arena. `slot` is its offset in the arena; `buffer` is writable, of `nbytes` as asked for."""

    arena: int
    slot: int
    nbytes: int
    buffer: memoryview

    def ref(self, dtype: str, shape: Sequence[int], offset: int = 0, nbytes: int | None = None) -> TensorRef:
        """Name `nbytes` (default: the rest of the slot) at `offset` bytes into the slot, for a message."""
        raise NotImplementedError


class ArenaStatistics(msgspec.Struct, frozen=True):
    """`used_bytes`: in live slots (counted against the cap); `reserved_bytes`: size of the (sparse) segments."""

    used_bytes: int
    reserved_bytes: int
    slots: int
    segments: int


class Arena:
    """The writer's side. Thread-safe.

    A slot lives until everyone has let go of it: the receivers (`release`), and, for arrays made by `array`, local user
    code (garbage collection). Written once, then sent; whoever writes after sending breaks its readers.
    """

    def __init__(
        self,
        owner: int,
        *,
        cap_bytes: int,
        announce: Callable[[int, int, int], None],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """`announce(arena, nbytes, fd)` is called once per segment, before any slot of it is handed out.

        The descriptor stays the arena's and open until `close`. `announce` may block; no lock that `release` needs is
        held meanwhile. Nothing is mapped before the first allocation. Arena numbers are `owner << 16 | n`.
        """
        raise NotImplementedError

    def allocate(self, nbytes: int, *, cancelled: Callable[[], bool] | None = None) -> Slot:
        """A slot that its receiver must `release`. Blocks while the cap is reached.

        Raises ResourceExhausted (bigger than the cap), Closed, DataflowerError with CANCELLED when `cancelled()` is
        true (looked at before each wait, and again after `interrupt`).
        """
        raise NotImplementedError

    def allocate_nowait(self, nbytes: int) -> Slot:
        """Like `allocate`, but raises WouldBlock where that would wait."""
        raise NotImplementedError

    def array(
        self, shape: Sequence[int], dtype: Any, *, cancelled: Callable[[], bool] | None = None
    ) -> np.ndarray[Any, Any]:
        """A writable, uninitialised array in the arena, freed when garbage-collected unless `share` gave it to a receiver."""
        raise NotImplementedError

    def share(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """Claim local memory (made by `array`) for sending by reference: (arena, slot, offset as in TensorRef).

        From here on the slot also needs one `release`. None if the memory is elsewhere, or is already
        with a receiver (the caller copies then: two claims could not be told apart when they are released).
        """
        raise NotImplementedError

    def release(self, slots: Iterable[tuple[int, int]]) -> None:
        """The receivers are done with these (arena, slot) pairs. ValueError for one that none of them has (nothing of the call is undone)."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Make every waiting `allocate` look at its `cancelled` again."""
        raise NotImplementedError

    def find(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """(arena, slot, offset as in TensorRef) of memory inside a live slot, or None."""
        raise NotImplementedError

    def statistics(self) -> ArenaStatistics:
        """Sizes and counts now."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the memory back as soon as no local view needs it. Idempotent; waiting `allocate`s raise Closed."""
        raise NotImplementedError
