"""Arena against a ledger kept by hand: live slots never overlap, sizes add up, what was freed is one piece again."""

import itertools
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from dataflower.channel import seals
from dataflower.channel.arena import Arena, Slot
from dataflower.channel.blocks import BIG, LINE, PAGE, Blocks, rounded
from dataflower.channel.segment import Spill, device_of
from dataflower.channel.views import ANY_DEVICE, Views
from dataflower.errors import ResourceExhausted, WouldBlock
from dataflower.testing.arenas import take

_CAP = 8 << 20
_SIZES = st.one_of(
    st.integers(0, 5000),
    st.integers(5000, 300_000),
    st.integers(BIG - LINE, BIG + LINE),
    st.integers(1 << 20, _CAP),
)


class ArenaMachine(RuleBasedStateMachine):
    """Any order of allocating, sending, releasing and forgetting."""

    slots = Bundle("slots")
    arrays = Bundle("arrays")
    spill: Spill | None = None

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.files: set[int] = set()
        self.views = Views(files_on=ANY_DEVICE)
        self.arena = Arena(3, cap_bytes=_CAP, announce=self._announce, segment_bytes=4 << 20, spill=self.spill)
        self.live: dict[tuple[int, int], int] = {}
        self.local: dict[tuple[int, int], np.ndarray[Any, Any]] = {}
        self.sent: set[tuple[int, int]] = set()

    def _announce(self, arena: int, nbytes: int, fd: int) -> None:
        self.sizes[arena] = nbytes
        if seals.seals_of(fd) is None:
            self.files.add(arena)
        self.views.attach(arena, nbytes, os.dup(fd))

    @rule(target=slots, nbytes=_SIZES)
    def allocate(self, nbytes: int) -> tuple[int, int] | None:
        try:
            slot = take(self.arena, nbytes)
        except WouldBlock:
            assert self.live, "nothing to wait for"
            return None
        assert len(slot.buffer) == nbytes
        assert slot.slot % (PAGE if nbytes >= BIG else LINE) == 0
        key = (slot.arena, slot.slot)
        self.live[key] = rounded(nbytes)
        self.sent.add(key)
        self._mark(slot)
        return key

    @rule(target=arrays, nbytes=_SIZES)
    def make_array(self, nbytes: int) -> tuple[int, int] | None:
        if self.arena.statistics().used_bytes + rounded(nbytes) > _CAP // 2:
            return None  # might wait for ever
        array = self.arena.array((nbytes,), np.uint8)
        array[-1:] = 7
        found = self.arena.find(array.__array_interface__["data"][0], nbytes)
        assert found is not None
        assert found[1] == found[2]
        self.live[found[:2]] = rounded(nbytes)
        self.local[found[:2]] = array
        return found[:2]

    @rule(key=arrays)
    def send_array(self, key: tuple[int, int] | None) -> None:
        array = self.local.get(key) if key else None
        if array is None or not array.nbytes:
            return
        claim = self.arena.share(array.__array_interface__["data"][0], array.nbytes)
        assert (claim is None) == (key in self.sent)
        self.sent.add(key)

    @rule(key=arrays)
    def forget_array(self, key: tuple[int, int] | None) -> None:
        if key and self.local.pop(key, None) is not None and key not in self.sent:
            del self.live[key]

    @rule(key=consumes(slots))
    def release(self, key: tuple[int, int] | None) -> None:
        if key in self.sent:
            self._release(key)

    @rule(key=arrays)
    def release_array(self, key: tuple[int, int] | None) -> None:
        if key in self.sent:
            self._release(key)

    def _release(self, key: tuple[int, int]) -> None:
        self.arena.release([key])
        self.sent.remove(key)
        if key not in self.local:
            del self.live[key]
        if key not in self.sent:
            with pytest.raises(ValueError, match="not with any receiver"):
                self.arena.release([key])

    @rule(arena=st.integers(0, 5 << 16), slot=st.integers(-1, 2**49))
    def release_nonsense(self, arena: int, slot: int) -> None:
        if (arena, slot) not in self.sent:
            with pytest.raises(ValueError, match="not with any receiver"):
                self.arena.release([(arena, slot)])

    @rule(over=st.integers(1, 2**62))
    def ask_too_much(self, over: int) -> None:
        with pytest.raises(ResourceExhausted, match="arena_bytes"):
            self.arena.allocate(_CAP + over)

    @precondition(lambda self: not self.live)
    @rule()
    def all_is_one_piece_again(self) -> None:
        for size in list(self.sizes.values())[:1]:
            slot = take(self.arena, min(size, _CAP))
            self.arena.release([(slot.arena, slot.slot)])

    @invariant()
    def live_slots_are_apart(self) -> None:
        end: tuple[int, int] = (0, 0)
        for (arena, slot), size in sorted(self.live.items()):
            assert (arena, slot) >= end
            assert slot + size <= self.sizes[arena]
            end = (arena, slot + size)

    @invariant()
    def sizes_add_up(self) -> None:
        statistics = self.arena.statistics()
        assert statistics.slots == len(self.live)
        for on_disk, used, pool in (
            (False, statistics.used_bytes, self.arena._memory),
            (True, statistics.spilled_bytes, self.arena._disk),
        ):
            assert used == sum(n for (arena, _), n in self.live.items() if (arena in self.files) is on_disk) <= _CAP
            reserved = sum(n for arena, n in self.sizes.items() if (arena in self.files) is on_disk)
            assert pool.reserved == reserved <= 3 * _CAP
            assert used + sum(size for _, size in pool.blocks.ranges()) == reserved
        assert statistics.reserved_bytes == self.arena._memory.reserved

    def _mark(self, slot: Slot) -> None:
        if slot.nbytes:
            slot.buffer[-1] = 5

    def teardown(self) -> None:
        self.views.close()
        self.local.clear()
        self.arena.close()


class SpillingArenaMachine(ArenaMachine):
    """The same with as much room on disk again."""

    spill = Spill("/var/tmp", _CAP, device_of("/var/tmp"))


TestArena = ArenaMachine.TestCase
TestSpillingArena = SpillingArenaMachine.TestCase
TestSpillingArena.settings = settings(max_examples=25, stateful_step_count=40)


class BlocksMachine(RuleBasedStateMachine):
    """Free blocks against a set of lines."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks()
        self.total = 64 * PAGE
        self.blocks.give(0, self.total)
        self.used: set[int] = set()

    @rule(target=taken, nbytes=st.integers(1, 30 * PAGE))
    def take(self, nbytes: int) -> tuple[int, int]:
        size = rounded(nbytes)
        start = self.blocks.take(size)
        if start is None:
            return (0, 0)
        lines = set(range(start, start + size, LINE))
        assert not lines & self.used
        self.used |= lines
        return (start, size)

    @rule(block=consumes(taken))
    def give(self, block: tuple[int, int]) -> None:
        if block[1]:
            self.blocks.give(*block)
            self.used -= set(range(block[0], sum(block), LINE))

    @invariant()
    def neighbours_are_joined(self) -> None:
        ranges = self.blocks.ranges()
        free = {line for start, size in ranges for line in range(start, start + size, LINE)}
        assert free == set(range(0, self.total, LINE)) - self.used
        assert all(a + size < b for (a, size), (b, _) in itertools.pairwise(ranges))
        assert self.blocks.largest == max((size for _, size in ranges), default=0)


TestBlocks = BlocksMachine.TestCase
