"""Functions that misbehave, and honest ones to watch them by; `tests/` must be on the code path."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataflower.spec.function import Json, Stream, Tensor, Text, function

Array = np.ndarray[Any, Any]


def mark(path: str) -> None:
    """Leave a byte more in a file: how often something happened, across processes."""
    with open(path, "ab", buffering=0) as file:
        file.write(b".")


# --- honest ---------------------------------------------------------------------------------------------------


@function
def echo(x: Any) -> Any:
    return x


@function(outputs={"out": Stream(Tensor("UINT8", ["N"]))})
def blocks(n: int, nbytes: int, log: str = "") -> Iterator[Array]:
    """`n` arrays, each filled with its number; a byte in `log` for each that was begun."""
    for i in range(n):
        if log:
            mark(log)
        yield np.full(nbytes, i % 256, dtype=np.uint8)


@function(outputs={"out": Stream(Tensor("UINT8", ["N"]))})
def kept_blocks(n: int, nbytes: int, keep: int) -> Iterator[Array]:
    """The same, while the last `keep` of them stay in use here (and so in this container's memory)."""
    kept: list[Array] = []
    for i in range(n):
        kept = [*kept, np.full(nbytes, i % 256, dtype=np.uint8)][-keep:]
        yield kept[-1]


@function
def block(n: int) -> Array:
    return np.zeros(n, np.uint8)


@function
def first_byte(x: Array) -> int:
    return int(x[0])


@function
def slow_first_byte(x: Array) -> int:
    time.sleep(0.005)
    return int(x[0])


@function
def shifted(x: Array) -> Array:
    return x + np.uint8(1)


@function
def listed(items: list[Any]) -> list[Any]:
    return list(items)


@function(outputs={"out": Stream()})
def relayed(items: Stream[Any]) -> Iterator[int]:
    for item in items:
        yield int(item[0])


@function
def pid(x: Any) -> int:
    return os.getpid()


@function
def rendezvous(here: str, there: str) -> str:
    """Says that it runs, and returns once the other one does, too."""
    Path(here).touch()
    while not os.path.exists(there):
        time.sleep(0.005)
    return "met"


@function
def answered(path: str, log: str) -> str:
    """What the file says once it is there."""
    mark(log)
    while not os.path.exists(path):
        time.sleep(0.01)
    return Path(path).read_text()


@function
def crash_once_or_meet(here: str, there: str, crash: str) -> str:
    """Meets somebody; or, given a file that remembers, dies the first time."""
    if not crash:
        Path(here).touch()
        while not os.path.exists(there):
            time.sleep(0.005)
        return "met"
    if not os.path.exists(crash):
        Path(crash).touch()
        os.abort()
    return "survived"


# --- crashes --------------------------------------------------------------------------------------------------


@function
def poison(how: str) -> str:
    """Leave the world in the named way."""
    return str(DEATHS[how]())


def _recurse() -> int:
    return _recurse() + 1


def _close_all() -> str:
    os.closerange(3, 4096)
    return "without descriptors"


def _scribble(what: bytes) -> str:
    """Write to every descriptor there is; only those of its own sockets are worth it."""
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(fd, what)
    time.sleep(600)
    return "never"


def _exit_aside() -> str:
    thread = threading.Thread(target=os._exit, args=(5,))
    thread.start()
    thread.join()
    return "never"


def _fork_and_die() -> None:
    """A child stays behind with copies of all descriptors, its parent dies."""
    if not os.fork():
        time.sleep(600)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


class _Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("not even a message")


def _raise_mute() -> None:
    raise _Mute


def _raise_long() -> None:
    raise ValueError("x" * 1_000_000)


DEATHS: dict[str, Any] = {
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "exit_now": lambda: os._exit(4),
    "exit_aside": _exit_aside,
    "sigterm": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "fork_and_die": _fork_and_die,
    "close_all": _close_all,
    "scribble": lambda: _scribble(b"\xc1 no message at all"),
    "scribble_nothing": lambda: _scribble(b"\0"),
    "sys_exit": lambda: sys.exit("enough"),
    "recursion": _recurse,
    "keyboard": lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5),
    "mute": _raise_mute,
    "long": _raise_long,
    "none": lambda: "well",
}


@function(outputs={"out": Json()})
def unserialisable(x: Any) -> Any:
    return {"deep": [object()]}


@function(outputs={"out": Stream(Json())})
def unserialisable_item(x: Any) -> Iterator[Any]:
    yield 1
    yield {1, 2}


@function(outputs={"out": Tensor("FP32", ["N"])})
def wrong_dtype(x: Any) -> Array:
    return np.zeros(3, np.float64)


@function(outputs={"out": Tensor("FP32", ["N", 2])})
def wrong_shape(x: Any) -> Array:
    return np.zeros((3, 3), np.float32)


@function(outputs={"out": Text()})
def wrong_type(x: Any) -> Any:
    return 7


@function(outputs={"out": Stream()})
def dies_in_stream(x: int) -> Iterator[int]:
    """`x` items, then a crash."""
    yield from range(x)
    os.abort()


def hang(seconds: float) -> float:
    """Computes in C, where nothing can interrupt it; the interpreter's lock is let go of."""
    if seconds:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
    return seconds


def hang_with_lock(seconds: float) -> float:
    """Sleeps in C, and no other thread of the process can run, either."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return seconds


class RaisingSetup:
    def setup(self) -> None:
        raise OSError("the weights are not there")

    def __call__(self, x: Any) -> Any:
        return x


class DyingSetup:
    """Its process dies in `setup` until `path` has so many bytes."""

    def setup(self, path: str = "", lives: int = 1_000_000) -> None:
        mark(path)
        if os.path.getsize(path) <= lives:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, x: Any) -> Any:
        return x


class EndlessSetup:
    def setup(self) -> None:
        time.sleep(600)

    def __call__(self, x: Any) -> Any:
        return x


function(outputs={"out": Json()})(EndlessSetup)
function(outputs={"out": Json()})(RaisingSetup)
function(outputs={"out": Json()})(DyingSetup)
