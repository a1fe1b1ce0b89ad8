"""Waiting for room, and who may end it."""

import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from dataflower.channel.arena import Arena, Slot
from dataflower.channel.views import Views
from dataflower.errors import Closed, Code, DataflowerError, PeerGone, ResourceExhausted, WouldBlock
from dataflower.testing.arenas import take

_CAP = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(5, cap_bytes=_CAP, announce=lambda arena, nbytes, fd: None)
    yield made
    made.close()


def _in_thread(call, *args, **options) -> tuple[threading.Thread, Future]:
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **options))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, future


class _Waits:
    """A `cancelled` that tells when it was looked at: from then on the allocation waits (or is about to)."""

    def __init__(self) -> None:
        self.looked = threading.Semaphore(0)
        self.answer = False
        self.released: list[int] = []

    def __call__(self, released: int) -> bool:
        self.released.append(released)
        self.looked.release()
        return self.answer


def _key(slot: Slot) -> tuple[int, int]:
    return slot.arena, slot.slot


def test_release_lets_a_waiting_allocation_go_on(arena: Arena) -> None:
    first = arena.allocate(_CAP)
    waits = _Waits()
    thread, future = _in_thread(arena.allocate, 100, cancelled=waits)
    waits.looked.acquire()
    assert not future.done()
    arena.release([_key(first)])
    assert future.result(10).nbytes == 100
    thread.join()
    assert waits.released == [0]


def test_the_death_of_a_local_array_lets_a_waiting_allocation_go_on(arena: Arena) -> None:
    array = arena.array((_CAP,), np.uint8)
    waits = _Waits()
    thread, future = _in_thread(arena.allocate, 100, cancelled=waits)
    waits.looked.acquire()
    loop = [array]
    loop.append(loop)  # type: ignore[arg-type]
    del array, loop
    gc.collect()
    assert future.result(10).nbytes == 100
    thread.join()


def test_interrupt_has_cancelled_looked_at_again(arena: Arena) -> None:
    arena.allocate(_CAP)
    waits = _Waits()
    thread, future = _in_thread(arena.allocate, 1, cancelled=waits)
    waits.looked.acquire()
    arena.interrupt()
    waits.looked.acquire()
    waits.answer = True
    arena.interrupt()
    with pytest.raises(DataflowerError) as raised:
        future.result(10)
    assert raised.value.code is Code.CANCELLED
    thread.join()


def test_close_ends_waiting(arena: Arena) -> None:
    arena.allocate(_CAP)
    waits = _Waits()
    thread, future = _in_thread(arena.allocate, 1, cancelled=waits)
    waits.looked.acquire()
    arena.close()
    with pytest.raises(Closed):
        future.result(10)
    thread.join()
    with pytest.raises(Closed):
        arena.allocate(1)


def test_a_full_arena_would_block_and_too_much_is_exhausted(arena: Arena) -> None:
    arena.allocate(_CAP - 4096)
    take(arena, 4096)
    with pytest.raises(WouldBlock):
        take(arena, 1)
    with pytest.raises(ResourceExhausted, match=r"capped at 1048576 bytes \(setting arena_bytes\)"):
        arena.allocate(_CAP + 1)


def test_many_threads_share_the_cap(arena: Arena) -> None:
    def work(number: int) -> int:
        for _ in range(100):
            slot = arena.allocate(_CAP // 3)
            slot.buffer[:8] = bytes([number]) * 8
            assert bytes(slot.buffer[:8]) == bytes([number]) * 8
            arena.release([_key(slot)])
        return number

    jobs = [_in_thread(work, number) for number in range(6)]
    assert [future.result(30) for _, future in jobs] == list(range(6))
    for thread, _ in jobs:
        thread.join()
    assert arena.statistics().used_bytes == 0
    assert arena.statistics().reserved_bytes <= 2 * _CAP


def test_a_segment_that_cannot_be_announced_is_not_used() -> None:
    answers: list[Exception | None] = [PeerGone("dead"), None]
    announced = []

    def announce(arena: int, nbytes: int, fd: int) -> None:
        announced.append(arena)
        if (error := answers.pop(0)) is not None:
            raise error

    arena = Arena(5, cap_bytes=_CAP, announce=announce)
    with pytest.raises(PeerGone):
        arena.allocate(1)
    assert arena.statistics().segments == 0
    assert arena.allocate(1).arena == 5 << 16
    assert announced == [5 << 16, 5 << 16]
    arena.close()


def test_segments_grow_and_a_slot_larger_than_all_gets_its_own() -> None:
    sizes: list[int] = []
    arena = Arena(1, cap_bytes=1 << 30, announce=lambda number, nbytes, fd: sizes.append(nbytes))
    for _ in range(4):
        arena.allocate(1 << 20)
    arena.allocate(200 << 20)
    assert sizes == [1 << 20, 8 << 20, 200 << 20]
    arena.close()


def test_views_outlive_arena_and_attachment() -> None:
    views = Views()
    arena = Arena(2, cap_bytes=_CAP, announce=lambda number, nbytes, fd: views.attach(number, nbytes, os.dup(fd)))
    mine = arena.array((10,), np.int32)
    slot = arena.allocate(40)
    np.frombuffer(slot.buffer, np.int32)[:] = 7
    theirs = views.array(slot.ref("INT32", (10,)))[2:]
    mine[:] = 8
    del slot
    arena.close()
    views.close()
    assert mine.tolist() == [8] * 10
    assert theirs.tolist() == [7] * 8
    assert not theirs.flags.writeable


def test_attach_refuses_what_could_change_under_the_reader() -> None:
    views = Views()
    for name, size, said, match in (("unsealed", 4096, 4096, "lacks seals"), ("short", 100, 4096, "lacks seals")):
        fd = os.memfd_create(name, os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        with pytest.raises(ValueError, match=match):
            views.attach(1, said, fd)
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(ValueError, match="not a memfd"):
        views.attach(1, 4096, reader)
    announced: list[int] = []
    arena = Arena(2, cap_bytes=_CAP, announce=lambda number, nbytes, fd: announced.append(os.dup(fd)))
    arena.allocate(1)
    with pytest.raises(ValueError, match="announced were 17"):
        views.attach(1, 17, announced.pop())
    arena.close()
    assert views.statistics().attached == 0


def test_watch_tells_once_when_views_die_and_at_once_when_they_are_dead() -> None:
    told: list[tuple[tuple[int, int], ...]] = []
    views = Views(told.append)
    arena = Arena(2, cap_bytes=_CAP, announce=lambda number, nbytes, fd: views.attach(number, nbytes, os.dup(fd)))
    slot = arena.allocate(100)
    one, two = views.view(slot.ref("BYTES", (100,))), views.view(slot.ref("BYTES", (50,), 10, 50))
    assert views.held([_key(slot), (9, 9), _key(slot)]) == (_key(slot),)
    del one
    assert told == []
    del two
    assert told == [(_key(slot),)]
    views.watch([_key(slot)])
    assert told == [(_key(slot),)] * 2
    del slot
    views.close()
    arena.close()


def test_wait_attached() -> None:
    views = Views()
    thread, future = _in_thread(views.wait_attached, [2 << 16], 10)
    arena = Arena(2, cap_bytes=_CAP, announce=lambda number, nbytes, fd: views.attach(number, nbytes, os.dup(fd)))
    arena.allocate(1)
    assert future.result(10)
    thread.join()
    assert not views.wait_attached([1], 0)
    views.close()
    arena.close()
