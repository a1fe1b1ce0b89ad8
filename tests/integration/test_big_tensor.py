"""More than 4 GiB in one tensor: sizes and offsets beyond 32 bits, without touching all that memory."""

import os

import numpy as np
import pytest

from dataflower.channel.arena import Arena
from dataflower.channel.tensor import decode, empty, encode
from dataflower.channel.views import Views

_ITEMS = (5 << 30) + 12345


@pytest.mark.slow
def test_five_gib_by_reference() -> None:
    fds: list[int] = []

    def announce(arena: int, nbytes: int, fd: int) -> None:
        fds.append(fd)
        views.attach(arena, nbytes, os.dup(fd))

    views = Views()
    arena = Arena(1, cap_bytes=6 << 30, announce=announce)
    array = empty(arena, (_ITEMS,), "UINT8")
    array[0], array[(4 << 30) + 7], array[-1] = 1, 2, 3
    value = encode({"x": array, "tail": array[(4 << 30) :]}, arena=arena, views=None)
    assert [ref.nbytes for ref in value.tensors] == [_ITEMS, _ITEMS - (4 << 30)]
    back = decode(value, views)
    assert (back["x"][0], back["tail"][7], back["tail"][-1], back["x"].size) == (1, 2, 3, _ITEMS)
    passed_on = encode(back["x"][(4 << 30) + 7 :], arena=arena, views=views)
    assert passed_on.tensors[0].offset == (4 << 30) + 7
    assert decode(passed_on, views)[0] == 2
    touched = sum(os.fstat(fd).st_blocks * 512 for fd in fds)
    assert touched < 1 << 20
    del back, array
    arena.release([(ref.arena, ref.slot) for ref in value.tensors[:1]])
    with np.testing.assert_no_warnings():
        slot = arena.allocate((6 << 30) - 4096)
    assert slot.buffer.nbytes == (6 << 30) - 4096
    del slot
    views.close()
    arena.close()
