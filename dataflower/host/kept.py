"""Outputs that stay on a lender: which bytes of which slots are there, and which of them have come here since."""

from __future__ import annotations

from dataflower.wire import TensorRef

Slot = tuple[int, int]


class Kept:
    """Of one session, by slot."""

    def __init__(self) -> None:
        self._places: dict[Slot, dict[tuple[int, int], bool]] = {}
        """(offset, bytes) of what is there, and whether it is here as well."""

    def __bool__(self) -> bool:
        return bool(self._places)

    def __contains__(self, slot: Slot) -> bool:
        return slot in self._places

    def add(self, ref: TensorRef) -> None:
        """An output names these bytes, and stays."""
        if ref.nbytes:
            self._places.setdefault((ref.arena, ref.slot), {}).setdefault((ref.offset, ref.nbytes), False)

    def came(self, ref: TensorRef) -> None:
        """These bytes are here. No-op for what does not stay."""
        places = self._places.get((ref.arena, ref.slot))
        if places is not None and ref.nbytes:
            places[ref.offset, ref.nbytes] = True

    def is_here(self, ref: TensorRef) -> bool:
        """Whether these bytes have come here, or don't stay."""
        places = self._places.get((ref.arena, ref.slot), {})
        start, end = ref.offset, ref.offset + ref.nbytes
        here = any(there and at <= start and end <= at + nbytes for (at, nbytes), there in places.items())
        return here or not places or not ref.nbytes

    def forget(self, slot: Slot) -> None:
        """This slot will be written again, or nobody needs it."""
        self._places.pop(slot, None)

    def forget_arena(self, arena: int) -> None:
        """Nobody needs anything of this arena."""
        for slot in [slot for slot in self._places if slot[0] == arena]:
            del self._places[slot]

    def lose(self) -> tuple[Slot, ...]:
        """The lender is gone: the slots of which something was only there."""
        places, self._places = self._places, {}
        return tuple(slot for slot, found in places.items() if not all(found.values()))
