"""A function that speaks for its container: it finds the sockets of the data unit and says what it likes."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from array import array
from collections.abc import Callable

from dataflower import wire
from dataflower.channel import seals
from dataflower.wire import ErrorRecord, TensorRef, Times, Value

MIB = 1 << 20


def _ends() -> list[socket.socket]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            own = os.dup(int(name))
        except OSError:
            continue
        try:
            end = socket.socket(fileno=own)
        except OSError:
            os.close(own)
            continue
        if end.family == socket.AF_UNIX and end.type == socket.SOCK_SEQPACKET:
            found.append(end)
        else:
            end.close()
    return found


def _say(payload: bytes, *descriptors: int) -> None:
    for end in _ends():
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        try:
            end.sendmsg([payload], rights)
        except OSError:
            continue


def _memfd(nbytes: int, wanted: int = seals.RESIZE | seals.FUTURE_WRITE) -> int:
    descriptor = seals.make("dataflower-arena", nbytes)
    if wanted:
        seals.seal(descriptor, wanted)
    return descriptor


def _arena(number: int, nbytes: int, said: int | None = None, wanted: int = seals.RESIZE | seals.FUTURE_WRITE) -> None:
    memory = _memfd(nbytes, wanted)
    _say(wire.encode(wire.ArenaMade(number, nbytes if said is None else said)), memory)
    os.close(memory)


def _ref(arena: int, offset: int = 0, nbytes: int = 64) -> Value:
    return Value(b"\xd4\x01\x00", (TensorRef(arena, 0, offset, nbytes, "UINT8", (nbytes,)),))


def _all(messages: list[wire.FromContainer]) -> None:
    for message in messages:
        _say(wire.encode(message))


def _flood() -> None:
    for task in range(10_000):
        _say(wire.encode(wire.TaskDone(task + 1_000_000, {}, 0, Times())))


def _arenas_without_number() -> None:
    for number in range(60_000):
        _arena(2 << 16 | number, 4096)


def _endless_message() -> None:
    """A gibibyte that costs nobody anything but whoever reads it."""
    nbytes = 1 << 30
    memory = seals.make("dataflower-message", nbytes)
    seals.seal(memory, seals.RESIZE | fcntl.F_SEAL_WRITE)
    _say(struct.pack("<BBQ", 0xC1, 1, nbytes), memory)


def _huge_pages() -> None:
    """Memory that is not there: a reader would find out by dying of it."""
    nbytes = 2 * MIB
    memory = os.memfd_create("dataflower-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(memory, nbytes)
    seals.seal(memory, seals.RESIZE | seals.FUTURE_WRITE)
    _say(wire.encode(wire.ArenaMade(2 << 16 | 900, nbytes)), memory)


NAN = float("nan")
ACTS: dict[str, Callable[[], None]] = {
    "noise": lambda: _say(os.urandom(200)),
    "half a message": lambda: _say(wire.encode(wire.Hello(wire.VERSION, 1))[:-2]),
    "a text that is none": lambda: _say(b"\x92\xa2\xe8\x28\x01"),
    "an unknown message": lambda: _say(b"\x92\xa5never\x01"),
    "endless nesting": lambda: _say(b"\x91" * 60_000),
    "a broken frame": lambda: _say(b"\xc1\x07"),
    "a frame without its memory": lambda: _say(struct.pack("<BBQ", 0xC1, 1, 1 << 40)),
    "a second hello": lambda: _say(wire.encode(wire.Hello(wire.VERSION, 1))),
    "a start before time": lambda: _say(wire.encode(wire.Hello(wire.VERSION, 1, -1.0))),
    "another version": lambda: _say(wire.encode(wire.Hello(99, 1))),
    "the end of another's task": lambda: _all([wire.TaskDone(task, {}, 0, Times()) for task in (0, -1, 2**63)]),
    "a failure of another's task": lambda: _say(
        wire.encode(wire.TaskFailed(2**40, ErrorRecord(wire.Code.INTERNAL, "x", "y"), Times()))
    ),
    "an item of another's task": lambda: _say(wire.encode(wire.TokenSent(2**40, 0, {"out": Value(b"\x01")}))),
    "the end of a batch that there is not": lambda: _say(
        wire.encode(wire.BatchDone((wire.TaskDone(7_000, {}, 0, Times()),)))
    ),
    "memory of another": lambda: _all([wire.TokenSent(1, 0, {"out": _ref(arena << 16)}) for arena in range(3)]),
    "memory that there is not": lambda: _all([wire.Unheld(((9 << 16, 0),)), wire.Unheld(((2**60, -5),))]),
    "an arena of another": lambda: _arena(1 << 16 | 900, MIB),
    "an arena without seals": lambda: _arena(2 << 16 | 900, MIB, wanted=0),
    "an arena of another size": lambda: _arena(2 << 16 | 900, MIB, said=1 << 50),
    "an empty arena": lambda: _arena(2 << 16 | 900, 0),
    "a descriptor with nothing to it": lambda: _say(wire.encode(wire.Unheld(())), _memfd(4096)),
    "many descriptors": lambda: _say(wire.encode(wire.Unheld(())), *[0] * 200),
    "a flood": _flood,
    "arenas without end": lambda: [_arena(2 << 16 | n, MIB, said=1 << 44) for n in range(900, 905)] and None,
    "arenas without number": _arenas_without_number,
    "an endless message": _endless_message,
    "memory of huge pages": _huge_pages,
    "a knock without a socket": lambda: _say(wire.encode(wire.Knock())),
    "a knock with two": lambda: _say(wire.encode(wire.Knock()), 0, 0),
    "impossible times": lambda: _all(
        [wire.TaskDone(task, {}, 0, Times(NAN, NAN, NAN, NAN, NAN)) for task in range(50)]
    ),
}


def hostile(act: str) -> str:
    """Do it, and wait for what comes of it."""
    if act not in ACTS:
        return "nothing"
    ACTS[act]()
    time.sleep(60)
    return "nobody minded"
