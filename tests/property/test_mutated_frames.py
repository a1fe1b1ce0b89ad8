"""Real traffic between hosts, damaged on purpose: it is refused in so many words, or understood, and nothing else."""

from __future__ import annotations

import random

import msgspec
import pytest
from test_ferry import ARENA, SLOT, SLOTS, Host, connect, exchange

from dataflower import wire
from dataflower.channel.mux import HEADER, MuxError
from dataflower.wire import TensorRef

STREAMS = 1500
WORDS = (
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 50,
)


def mutated(body: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A few bits, bytes or pieces of it are others."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 5)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 5))
            case 3:
                donor = rng.choice(others)
                start = rng.randrange(len(donor))
                data[at : at + 8] = donor[start : start + 8]
            case _:
                data[at:at] = rng.choice(WORDS)
    return bytes(data)


def recorded(seed: int) -> list[bytes]:
    """The frames of an exchange, one by one."""
    rng = random.Random(seed)
    here, there = Host(), Host()
    connect(here, there)
    heard = bytearray()
    read = there.read

    def listen(data: bytes) -> None:
        heard.extend(data)
        read(data)

    there.read = listen  # type: ignore[method-assign]
    for number in range(6):
        start = rng.randrange(SLOTS) * SLOT
        content = bytes(here.memory[start : start + rng.choice((1, 500, 3000))])
        here.ferry.released([(ARENA, start)])
        ref = TensorRef(ARENA, start, start, len(content), "BYTES", (len(content),))
        body = msgspec.msgpack.encode((number, [(start, content)]))
        here.ferry.send(rng.randint(1, 3), body, [ref], lambda arena: SLOT * SLOTS)
        exchange(here, there, rng, whole=rng.random() < 0.5)
    while exchange(here, there, rng, whole=True):
        pass
    here.ferry.close()
    there.ferry.close()
    frames, at = [], 0
    while at < len(heard):
        end = at + HEADER.size + HEADER.unpack_from(heard, at)[1]
        frames.append(bytes(heard[at:end]))
        at = end
    return frames


def damaged(frames: list[bytes], rng: random.Random) -> list[bytes]:
    """A frame is another, comes twice, out of turn, or not at all."""
    found = list(frames)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(found))
        match rng.randrange(5):
            case 0:
                found[at] = mutated(found[at], rng, frames)
            case 1:
                found[at:at] = [rng.choice(frames)]
            case 2 if len(found) > 1:
                del found[at]
            case 3:
                rng.shuffle(found)
            case _ if len(found[at]) >= HEADER.size:
                kind, size, first, second = HEADER.unpack_from(found[at])
                changed = (rng.choice((first, first + 1 & 0xFFFF, 2**32)), rng.choice((second, 0, 2**63, 2**64 - 1)))
                head = HEADER.pack(rng.choice((kind, rng.randrange(9))), size, *changed)
                found[at] = head + found[at][HEADER.size :]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_damaged_traffic_is_refused_or_understood(seed: int) -> None:
    rng = random.Random(seed)
    takes = [recorded(number) for number in range(4)]
    refused = understood = 0
    for _ in range(STREAMS):
        host = Host()
        host.ferry.mux.connected()
        host.ferry.mux.outgoing()
        try:
            host.read(b"".join(damaged(rng.choice(takes), rng)))
            host.write(1 << 20)
            understood += 1
        except (MuxError, msgspec.MsgspecError, ValueError):
            refused += 1
        finally:
            host.ferry.close()
    assert refused > STREAMS // 4
    assert understood > STREAMS // 50


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_word_of_a_container_is_refused_or_a_word(seed: int) -> None:
    rng = random.Random(seed)
    ref = TensorRef(1 << 16, 0, 0, 64, "UINT8", (64,))
    value = wire.Value(b"\xd4\x01\x00", (ref,), ref)
    error = wire.ErrorRecord(wire.Code.INTERNAL, "ValueError", "no", "", ((1 << 16, 0),))
    done = wire.TaskDone(1, {"out": value}, 2, wire.Times(1.0, 2.0), ((1 << 16, 0),), 3)
    words: list[wire.FromContainer] = [
        wire.Hello(wire.VERSION, 5, phases=(wire.StartPhase(wire.StartKind.MAP, "m", 0.1),)),
        wire.TokenSent(1, 0, {"t": value}),
        done,
        wire.TaskFailed(1, error, wire.Times()),
        wire.BatchDone((done,)),
        wire.Taken(2, "t", 1, ((1 << 16, 0),)),
        wire.ArenaMade(1 << 16, 4096),
        wire.Knock(),
    ]
    bodies = [wire.encode(word) for word in words]
    kinds = set()
    for _ in range(20_000):
        try:
            word = wire.decode_from_container(mutated(rng.choice(bodies), rng, bodies))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        assert wire.encode(word)
        kinds.add(type(word))
    assert {type(word) for word in words} <= kinds
