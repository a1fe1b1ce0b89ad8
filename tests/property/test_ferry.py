"""Messages behind the bytes that they name: whatever breaks, they come once, in order, and with the right bytes."""

from __future__ import annotations

import random
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.channel import ferry as ferry_module
from dataflower.channel.ferry import Ferry, Forget, Mirror, Parcel
from dataflower.channel.mux import Mux, MuxError
from dataflower.wire import TensorRef

SLOT, SLOTS, ARENA = 4096, 8, 3 << 16


class Host:
    """A side with an arena, of which messages name pieces."""

    def __init__(self) -> None:
        self.memory = bytearray(SLOT * SLOTS)
        self.ferry = Ferry(self._read, self._deliver, lambda arena, nbytes: None, lambda arena: None, mux=_small_mux)
        self.delivered: dict[int, list[int]] = defaultdict(list)
        self.wrong: list[int] = []
        self.busy: set[int] = set()
        self.finished: list[tuple[int, ...]] = []
        self.wire = b""

    def _read(self, ref: TensorRef) -> memoryview:
        return memoryview(self.memory)[ref.offset : ref.offset + ref.nbytes]

    def _deliver(self, key: int, body: bytes) -> None:
        number, pieces = msgspec.msgpack.decode(body)
        self.delivered[key].append(number)
        for offset, content in pieces:
            mirror = self.ferry._place(ARENA, offset, len(content))
            if bytes(mirror) != content:
                self.wrong.append(number)
        self.finished.append(tuple(offset // SLOT for offset, _ in pieces))

    def write(self, limit: int) -> None:
        chunk = b"".join(self.ferry.mux.outgoing())[:limit]
        self.wire += chunk
        self.ferry.mux.wrote(len(chunk))

    def read(self, data: bytes) -> None:
        while data:
            taken = 0
            for buffer in self.ferry.mux.incoming():
                step = min(len(buffer), len(data) - taken)
                buffer[:step] = data[taken : taken + step]
                taken += step
            data = data[taken:]
            self.ferry.mux.received(taken)


def _small_mux(place: object, tell: object) -> Mux:
    return Mux(place, tell, window=6000, chunk=700)  # type: ignore[arg-type]


def exchange(left: Host, right: Host, rng: random.Random, *, whole: bool = False) -> bool:
    moved = False
    for here, there in ((left, right), (right, left)):
        here.write(1 << 30 if whole else rng.choice((20, 900, 5000)))
        count = len(here.wire) if whole else rng.randint(0, len(here.wire))
        data, here.wire = here.wire[:count], here.wire[count:]
        there.read(data)
        moved |= bool(data)
    return moved


def connect(left: Host, right: Host) -> None:
    for host in (left, right):
        host.wire = b""
        host.ferry.mux.connected()


def test_a_last_word_is_foretold_before_the_bytes_that_it_waits_for() -> None:
    here, there = Host(), Host()
    foretold: list[int] = []
    there.ferry = Ferry(
        there._read,
        there._deliver,
        lambda arena, nbytes: None,
        lambda arena: None,
        foretell=lambda key, body: foretold.append(msgspec.msgpack.decode(body)[0]),
        mux=_small_mux,
    )
    connect(here, there)
    refs = [TensorRef(ARENA, 0, 0, 4000, "BYTES", (4000,))]
    try:
        here.ferry.send(1, msgspec.msgpack.encode((1, [])), refs, lambda arena: SLOT * SLOTS)
        here.ferry.send(1, msgspec.msgpack.encode((2, [])), last=True)
        here.ferry.send(2, msgspec.msgpack.encode((3, [])), last=True)
        while not foretold:
            exchange(here, there, random.Random(0))
        assert (foretold, there.delivered[1]) == ([2], []), "who waits for nothing is not foretold"
        while exchange(here, there, random.Random(0), whole=True):
            pass
        assert (foretold, there.delivered) == ([2], {1: [1, 2], 2: [3]})
    finally:
        here.ferry.close()
        there.ferry.close()


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 0.3))
def test_every_message_comes_in_order_behind_its_bytes(seed: int, rounds: int, breaks: float) -> None:
    rng = random.Random(seed)
    here, there = Host(), Host()
    connect(here, there)
    sent: dict[int, list[int]] = defaultdict(list)
    readers = [0] * SLOTS
    try:
        for number in range(rounds):
            pieces = []
            for slot in rng.sample(range(SLOTS), rng.randint(0, 3)):
                if not readers[slot]:  # nobody reads it: it is recycled
                    here.ferry.released([(ARENA, slot * SLOT)])
                    here.memory[slot * SLOT : (slot + 1) * SLOT] = rng.randbytes(SLOT)
                start = slot * SLOT + rng.choice((0, 0, 100))
                content = bytes(here.memory[start : start + rng.choice((1, 500, 3000))])
                pieces.append((start, content))
                readers[slot] += 1
            refs = [TensorRef(ARENA, a // SLOT * SLOT, a, len(c), "BYTES", (len(c),)) for a, c in pieces]
            key = rng.randint(1, 3)
            sent[key].append(number)
            here.ferry.send(key, msgspec.msgpack.encode((number, pieces)), refs, lambda arena: SLOT * SLOTS)
            exchange(here, there, rng)
            if rng.random() < breaks:
                connect(here, there)
            for slots in there.finished:
                for slot in slots:
                    readers[slot] -= 1
            there.finished.clear()
        while exchange(here, there, rng, whole=True):
            pass
        assert there.delivered == sent
        assert not there.wrong
        assert here.ferry.mux.unfinished == 0
    finally:
        here.ferry.close()
        there.ferry.close()


def test_what_was_sent_is_not_sent_again_before_it_is_released() -> None:
    here, there = Host(), Host()
    connect(here, there)
    rng = random.Random(1)
    ref = TensorRef(ARENA, 0, 0, 3000, "BYTES", (3000,))
    part = TensorRef(ARENA, 0, 500, 1000, "BYTES", (1000,))
    body = msgspec.msgpack.encode((0, []))
    try:
        for key in range(1, 9):
            here.ferry.send(key, body, [ref, part], lambda arena: SLOT * SLOTS)
        while exchange(here, there, rng, whole=True):
            pass
        assert len(there.delivered) == 8
        assert here.ferry.mux.bytes_out == 3000
        assert here.ferry.slots == 1
        here.ferry.released([(ARENA, 0)])
        assert here.ferry.slots == 0
        here.ferry.send(1, body, [part], lambda arena: SLOT * SLOTS)
        while exchange(here, there, rng, whole=True):
            pass
        assert here.ferry.mux.bytes_out == 4000
        here.ferry.let_go(ARENA)
        assert here.ferry.slots == 0
    finally:
        here.ferry.close()
        there.ferry.close()


def test_what_came_is_held_by_nobody_when_its_mirror_is_gone() -> None:
    left, right = Host(), Host()
    connect(left, right)
    ref = TensorRef(ARENA, 0, 0, SLOT, "UINT8", (SLOT,))
    left.ferry.send(1, msgspec.msgpack.encode((1, [])), [ref], lambda arena: len(left.memory))
    while exchange(left, right, random.Random(1), whole=True):
        pass
    assert right.delivered == {1: [1]}
    mapped = weakref.ref(right.ferry._mirrors.segment(ARENA).map)
    left.ferry.forget(ARENA)
    while exchange(left, right, random.Random(1), whole=True):
        pass
    assert mapped() is None


def test_a_session_that_is_over_keeps_no_memory_of_what_it_had_to_send_or_take() -> None:
    left, right = Host(), Host()
    connect(left, right)
    ref = TensorRef(ARENA, 0, 0, SLOT, "UINT8", (SLOT,))
    left.ferry.send(1, msgspec.msgpack.encode((1, [])), [ref], lambda arena: len(left.memory))
    exchange(left, right, random.Random(1))
    with pytest.raises(BufferError):
        left.memory.append(0)
    for host in (left, right):
        host.ferry.close()
    left.memory.append(0)  # nobody looks at it any more
    assert not right.ferry.mirrors(ARENA)


def test_a_message_whose_bytes_are_given_up_is_never_given_out_and_holds_up_nobody() -> None:
    here, there = Host(), Host()
    connect(here, there)
    rng = random.Random(1)
    body = [msgspec.msgpack.encode((number, [])) for number in range(3)]
    ref = TensorRef(ARENA, 0, 0, 4000, "BYTES", (4000,))
    try:
        here.ferry.send(1, body[0], [ref], lambda arena: SLOT * SLOTS)
        here.ferry.send(1, body[1])
        here.ferry.send_urgent(1, body[2])
        exchange(here, there, rng, whole=True)
        exchange(here, there, rng, whole=True)
        assert there.delivered[1] == [2]
        here.ferry.released([(ARENA, 0)])
        while exchange(here, there, rng, whole=True):
            pass
        assert there.delivered[1] == [2, 1]
    finally:
        here.ferry.close()
        there.ferry.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(Mirror(1, 0)),
        msgspec.msgpack.encode(Mirror(1, 1 << 60)),
        msgspec.msgpack.encode(["x", 1]),
        msgspec.msgpack.encode(["p", -1, "text"]),
    ],
)
def test_nonsense_is_an_error_of_the_connection(payload: bytes) -> None:
    here, there = Host(), Host()
    connect(here, there)
    here.ferry.mux.send(payload)
    exchange(here, there, random.Random(1), whole=True)  # the beginnings of both
    with pytest.raises((MuxError, msgspec.MsgspecError)):
        exchange(here, there, random.Random(1), whole=True)
    there.ferry.close()


