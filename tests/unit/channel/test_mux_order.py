"""Which of several streams goes first."""

from __future__ import annotations

import math

import pytest

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


def order(mux: Mux) -> list[int]:
    """The streams of all chunks that go out, in order."""
    found = []
    while pieces := mux.outgoing():
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
