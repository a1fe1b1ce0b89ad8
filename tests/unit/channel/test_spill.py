"""Arenas that go on in files when their memory is full, and readers of such files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflower.channel import tensor
from dataflower.channel.arena import Arena
from dataflower.channel.segment import Spill, device_of, make_file
from dataflower.channel.views import ANY_DEVICE, Views
from dataflower.errors import ResourceExhausted, WouldBlock
from dataflower.testing.arenas import take
from dataflower.wire import TensorRef

MIB = 1 << 20


class Pair:
    """An arena with room for 4 MiB in memory and 32 on disk, and its reader."""

    def __init__(self, spill: Spill | None, **options: Any) -> None:
        self.views = Views(files_on=ANY_DEVICE)
        self.arena = Arena(1, cap_bytes=4 * MIB, announce=self._announce, spill=spill, **options)

    def _announce(self, arena: int, nbytes: int, fd: int) -> None:
        self.views.attach(arena, nbytes, os.dup(fd))

    def close(self) -> None:
        self.views.close()
        self.arena.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(Spill(str(tmp_path), 32 * MIB, device_of(str(tmp_path))))
    yield made
    made.close()


def test_memory_first_then_disk_then_memory_again(pair: Pair) -> None:
    values = [tensor.encode(np.full(MIB, i, np.uint8), arena=pair.arena, views=None, name=str(i)) for i in range(12)]
    found = pair.arena.statistics()
    assert (found.used_bytes, found.spilled_bytes) == (4 * MIB, 8 * MIB)
    arrays = [tensor.decode(value, pair.views) for value in values]
    assert [(array[0], array[-1], array.nbytes) for array in arrays] == [(i, i, MIB) for i in range(12)]
    assert not any(array.flags.writeable for array in arrays)
    assert pair.views.held((ref.arena, ref.slot) for value in values for ref in value.tensors) == tuple(
        (value.tensors[0].arena, value.tensors[0].slot) for value in values[:4]
    )
    pair.arena.release([(values[0].tensors[0].arena, values[0].tensors[0].slot)])
    again = tensor.encode(np.zeros(MIB, np.uint8), arena=pair.arena, views=None)
    assert again.tensors[0].arena == values[0].tensors[0].arena
    assert pair.arena.statistics().spilled_bytes == 8 * MIB


def test_room_on_disk_is_used_again(pair: Pair) -> None:
    for _ in range(5):
        slots = [take(pair.arena, MIB) for _ in range(30)]
        pair.arena.release([(slot.arena, slot.slot) for slot in slots])
    found = pair.arena.statistics()
    assert (found.used_bytes, found.spilled_bytes, found.slots) == (0, 0, 0)
    assert found.segments <= 4


def test_what_is_larger_than_the_memory_goes_to_disk_and_what_is_larger_than_both_nowhere(pair: Pair) -> None:
    large = pair.arena.array((16 * MIB,), np.uint8)
    large[:] = 9
    value = tensor.encode(large, arena=pair.arena, views=None)
    assert int(tensor.decode(value, pair.views)[-1]) == 9
    with pytest.raises(ResourceExhausted, match="on disk"):
        pair.arena.allocate(33 * MIB)
    with pytest.raises(WouldBlock):
        take(pair.arena, 31 * MIB)


def test_a_body_too_long_for_a_message_may_lie_on_disk(pair: Pair) -> None:
    slots = [take(pair.arena, MIB) for _ in range(4)]
    text = "spilled " * MIB
    value = tensor.encode([text, np.ones(9000)], arena=pair.arena, views=None)
    found = tensor.decode(value, pair.views)
    assert found[0] == text
    assert found[1].sum() == 9000
    assert len(slots) == 4


@pytest.mark.parametrize("reason", ["no such directory", "another device"])
def test_where_nothing_can_be_spilled_tasks_wait(
    tmp_path: Path, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "gone" if reason == "no such directory" else tmp_path
    pair = Pair(Spill(str(directory), 32 * MIB, -5))
    try:
        slots = [take(pair.arena, MIB) for _ in range(4)]
        with pytest.raises(WouldBlock):
            take(pair.arena, MIB)
        with pytest.raises(ResourceExhausted):
            pair.arena.allocate(5 * MIB)
        assert "can't spill to disk" in capfd.readouterr().err
        pair.arena.release([(slot.arena, slot.slot) for slot in slots])
        assert take(pair.arena, MIB).nbytes == MIB
    finally:
        pair.close()


def test_file_systems_without_unnamed_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_open = os.open

    def refusing_open(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files here")
        return plain_open(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", refusing_open)
    fd = make_file(str(tmp_path), 8192)
    assert os.fstat(fd).st_size == 8192
    assert list(tmp_path.iterdir()) == []
    os.close(fd)


def read_only(directory: Path, nbytes: int) -> int:
    writable = make_file(str(directory), nbytes)
    try:
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    finally:
        os.close(writable)


def test_files_never_get_a_name(tmp_path: Path) -> None:
    fd = make_file(str(tmp_path), 4096)
    try:
        with pytest.raises(
            FileNotFoundError
        ):  # a folder has to be given, though none is needed, or links aren't followed
            os.link(f"/proc/self/fd/{fd}", tmp_path / "name", src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)


def test_files_are_refused_unless_they_are_what_they_should_be(tmp_path: Path) -> None:
    device = device_of(str(tmp_path))
    with pytest.raises(ValueError, match="not a memfd"):
        Views().attach(1, 4096, read_only(tmp_path, 4096))
    with pytest.raises(ValueError, match="not where memory is spilled to"):
        Views(files_on=device + 1).attach(1, 4096, read_only(tmp_path, 4096))
    with pytest.raises(ValueError, match="has 4096 bytes, announced were 8192"):
        Views(files_on=device).attach(1, 8192, read_only(tmp_path, 4096))
    with pytest.raises(ValueError, match="must not be writable"):
        Views(files_on=device).attach(1, 4096, make_file(str(tmp_path), 4096))
    ends = os.pipe()
    with pytest.raises(ValueError, match="neither a memfd nor a file"):
        Views(files_on=device).attach(1, 4096, ends[0])
    os.close(ends[1])


def test_a_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "arena"
    path.write_bytes(b"\x07" * 8192)
    views = Views(files_on=device_of(str(tmp_path)))
    views.attach(5, 8192, os.open(path, os.O_RDONLY))
    ref = TensorRef(5, 0, 4096, 4096, "UINT8", (4096,))
    assert views.array(ref).sum() == 7 * 4096
    os.truncate(path, 5000)
    with pytest.raises(ValueError, match="cut short"):
        views.array(ref)
    views.close()