def test_mirrors_come_and_go() -> None:
    here, there = Host(), Host()
    connect(here, there)
    here.ferry.announce(ARENA, SLOT)
    here.ferry.mux.send(msgspec.msgpack.encode(Parcel(1, msgspec.msgpack.encode((0, [])))))
    while exchange(here, there, random.Random(1), whole=True):
        pass
    assert there.ferry.mirrors(ARENA)
    here.ferry.mux.send(msgspec.msgpack.encode(Forget(ARENA)))
    while exchange(here, there, random.Random(1), whole=True):
        pass
    assert not there.ferry.mirrors(ARENA)
    there.ferry.close()


class Middle(Host):
    """Between two others: what comes from the left is named, in the same words, to the right."""

    def __init__(self, right: Host) -> None:
        super().__init__()
        self.ferry.close()
        self.right = right
        self.onward = Ferry(self._mirrored, self._deliver, lambda *_: None, lambda _: None, mux=_small_mux)
        self.ferry = Ferry(
            self._read,
            self._deliver,
            lambda *_: None,
            lambda _: None,
            mux=_small_mux,
            routes=lambda arena: [self.onward],
        )
        self.out = b""

    def _mirrored(self, ref: TensorRef) -> memoryview:
        return self.ferry._place(ref.arena, ref.offset, ref.nbytes)

    def _deliver(self, key: int, body: bytes) -> None:
        _, pieces = msgspec.msgpack.decode(body)
        refs = [TensorRef(ARENA, a // SLOT * SLOT, a, len(c), "BYTES", (len(c),)) for a, c in pieces]
        for ref in refs:
            self.onward.claim(ref)
        self.onward.send(key, body, refs, lambda arena: SLOT * SLOTS)

    def step(self, rng: random.Random, *, whole: bool = False) -> bool:
        """Some bytes go on to the right, and some answers come back."""
        moved = False
        for mux, read in ((self.onward.mux, self.right.read), (self.right.ferry.mux, self._hear)):
            chunk = b"".join(mux.outgoing())[: 1 << 30 if whole else rng.choice((20, 900, 5000))]
            mux.wrote(len(chunk))
            moved |= bool(chunk)
            read(chunk)
        return moved

    def _hear(self, data: bytes) -> None:
        while data:
            taken = 0
            for buffer in self.onward.mux.incoming():
                step = min(len(buffer), len(data) - taken)
                buffer[:step] = data[taken : taken + step]
                taken += step
            data = data[taken:]
            self.onward.mux.received(taken)


@contextmanager
def in_a_line() -> Iterator[tuple[Host, Middle, Host]]:
    """Three hosts, connected; what is not tiny is passed on."""
    with mock.patch.object(ferry_module, "PASSED_BYTES", 400):
        here, there = Host(), Host()
        between = Middle(there)
        connect(here, between)
        between.onward.mux.connected()
        there.ferry.mux.connected()
        try:
            yield here, between, there
        finally:
            for ferry in (here.ferry, between.ferry, between.onward, there.ferry):
                ferry.close()


@given(st.integers(0, 2**32), st.integers(1, 30), st.floats(0, 0.3))
def test_bytes_are_passed_on_while_they_come_and_always_the_right_ones(seed: int, rounds: int, breaks: float) -> None:
    """From host to host to host: slots are written anew, connections break, and every message finds its bytes."""
    rng = random.Random(seed)
    with in_a_line() as (here, between, there):
        sent: dict[int, list[int]] = defaultdict(list)
        readers = [0] * SLOTS
        for number in range(rounds):
            pieces = []
            for slot in rng.sample(range(SLOTS), rng.randint(0, 3)):
                if not readers[slot]:
                    for ferry in (between.ferry, between.onward, here.ferry):
                        ferry.released([(ARENA, slot * SLOT)])
                    here.memory[slot * SLOT : (slot + 1) * SLOT] = rng.randbytes(SLOT)
                start = slot * SLOT + rng.choice((0, 0, 100))
                content = bytes(here.memory[start : start + rng.choice((1, 500, 3000))])
                pieces.append((start, content))
                readers[slot] += 1
            refs = [TensorRef(ARENA, a // SLOT * SLOT, a, len(c), "BYTES", (len(c),)) for a, c in pieces]
            key = rng.randint(1, 3)
            sent[key].append(number)
            here.ferry.send(key, msgspec.msgpack.encode((number, pieces)), refs, lambda arena: SLOT * SLOTS)
            exchange(here, between, rng)
            between.step(rng)
            if rng.random() < breaks:
                connect(here, between)
            if rng.random() < breaks:
                between.onward.mux.connected()
                there.ferry.mux.connected()
            for slots in there.finished:
                for slot in slots:
                    readers[slot] -= 1
            there.finished.clear()
        while exchange(here, between, rng, whole=True) | between.step(rng, whole=True):
            pass
        assert there.delivered == sent
        assert not there.wrong
        assert between.onward.mux.unfinished == 0
        assert not between.onward._passed


def test_what_is_passed_on_is_there_as_soon_as_in_the_middle_and_goes_once() -> None:
    rng = random.Random(1)
    with in_a_line() as (here, between, there):
        ref = TensorRef(ARENA, 0, 0, 4000, "BYTES", (4000,))
        body = msgspec.msgpack.encode((0, [(0, bytes(4000))]))
        here.ferry.send(1, body, [ref], lambda arena: SLOT * SLOTS)
        while between.onward.mux.bytes_out < 2000:
            exchange(here, between, rng)
            between.step(rng, whole=True)
        assert between.ferry.mux.bytes_in < 4000, "there is more to come, and what came has gone on"
        while exchange(here, between, rng, whole=True) | between.step(rng, whole=True):
            pass
        assert there.delivered == {1: [0]}
        assert between.onward.mux.bytes_out == 4000


def test_what_will_not_come_is_not_passed_on_either() -> None:
    rng = random.Random(1)
    with in_a_line() as (here, between, _):
        body = msgspec.msgpack.encode((0, []))
        for number, end in enumerate((lambda: here.ferry.released([(ARENA, 0)]), between.ferry.close)):
            ref = TensorRef(ARENA, 0, 0, 4000 - number, "BYTES", (4000 - number,))
            here.ferry.send(1, body, [ref], lambda arena: SLOT * SLOTS)
            while not between.onward._passed:
                exchange(here, between, rng)
            end()
            while (not number and exchange(here, between, rng, whole=True)) | between.step(rng, whole=True):
                pass
            assert not between.onward._passed
            assert between.onward.mux.unfinished == 0
