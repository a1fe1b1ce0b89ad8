"""What the store expects of a device, as tests: one suite for the fake one and for real ones."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dataflower.checkpoint.accelerator import Accelerator, Block
from dataflower.checkpoint.copying import Copier
from dataflower.checkpoint.layout import SEGMENT_BYTES
from dataflower.checkpoint.loader import Arrival
from dataflower.checkpoint.region import Owned
from dataflower.errors import DataflowerError, NotFound, ResourceExhausted
from dataflower.testing.answering import Answering

READER = """
import json, os, sys
from dataflower.checkpoint import accelerator
module, name, fd, nbytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
block = accelerator.find(module, name).open(fd, nbytes)
os.close(fd)
seen = look(block)
for line in sys.stdin:
    if line.strip() == "write":
        seen[0] = 1
    print(json.dumps([int(seen.sum()), seen[:8].tolist()]), flush=True)
"""
"""A program that has a block open, and says what is in it for each line that it is sent."""


class Reader(Answering):
    """Another process that has a block open."""

    def __init__(self, module: str, name: str, look: str, block: Block) -> None:
        descriptor = block.export()
        super().__init__(look + READER, [module, name, str(descriptor), str(block.nbytes)], [descriptor])
        os.close(descriptor)


class DeviceSuite(ABC):
    """Subclasses say which device."""

    module: str
    name: str
    pins = True
    """Whether it can page-lock memory."""
    look = "def look(block): return block.tensor()"
    """How another process sees a block as an array."""
    shares_all = False
    """Whether other processes take none of its memory for themselves."""

    @pytest.fixture
    @abstractmethod
    def device(self) -> Accelerator:
        """It."""

    @contextmanager
    def filled(self, device: Accelerator, nbytes: int, *, pin: bool = True) -> Iterator[tuple[Owned, Block]]:
        """Host memory with a pattern, and a block that it was copied to."""
        owned = Owned(nbytes)
        for number, view in enumerate(owned.views(0, nbytes)):
            view[:] = bytes([number % 251 + 1]) * len(view)
        block = device.allocate(nbytes)
        copier = Copier(device, block, owned, pin=pin)
        copier.advance(nbytes)
        copier.finish()
        copier.close()
        try:
            yield owned, block
        finally:
            block.close()
            owned.close()

    def expected(self, nbytes: int) -> int:
        """Sum of the pattern's bytes."""
        whole, rest = divmod(nbytes, SEGMENT_BYTES)
        return sum((n % 251 + 1) * SEGMENT_BYTES for n in range(whole)) + (whole % 251 + 1) * rest

    @pytest.mark.parametrize("pin", [True, False])
    @pytest.mark.parametrize("nbytes", [1, 5000, SEGMENT_BYTES + 12345])
    def test_bytes_arrive(self, device: Accelerator, nbytes: int, pin: bool) -> None:
        """From whole pieces and parts of them, locked or not."""
        with self.filled(device, nbytes, pin=pin) as (owned, block):
            tensor = block.tensor()
            assert tuple(tensor.shape) == (nbytes,)
            assert int(tensor.long().sum()) == self.expected(nbytes)
            assert owned.segments[0].pinned == (pin and self.pins)
            del tensor

    def test_what_is_locked_stays_locked_until_it_is_closed(self, device: Accelerator) -> None:
        """Locking costs more than a copy, so it is done once."""
        with self.filled(device, 5000) as (owned, block):
            again = Copier(device, block, owned)
            again.advance(5000)
            again.finish()
            again.close()
            assert owned.segments[0].pinned == self.pins
        assert not any(segment.pinned for segment in owned.segments)

    def test_copies_follow_a_load(self, device: Accelerator) -> None:
        """What came out of turn waits; a load that begins anew is copied anew."""
        with self.filled(device, 3 * 4096) as (owned, _):
            block = device.allocate(3 * 4096)
            arrival = Arrival()
            arrival.expect([4096, 8192, 3 * 4096])
            for number in (1, 0):
                arrival.mark(number, 4096)
            arrival.finish()
            copier = Copier(device, block, owned)
            assert not copier.follow(lambda: arrival, 3 * 4096)
            assert copier.copied == 8192
            assert block.tensor()[:8192].long().sum() == 8192
            fresh = Arrival()
            fresh.expect([3 * 4096])
            fresh.mark(0, 3 * 4096)
            again = iter((arrival, fresh, fresh))
            assert copier.follow(lambda: next(again), 3 * 4096)
            copier.close()
            assert block.tensor().long().sum() == 3 * 4096
            block.close()

    def test_other_processes_see_one_copy(self, device: Accelerator) -> None:
        """A descriptor is enough."""
        with self.filled(device, 8000) as (_, block):
            before = device.room().free_bytes
            readers = [Reader(self.module, self.name, self.look, block) for _ in range(2)]
            for reader in readers:
                assert reader.say() == [8000, [1] * 8]
            if self.shares_all:
                assert device.room().free_bytes == before  # a real one gives each process some for itself
            for reader in readers:
                reader.close()

    def test_a_killed_user_takes_nothing_along(self, device: Accelerator) -> None:
        """Neither the owner nor another user notices."""
        with self.filled(device, 8000) as (_, block):
            victim, other = (Reader(self.module, self.name, self.look, block) for _ in range(2))
            assert victim.say() == other.say() == [8000, [1] * 8]
            victim.process.kill()
            victim.close()
            assert other.say() == [8000, [1] * 8]
            assert int(block.tensor().long().sum()) == 8000
            other.close()

    def test_memory_outlives_its_owner(self, device: Accelerator) -> None:
        """As long as somebody has it open."""
        with self.filled(device, 8000) as (_, block):
            reader = Reader(self.module, self.name, self.look, block)
            assert reader.say() == [8000, [1] * 8]
        assert reader.say() == [8000, [1] * 8]
        reader.close()

    def test_a_write_of_a_user_faults(self, device: Accelerator) -> None:
        """Where the device knows that right."""
        with self.filled(device, 8000) as (_, block):
            descriptor = block.export()
            opened = device.open(descriptor, 8000)
            os.close(descriptor)
            assert not block.read_only
            right = opened.read_only
            opened.close()
            reader = Reader(self.module, self.name, self.look, block)
            assert reader.say() == [8000, [1] * 8]
            assert (reader.say("write") is None) == right  # without the right, not writing is a convention
            reader.close()
            assert (reader.process.returncode != 0) == right
            assert int(block.tensor().long().sum()) == 8000

    def test_a_block_is_unmapped_when_its_last_tensor_goes(self, device: Accelerator) -> None:
        """And says so."""
        told: list[str] = []
        with self.filled(device, 8000) as (_, block):
            descriptor = block.export()
            opened = device.open(descriptor, 8000, lambda: told.append("unmapped"))
            os.close(descriptor)
            part = opened.tensor()[10:20]
            del opened
            assert not told
            assert part.tolist() == [1] * 10
            del part
            assert told == ["unmapped"]

    def test_more_than_there_is_is_refused_with_figures(self, device: Accelerator) -> None:
        """And what is given back is there again."""
        room = device.room()
        assert 0 < room.free_bytes <= room.total_bytes
        with pytest.raises(ResourceExhausted, match=r"has no room for \d+ MiB of weights: \d+ of its \d+ MiB are free"):
            device.allocate(room.total_bytes + 1)
        block = device.allocate(room.free_bytes // 4)
        assert device.room().free_bytes < room.free_bytes
        block.close()
        block.close()
        assert device.room().free_bytes == room.free_bytes

    def test_what_is_no_memory_is_refused(self, device: Accelerator, tmp_path: Any) -> None:
        """With the call that refused."""
        with (
            open(tmp_path / "file", "wb") as file,
            pytest.raises(DataflowerError, match=r"can't be opened here: cuMem"),
        ):
            device.open(file.fileno(), 100)

    def test_there_is_no_other_device(self) -> None:
        """A number too high is not found."""
        from dataflower.checkpoint import accelerator

        with pytest.raises(NotFound):
            accelerator.find(self.module, self.name.partition(":")[0] + ":99")
