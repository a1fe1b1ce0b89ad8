"""Large inputs are copied beside the loop, and nothing is left over whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from dataflower.channel.arena import Slot
from dataflower.channel.tensor import copy_into
from dataflower.channel.torches import Array
from dataflower.channel.views import Views
from dataflower.host import intake
from dataflower.host.input_arenas import InputArenas
from dataflower.host.intake import COPIED_BYTES, Intake
from dataflower.host.values import Border

LARGE = np.arange(COPIED_BYTES, dtype=np.uint8)


class Gate:
    """Holds each copy up until it is opened."""

    def __init__(self) -> None:
        self.copied: list[int] = []
        self.began, self.opened = threading.Event(), threading.Event()

    def __call__(self, slot: Slot, array: Array) -> None:
        self.began.set()
        self.opened.wait()
        copy_into(slot, array)
        self.copied.append(threading.get_ident())


@pytest.fixture
def arenas() -> Iterator[InputArenas]:
    arenas = InputArenas(8 * COPIED_BYTES, lambda number, nbytes, fd: None, lambda number: None)
    yield arenas
    assert arenas.statistics().slots == 0
    arenas.close()


@pytest.fixture
def border(arenas: InputArenas) -> Border:
    return Border(arenas, Views(), 8 * COPIED_BYTES)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(intake, "copy_into", gate)
    return gate


async def begun(gate: Gate) -> None:
    while not gate.began.is_set():
        await asyncio.sleep(0)


async def test_others_get_their_turn_while_a_large_array_is_copied(border: Border, gate: Gate) -> None:
    bringing = asyncio.create_task(Intake(border).bring("w", {"x": LARGE}))
    await begun(gate)
    assert not bringing.done()
    gate.opened.set()
    border.release(await bringing)
    assert gate.copied == [gate.copied[0]]
    assert gate.copied[0] != threading.get_ident()


async def test_what_lies_inside_other_values_is_copied_there_too(border: Border, gate: Gate) -> None:
    gate.opened.set()
    packed = await Intake(border).bring("w", {"x": {"a": [LARGE, LARGE[1:]]}, "y": LARGE[::-1]})
    assert len(gate.copied) == 2  # the second is a little too small for that
    assert [len(value.tensors) for value in packed.values()] == [2, 1]
    border.release(packed)


async def test_small_values_do_not_give_up_the_turn(border: Border) -> None:
    bringing = Intake(border).bring("w", {"x": LARGE[1:], "y": 5})
    with pytest.raises(StopIteration) as ended:
        bringing.send(None)
    border.release(ended.value.value)


async def test_room_is_given_back_after_the_copy_if_nobody_wants_it_any_more(
    border: Border, arenas: InputArenas, gate: Gate
) -> None:
    taking = Intake(border)
    bringing = asyncio.create_task(taking.bring("w", {"x": LARGE}))
    await begun(gate)
    bringing.cancel()
    await asyncio.wait([bringing])
    assert bringing.cancelled()
    assert arenas.statistics().slots == 1
    gate.opened.set()
    await taking.close()
    assert arenas.statistics().slots == 0
