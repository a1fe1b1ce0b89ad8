"""Who still needs which slot: reference counts of shared memory, kept where tokens are kept.

One count per slot. Whoever stores a token for later holds it, whoever is done drops it; at zero the slot is due for
release to the owner of its arena. Most values carry no slot at all, hence the early exits.
"""

from __future__ import annotations

from collections.abc import Iterable

from dataflower.core.events import Slot
from dataflower.wire import Value


class Ledger:
    """Reference counts by slot. `due` and `orphans` collect what the host must be told after an event."""

    def __init__(self) -> None:
        self._counts: dict[Slot, int] = {}
        self._live: dict[int, int] = {}
        """Slots in use, by arena."""
        self._dead: set[int] = set()
        """Arenas whose owner is gone but which are still read."""
        self.due: list[Slot] = []
        self.orphans: list[int] = []
        self.watched: set[Slot] = set()
        """Slots whose end somebody wants to know; `unwatched` collects them."""
        self.unwatched: list[Slot] = []
        self.lost: set[Slot] = set()
        """Slots that are held but whose bytes are gone."""
        self.on_disk: set[int] = set()
        """Arenas that are files."""

    def hold(self, value: Value) -> None:
        """Count one more reader of every slot in a value."""
        if value.tensors:
            for ref in value.tensors:
                self.hold_slot((ref.arena, ref.slot))
        if value.spilled is not None:
            self.hold_slot((value.spilled.arena, value.spilled.slot))

    def drop(self, value: Value) -> None:
        """Count one reader less; undoes one `hold`."""
        if value.tensors:
            for ref in value.tensors:
                self.drop_slot((ref.arena, ref.slot))
        if value.spilled is not None:
            self.drop_slot((value.spilled.arena, value.spilled.slot))

    def hold_slot(self, slot: Slot) -> None:
        """Count one more reader of a slot."""
        count = self._counts.get(slot, 0)
        self._counts[slot] = count + 1
        if not count:
            self._live[slot[0]] = self._live.get(slot[0], 0) + 1

    def drop_slot(self, slot: Slot) -> None:
        """Count one reader less; at zero the slot is due for release. KeyError if nobody held it (a bug)."""
        count = self._counts[slot] - 1
        if count:
            self._counts[slot] = count
            return
        del self._counts[slot]
        if self.watched and slot in self.watched:
            self.watched.discard(slot)
            self.unwatched.append(slot)
            self.lost.discard(slot)
        arena = slot[0]
        self._live[arena] -= 1
        if arena not in self._dead:
            self.due.append(slot)
        elif not self._live[arena]:
            self._forget(arena)

    def lose(self, slots: Iterable[Slot]) -> bool:
        """The bytes of these slots are gone; whether anybody reads one of them."""
        held = [slot for slot in slots if slot in self._counts]
        self.lost.update(held)
        self.watched.update(held)
        return bool(held)

    def owner_gone(self, arenas: Iterable[int]) -> None:
        """The owner of these arenas died: they are dropped as soon as their last slot is."""
        for arena in arenas:
            self._dead.add(arena)
            if not self._live.get(arena):
                self._forget(arena)
        dead = self._dead
        self.due = [slot for slot in self.due if slot[0] not in dead]

    def _forget(self, arena: int) -> None:
        self._dead.discard(arena)
        self._live.pop(arena, None)
        self.on_disk.discard(arena)
        self.orphans.append(arena)

    def is_held(self, slot: Slot) -> bool:
        """Whether anybody still reads the slot."""
        return slot in self._counts

    @property
    def slots(self) -> int:
        """How many slots are in use."""
        return len(self._counts)

    def check_integrity(self) -> None:
        """Counts are positive and the arenas' sums agree with them."""
        assert all(count > 0 for count in self._counts.values())
        live: dict[int, int] = {}
        for arena, _ in self._counts:
            live[arena] = live.get(arena, 0) + 1
        assert live == {arena: count for arena, count in self._live.items() if count}
