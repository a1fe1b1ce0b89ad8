"""Which of several streams goes first."""

from __future__ import annotations

import math

import pytest

from dataflower.channel.limit import Limit
from dataflower.channel.mux import HEADER, Kind, Mux


def connected(chunk: int = 100) -> Mux:
    def place(arena: int, offset: int, nbytes: int) -> memoryview:
        raise ValueError("nothing comes in here")

    mux = Mux(place, lambda event: None, chunk=chunk)
    mux.connected()
    data = HEADER.pack(Kind.RESUME, 0, 0, 0)
    mux.incoming()[0][: len(data)] = data
    mux.received(len(data))
    return mux


def order(mux: Mux, now: float = 0.0) -> list[int]:
    """The streams of all chunks that go out by now, in order."""
    found = []
    while pieces := mux.outgoing(now):
        data = b"".join(pieces)
        mux.wrote(len(data))
        while data:
            kind, length, number, _ = HEADER.unpack_from(data)
            data = data[HEADER.size + length :]
            if kind == Kind.DATA:
                found.append(number)
    return found


def test_streams_without_a_time_take_turns_and_those_with_one_go_before_them() -> None:
    mux = connected()
    view = memoryview(bytes(200))
    a, b = mux.open(view, 1, 0), mux.open(view, 1, 200)
    late, soon = mux.open(view, 1, 400, due=9.0), mux.open(view, 1, 600, due=3.0)
    assert order(mux) == [soon, soon, late, late, a, b, a, b]


@pytest.mark.parametrize("before", [math.inf, 8.0])
def test_what_becomes_urgent_moves_up(before: float) -> None:
    mux = connected()
    view = memoryview(bytes(200))
    first, second = mux.open(view, 1, 0, due=5.0), mux.open(view, 1, 200, due=before)
    mux.hasten(second, 2.0)
    mux.hasten(second, 7.0)  # no less urgent for that
    mux.hasten(99, 1.0)
    assert order(mux) == [second, second, first, first]
    mux.hasten(first, 1.0)
    assert order(mux) == []


def test_an_urgent_stream_whose_bytes_are_not_there_holds_nobody_up() -> None:
    mux = connected()
    view = memoryview(bytes(200))
    coming, other = mux.open(view, 1, 0, ready=0, due=1.0), mux.open(view, 1, 200)
    assert order(mux) == [other, other]
    mux.extend(coming, 200)
    assert order(mux) == [coming, coming]
    gone = mux.open(view, 1, 400, due=1.0)
    mux.abort(gone)
    assert order(mux) == []


def chunks(mux: Mux) -> list[int]:
    """The same, for as long as anything has to wait for its limit."""
    found = order(mux, 1.0)
    while mux.due < math.inf:
        found += order(mux, mux.due)
    return found


def test_streams_of_one_limit_go_one_after_another() -> None:
    mux = connected(4096)
    view, limit = memoryview(bytes(3 * 4096)), Limit(1e5)
    a, b, c = (mux.open(view, 1, 0, limit) for _ in range(3))
    assert chunks(mux) == [a, a, a, b, b, b, c, c, c]


def test_a_short_stream_does_not_wait_for_a_long_one_of_its_limit() -> None:
    mux = connected(4096)
    limit = Limit(1e5)
    long = mux.open(memoryview(bytes(4 * 4096)), 1, 0, limit)
    assert order(mux, 1.0) == [long]
    short = mux.open(memoryview(bytes(4096)), 1, 0, limit)
    assert chunks(mux) == [short, long, long, long]


def test_limits_take_turns_and_what_is_not_there_holds_nobody_up() -> None:
    mux = connected(4096)
    view, one, other = memoryview(bytes(2 * 4096)), Limit(1e9), Limit(1e9)
    one_chunk = max(4096, one.chunk)
    assert one_chunk > len(view)
    a, b = mux.open(view, 1, 0, one), mux.open(view, 1, 0, other)
    coming = mux.open(view, 1, 0, one, ready=0)
    free = mux.open(view, 1, 0)
    assert order(mux, 1.0) == [a, b, free, a, b, free]
    mux.extend(coming, 2 * 4096)
    assert order(mux, 2.0) == [coming, coming]


def test_an_aborted_stream_and_an_urgent_one_leave_their_line() -> None:
    mux = connected(4096)
    view, limit = memoryview(bytes(2 * 4096)), Limit(1e5)
    a, b, c = (mux.open(view, 1, 0, limit) for _ in range(3))
    mux.abort(a)
    mux.hasten(c, 1.0)
    assert chunks(mux) == [c, c, b, b]
    assert chunks(mux) == []
    d = mux.open(view, 1, 0, limit)
    assert chunks(mux) == [d, d]
