"""Sessions over connections that break anywhere: each message and each stream arrives once, whole and in order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.channel.limit import Limit
from dataflower.channel.mux import CHUNK_BYTES, HEADER, Kind, Mux, MuxError
from dataflower.channel.mux_events import Aborted, Completed, Message, MuxEvent, Opened

ARENA_BYTES = 1 << 16


class Side:
    """A mux, the memory into which its peer writes, and what it was told."""

    def __init__(self, window: int, chunk: int) -> None:
        self.memory = bytearray(ARENA_BYTES)
        self.mux = Mux(self.place, self.hear, window=window, chunk=chunk)
        self.messages: list[bytes] = []
        self.completed: list[int] = []
        self.aborted: list[int] = []
        self.seen: dict[int, bytes] = {}
        self.places: dict[int, tuple[int, int]] = {}
        self.asked: tuple[int, int] = (0, 0)
        self.wire = b""
        """What it has sent and the other has not received."""

    def place(self, arena: int, offset: int, nbytes: int) -> memoryview:
        if arena != 7 or offset + nbytes > ARENA_BYTES:
            raise ValueError("no such memory")
        self.asked = (offset, nbytes)
        return memoryview(self.memory)[offset : offset + nbytes]

    def write(self, limit: int) -> None:
        pieces = self.mux.outgoing()
        chunk = b"".join(pieces)[:limit]
        self.wire += chunk
        self.mux.wrote(len(chunk))

    def read(self, data: bytes) -> None:
        while data:
            buffers = self.mux.incoming()
            taken = 0
            for buffer in buffers:
                step = min(len(buffer), len(data) - taken)
                buffer[:step] = data[taken : taken + step]
                taken += step
            data = data[taken:]
            self.mux.received(taken)

    def hear(self, event: MuxEvent) -> None:
        match event:
            case Message(payload):
                self.messages.append(bytes(payload))
            case Opened(stream):
                self.places[stream] = self.asked
            case Completed(stream):
                offset, nbytes = self.places[stream]
                self.completed.append(stream)
                self.seen[stream] = bytes(self.memory[offset : offset + nbytes])
            case Aborted(stream):
                self.aborted.append(stream)


def connect(left: Side, right: Side) -> None:
    for side in (left, right):
        side.wire = b""
        side.mux.connected()


def exchange(left: Side, right: Side, rng: random.Random, *, whole: bool = False) -> bool:
    """Move some bytes; whether any moved."""
    moved = False
    for here, there in ((left, right), (right, left)):
        here.write(1 << 30 if whole else rng.choice((1, 7, 100, 5000)))
        count = len(here.wire) if whole else rng.randint(0, len(here.wire))
        data, here.wire = here.wire[:count], here.wire[count:]
        there.read(data)
        moved |= bool(data)
    return moved


@given(
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.sampled_from([2000, 64_000]),
    st.sampled_from([100, 700, 5000]),
    st.floats(0, 0.2),
)
def test_everything_arrives_once_whatever_breaks(
    seed: int, rounds: int, window: int, chunk: int, breaks: float
) -> None:
    rng = random.Random(seed)
    sides = (Side(window, chunk), Side(window, chunk))
    connect(*sides)
    said: tuple[list[bytes], list[bytes]] = ([], [])
    streams: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
    ended: tuple[set[int], set[int]] = (set(), set())
    for _ in range(rounds):
        number = rng.randint(0, 1)
        side = sides[number]
        match rng.randint(0, 3):
            case 0:
                payload = rng.randbytes(rng.choice((0, 1, 30, 20_000)))
                said[number].append(payload)
                side.mux.send(payload)
            case 1 | 2:
                content = rng.randbytes(rng.choice((1, 15, 1000, 30_000)))
                slot = len(streams[number]) * 1000 % (ARENA_BYTES - 30_000)
                due = rng.choice((math.inf, 1.0, 2.0))
                streams[number][side.mux.open(memoryview(content), 7, slot, due=due)] = content
                side.mux.hasten(rng.choice(list(streams[number])), rng.choice((0.5, 1.5)))
            case 3 if streams[number]:
                stream = rng.choice(list(streams[number]))
                side.mux.abort(stream)
                ended[number].add(stream)
        exchange(*sides, rng)
        if rng.random() < breaks:
            for one in sides:
                if rng.random() < 0.5:
                    one.mux.lost()
            connect(*sides)
    while exchange(*sides, rng, whole=True):
        pass
    for number in (0, 1):
        there = sides[1 - number]
        assert there.messages == said[number]
        assert len(set(there.completed)) == len(there.completed)
        assert set(there.completed) | set(there.aborted) == set(streams[number])
        assert not set(there.completed) & set(there.aborted)
        assert set(there.aborted) <= ended[number]
        assert sides[number].mux.unfinished == 0


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_the_bytes_are_right(seed: int, breaks: int) -> None:
    """Streams with places of their own, so that each can be looked at in the end."""
    rng = random.Random(seed)
    left, right = Side(3000, 256), Side(3000, 256)
    connect(left, right)
    contents = {}
    for number in range(8):
        content = rng.randbytes(rng.randint(1, 6000))
        contents[left.mux.open(memoryview(content), 7, number * 8000)] = content
        left.mux.send(bytes([number]))
    for _ in range(breaks):
        for _ in range(rng.randint(0, 10)):
            exchange(left, right, rng)
        connect(left, right)
    while exchange(left, right, rng, whole=True):
        pass
    assert right.seen == contents
    assert right.messages == [bytes([number]) for number in range(8)]
    assert sorted(right.completed) == list(contents)


def test_streams_take_turns_and_messages_overtake_them() -> None:
    left, right = Side(1 << 20, 1000), Side(1 << 20, 1000)
    connect(left, right)
    exchange(left, right, random.Random(0), whole=True)
    big = left.mux.open(memoryview(bytes(60_000)), 7, 0)
    small = left.mux.open(memoryview(bytes(1500)), 7, 61_000)
    left.mux.send(b"first")
    for _ in range(5):
        left.write(1 << 20)
    right.read(left.wire)
    left.wire = b""
    assert right.messages == [b"first"]
    assert right.completed == [small]
    while exchange(left, right, random.Random(0), whole=True):
        pass
    assert right.completed == [small, big]


@given(st.lists(st.floats(0.0, 0.1), min_size=1, max_size=40), st.integers(0, 2**32))
def test_chunks_follow_the_speed_of_the_connection_within_bounds(pauses: list[float], seed: int) -> None:
    left, right = Side(1 << 22, 256 << 10), Side(1 << 22, 256 << 10)
    right.memory = bytearray(1 << 20)
    right.mux = Mux(lambda arena, offset, size: memoryview(right.memory)[:size], right.hear)
    right.places = dict.fromkeys(range(1, 100), (0, 1))
    connect(left, right)
    now = 1.0
    for pause in pauses:
        left.mux.open(memoryview(bytes(1 << 20)), 7, 0)
        for _ in range(20):
            pieces = left.mux.outgoing(now)
            assert all(len(piece) <= 1 << 20 for piece in pieces)
            data = b"".join(pieces)
            left.mux.wrote(len(data))
            right.read(data)
            now += pause / 20
            exchange(right, left, random.Random(seed), whole=True)
            assert 8 << 10 <= left.mux.chunk <= 1 << 20
    exchange(left, right, random.Random(seed), whole=True)
    assert len(right.completed) >= len(pauses) - 1


@pytest.mark.parametrize("bytes_per_s", [12.5e6, 125e6, 500e6])
def test_a_message_waits_behind_few_bytes_once_the_speed_is_known(bytes_per_s: float) -> None:
    """What lies in front of it here takes the line little more than a millisecond, whatever came before."""
    left, right = Side(32 << 20, CHUNK_BYTES), Side(32 << 20, CHUNK_BYTES)
    memory = bytearray(64 << 20)
    right.mux = Mux(lambda arena, offset, size: memoryview(memory)[:size], right.hear)
    right.places = {1: (0, 1)}
    connect(left, right)
    exchange(left, right, random.Random(0), whole=True)
    left.mux.open(memoryview(memory), 7, 0)
    now, step = 1.0, 16 << 10
    ahead: list[int] = []
    while left.mux.bytes_out < 48 << 20:
        pieces = left.mux.outgoing(now)
        ahead.append(sum(map(len, pieces)))
        data = b"".join(pieces)[:step]  # the kernel takes it a little at a time
        left.mux.wrote(len(data))
        now += len(data) / bytes_per_s
        right.read(data)
        right.write(1 << 30)
        confirmed, right.wire = right.wire, b""
        left.read(confirmed)
    assert max(ahead[len(ahead) // 4 :]) < max(0.0015 * bytes_per_s, 12 << 10) + 100


def test_without_confirmation_only_a_window_is_sent() -> None:
    left, right = Side(8000, 1000), Side(8000, 1000)
    connect(left, right)
    exchange(left, right, random.Random(0), whole=True)
    left.mux.open(memoryview(bytes(60_000)), 7, 0)
    for _ in range(100):
        left.write(1 << 30)
    assert left.mux.bytes_out == 8000


@given(st.lists(st.binary(max_size=80), max_size=30), st.booleans(), st.integers(0, 2**32))
def test_noise_ends_the_connection_and_nothing_else(noise: list[bytes], begun: bool, seed: int) -> None:
    rng = random.Random(seed)
    side = Side(1 << 20, 1000)
    side.mux.connected()
    side.mux.open(memoryview(bytes(5000)), 7, 0)
    if begun:
        side.read(HEADER.pack(Kind.RESUME, 0, 0, 0))
        noise = [
            HEADER.pack(rng.randint(1, 6), rng.choice((0, 1, 16)), rng.randint(0, 3), rng.randint(0, 9)) + n
            for n in noise
        ]
    try:
        for piece in noise:
            side.read(piece)
            side.write(1 << 20)
    except MuxError:
        pass
    side.mux.lost()
    side.mux.connected()
    assert HEADER.unpack_from(b"".join(side.mux.outgoing()))[0] == Kind.RESUME


@pytest.mark.parametrize(
    "frames",
    [
        HEADER.pack(9, 0, 0, 0),
        HEADER.pack(Kind.MESSAGE, 0, 0, 0)[:1] + b"\xff" * 23,
        HEADER.pack(Kind.RESUME, 0, 0, 0),
        HEADER.pack(Kind.MESSAGE, 1 << 31, 0, 0),
        HEADER.pack(Kind.DATA, 10, 5, 0),
        HEADER.pack(Kind.OPEN, 16, 1, 10) + b"\x00" * 16,
        HEADER.pack(Kind.OPEN, 16, 1, 0) + b"\x07" + b"\x00" * 15,
        HEADER.pack(Kind.OPEN, 16, 1, 10) + b"\x07" + b"\x00" * 15 + HEADER.pack(Kind.DATA, 5, 1, 6),
        HEADER.pack(Kind.OPEN, 16, 1, 10) + b"\x07" + b"\x00" * 15 + HEADER.pack(Kind.DATA, 11, 1, 0),
        HEADER.pack(Kind.ACK, 0, 1, 0),
        HEADER.pack(Kind.ACK, 0, 0, 1),
        HEADER.pack(Kind.DATA, 0, 0, 0),
    ],
)
def test_what_no_honest_side_sends_is_an_error(frames: bytes) -> None:
    side = Side(1 << 20, 1000)
    side.mux.connected()
    side.read(HEADER.pack(Kind.RESUME, 0, 0, 0))
    with pytest.raises(MuxError):
        side.read(frames)


def test_one_who_has_heard_too_much_is_not_resumed() -> None:
    side = Side(1 << 20, 1000)
    side.mux.send(b"one")
    side.mux.connected()
    with pytest.raises(MuxError, match="never said"):
        side.read(HEADER.pack(Kind.RESUME, 0, 2, 0))
    side.mux.open(memoryview(b"bytes"), 7, 0)
    side.mux.connected()
    with pytest.raises(MuxError, match="not sent all"):
        side.read(HEADER.pack(Kind.RESUME, 0, 2, 0))


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=6), st.floats(0.0, 0.03), st.integers(0, 2**32))
def test_streams_with_a_limit_keep_to_it_together(sizes: list[int], late: float, seed: int) -> None:
    rng = random.Random(seed)
    left, right = Side(1 << 20, 1000), Side(1 << 20, 1000)
    connect(left, right)
    exchange(left, right, rng, whole=True)
    limit = Limit(100_000.0)
    for size in sizes:
        left.mux.open(memoryview(rng.randbytes(size)), 7, 0, limit)
    now = start = 1000.0
    for _ in range(10_000):
        pieces = left.mux.outgoing(now)
        data = b"".join(pieces)
        left.mux.wrote(len(data))
        right.read(data)
        exchange(right, left, rng, whole=True)
        # A chunk at the beginning, and what one who is late may catch up.
        assert left.mux.bytes_out <= 100_000 * (now - start + 0.021) + 4096
        if not left.mux.unfinished:
            break
        if left.mux.due < float("inf"):
            now = max(now, left.mux.due) + rng.random() * late
    assert len(right.completed) == len(sizes)
    assert now - start <= sum(sizes) / 100_000 + (sum(sizes) / 1000 + len(sizes)) * late
