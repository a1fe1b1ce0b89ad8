"""A ledger of shared memory that does not exist, kept from outside the core to catch leaks and early releases."""

from __future__ import annotations

from collections.abc import Collection

from dataflower.core.events import Slot
from dataflower.testing.behaviour import FakeTensor
from dataflower.wire import TensorRef

_SLOT_BYTES = 4096


class FakeSlots:
    """The slots of all containers of a script. Every violation is an AssertionError."""

    def __init__(self) -> None:
        self.live: set[Slot] = set()
        self.released: set[Slot] = set()
        self.dropped: set[int] = set()
        self.lost: set[Slot] = set()
        """Gone with the host that had kept them."""
        self._owners: dict[int, int] = {}
        self._dead: set[int] = set()
        self._next: dict[int, int] = {}

    def make_arena(self, container: int) -> int:
        """The container's first arena (container 0: the host's own, for what callers send)."""
        arena = container << 16 | 1
        self._owners[arena] = container
        return arena

    def allocate(self, arena: int, tensor: FakeTensor) -> TensorRef:
        """A new slot that holds `tensor`."""
        number = self._next.get(arena, 0)
        self._next[arena] = number + 1
        slot = number * _SLOT_BYTES
        self.live.add((arena, slot))
        return TensorRef(arena, slot, slot, tensor.size, "UINT8", (tensor.size,))

    def check_readable(self, slot: Slot) -> None:
        """A message may only refer to bytes that are still there."""
        assert slot in self.live, f"message refers to slot {slot}, which was given back before"
        assert slot not in self.lost, f"message refers to slot {slot}, whose bytes are lost"

    def release(self, container: int, slot: Slot) -> None:
        """The core gave a slot back to its owner."""
        assert self._owners.get(slot[0]) == container, f"slot {slot} given back to container {container}, not its own"
        assert slot not in self.released, f"slot {slot} given back twice"
        assert slot in self.live, f"slot {slot} given back but never handed out"
        self.live.remove(slot)
        self.released.add(slot)

    def owner_died(self, container: int) -> None:
        """Its arenas stay readable until the core drops them."""
        self._dead.add(container)

    def of(self, containers: Collection[int]) -> list[Slot]:
        """What lies in the arenas of these containers and is in use."""
        return sorted(slot for slot in self.live if self._owners[slot[0]] in containers)

    def lose(self, containers: Collection[int]) -> tuple[Slot, ...]:
        """That is gone."""
        gone = tuple(self.of(containers))
        self.lost.update(gone)
        return gone

    def drop(self, arena: int) -> list[Slot]:
        """The core forgot a dead owner's arena; the slots that went with it."""
        assert arena in self._owners, f"arena {arena} dropped but never made"
        assert self._owners[arena] in self._dead, f"arena {arena} dropped while its owner lives"
        assert arena not in self.dropped, f"arena {arena} dropped twice"
        self.dropped.add(arena)
        gone = [slot for slot in self.live if slot[0] == arena]
        self.live.difference_update(gone)
        return gone

    def check_idle(self) -> None:
        """Nothing runs and nothing is unread: every slot and every dead owner's arena is back."""
        assert not self.live, f"slots never given back: {sorted(self.live)}"
        kept = {a for a, owner in self._owners.items() if owner in self._dead} - self.dropped
        assert not kept, f"arenas of dead containers never dropped: {sorted(kept)}"
