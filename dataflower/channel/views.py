"""Memory that one process writes and others read: the readers' side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from dataflower.wire import TensorRef


class ViewsStatistics(msgspec.Struct, frozen=True):
    """`mapped`: attached arenas that were read from; `held`: slots with live views."""

    attached: int
    mapped: int
    held: int


class Views:
    """Other processes' arenas, read-only. Thread-safe. Arenas are mapped when first read."""

    def __init__(
        self, on_unheld: Callable[[tuple[tuple[int, int], ...]], None] | None = None, *, keep_descriptors: bool = False
    ) -> None:
        """`on_unheld(slots)` is called when the last view of slots that `held` reported dies.

        It runs wherever the last reference is dropped, perhaps inside a garbage collection in any thread: it may only
        queue and wake (deque.append, SimpleQueue.put, eventfd), not take locks.
        `keep_descriptors`: keep them for `descriptor` (the host passes them on); otherwise mapping closes them.
        """
        raise NotImplementedError

    def attach(self, arena: int, nbytes: int, fd: int) -> None:
        """Take over the descriptor of an arena (closed here also on errors).

        Raises ValueError if the size differs, the seals are missing or the number is taken.
        """
        raise NotImplementedError

    def detach(self, arena: int) -> None:
        """Forget an arena; unmapped when its last view is gone. ValueError if it isn't attached."""
        raise NotImplementedError

    def wait_attached(self, arenas: Iterable[int], timeout_s: float | None = None) -> bool:
        """Block until all of these are attached (they come on another socket than the messages that need them)."""
        raise NotImplementedError

    def descriptor(self, arena: int) -> int:
        """Descriptor of an attached arena (with `keep_descriptors`), still owned here. ValueError if there is none."""
        raise NotImplementedError

    def view(self, ref: TensorRef) -> np.ndarray[Any, Any]:
        """The bytes as a read-only uint8 array. The slot is held while it, or anything made from it, lives.

        Raises ValueError for a reference that lies outside its arena or names one that isn't attached.
        """
        raise NotImplementedError

    def array(self, ref: TensorRef) -> np.ndarray[Any, Any]:
        """Like `view`, with dtype and shape of the reference (BF16 as uint16)."""
        raise NotImplementedError

    def held(self, slots: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Which of these slots still have live views. Each will be given to `on_unheld` once, when it has none.

        That may happen as soon as this returns, so the caller must queue what it says about `held` (TaskDone) ahead of
        what `on_unheld` says, e.g. by holding its outgoing queue's lock round both.
        """
        raise NotImplementedError

    def find(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """(arena, slot, offset as in TensorRef) of memory inside a live view, or None."""
        raise NotImplementedError

    def statistics(self) -> ViewsStatistics:
        """Counts now."""
        raise NotImplementedError

    def close(self) -> None:
        """Detach everything. Views that live stay valid. Idempotent."""
        raise NotImplementedError
