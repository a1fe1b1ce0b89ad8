"""Small user functions for real containers: `functions_for_tests:NAME`, with `tests/` on the code path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataflower.spec.context import Context
from dataflower.spec.function import Stream, Tensor, function


@function
def passthrough(x: Any) -> Any:
    return x


@function
def double(x: Any) -> Any:
    return x * 2


@function
def add(x: Any, y: Any) -> Any:
    return x + y


@function(outputs={"out": Stream()})
def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@function(outputs={"out": Stream()})
def arrays(n: int, nbytes: int) -> Iterator[np.ndarray[Any, Any]]:
    for i in range(n):
        yield np.full(nbytes, i % 256, dtype=np.uint8)


@function
def total(items: Any) -> Any:
    return sum(items)


@function(outputs={"out": Stream()})
def running_total(items: Stream[Any]) -> Iterator[Any]:
    so_far = 0
    for item in items:
        so_far += item
        yield so_far


@function(outputs={"out": Stream()})
def relay(items: Stream[Any]) -> Iterator[Any]:
    """Passes items on, each one late, so that it lives longer than its turn."""
    last = None
    for item in items:
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last


@function
def fill(n: int) -> np.ndarray[Any, Any]:
    return np.arange(n, dtype=np.float32)


@function
def fill_or_wait(x: int) -> Any:
    """As `fill`; below 0 it goes on until it is stopped."""
    while x < 0:
        time.sleep(0.002)
    return np.arange(x, dtype=np.float32)


@function
def fill_or_mark(x: int | str) -> Any:
    """As `fill`; given a path, it leaves another file at each run, named like that, and goes on until it is stopped."""
    if isinstance(x, int):
        return np.arange(x, dtype=np.float32)
    Path(f"{x}.{time.monotonic_ns()}").touch()
    while True:
        time.sleep(0.002)


@function(outputs={"out": Tensor("FP32", ["N"])})
def scale(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x * np.float32(2)


@function
def checksum(x: np.ndarray[Any, Any]) -> int:
    return int(x.astype(np.int64).sum())


@function
def fail(x: Any) -> Any:
    raise ValueError(f"no good: {x}")


@function
def kill_self(x: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@function
def kill_self_once(x: str) -> str:
    """Dies the first time; `x` is a file that remembers."""
    path = Path(x)
    if not path.exists():
        path.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@function
def sleep(x: float) -> float:
    time.sleep(x)
    return x


@function
def sleep_deaf(x: float) -> float:
    """Can't be interrupted from Python: one long system call, with the exception held back."""
    end = time.monotonic() + x
    while time.monotonic() < end:
        try:
            time.sleep(max(0.0, end - time.monotonic()))
        except BaseException:
            continue
    return x


@function
def wait_for_file(x: str) -> str:
    """Returns what the file says once it is there; leaves `x.started` behind at each run."""
    path = Path(x)
    with path.with_suffix(".started").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not (text := path.read_text() if path.exists() else ""):  # who writes it makes it first, empty
        time.sleep(0.02)
    return text


@function
def pid(x: Any) -> int:
    return os.getpid()


@function
def leave_child(x: Any) -> int:
    """Starts a process and forgets it."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


@function
def say(x: str) -> str:
    print(x, flush=True)
    return x


class Counter:
    """Keeps state between its tasks."""

    def setup(self, start: int = 0) -> None:
        self.value = start

    def __call__(self, x: int) -> int:
        self.value += x
        return self.value


function(outputs="out")(Counter)


class BrokenSetup:
    """Never gets ready."""

    def setup(self) -> None:
        raise RuntimeError("no model here")

    def __call__(self, x: Any) -> Any:
        return x


function(outputs="out")(BrokenSetup)


@function(batch=True)
def double_together(x: list[int], context: list[Context]) -> list[Any]:
    """Twice each number, and how many were together; 13 is refused, 99 spoils everything, 666 returns too little."""
    if 99 in x:
        raise ValueError("99 spoils the batch")
    if 666 in x:
        return []
    assert len(context) == len(x)
    assert [own.tag for own in context] == sorted(own.tag for own in context)
    return [ValueError("not 13") if n == 13 else {"twice": 2 * n, "together": len(x)} for n in x]


@function(batch=True)
class Stacked:
    """Adds a constant to all arrays of a batch at once, which therefore must have one shape."""

    def setup(self, plus: int = 1) -> None:
        self.plus = plus

    async def __call__(self, x: list[np.ndarray[Any, Any]]) -> Any:
        return np.stack(x) + self.plus


@function(batch=True)
def pids_slowly(x: list[float]) -> list[int]:
    """Sleeps for the longest of them, then gives the process id to each."""
    time.sleep(max(x))
    return [os.getpid()] * len(x)


@function(batch=True)
def cancelled_members(x: list[float], context: list[Context]) -> list[int]:
    """Waits until one of the tasks is cancelled (10 s at most); gives how many are not."""
    end = time.monotonic() + 10
    while not any(own.cancelled for own in context) and time.monotonic() < end:
        time.sleep(0.005)
    return [sum(not own.cancelled for own in context)] * len(x)


@function
def spin(x: Any) -> int:
    """Computes for `x["seconds"]` in pure Python, and never lets go of the interpreter of its own accord."""
    end = time.monotonic() + x["seconds"]
    while time.monotonic() < end:
        pass
    return int(x["data"].nbytes) if "data" in x else 0


@function
def sum_all(items: list[np.ndarray[Any, Any]], gate: Any) -> int:
    """Of all elements; `gate` makes it wait for the stage that it comes from."""
    return sum(int(item.sum()) for item in items)


@function
def after(x: Any, gate: Any) -> Any:
    """Passes `x` on when `gate` has come."""
    return x


@function
def say_when_stopped(x: str) -> str:
    """Works for a minute; leaves a file behind when it is stopped."""
    Path(x).with_suffix(".started").touch()
    try:
        for _ in range(6000):
            time.sleep(0.01)
    finally:
        Path(x).touch()
    return x


@function(batch=True)
def fill_together(x: list[int]) -> list[np.ndarray[Any, Any]]:
    return [np.full(n, 7, np.uint8) for n in x]


@function
def sum_slowly(x: np.ndarray[Any, Any]) -> int:
    """Takes a third of a second."""
    time.sleep(0.3)
    return int(x.astype(np.int64).sum())


@function(batch=True)
def sum_together(x: list[np.ndarray[Any, Any]]) -> list[int]:
    return [int(one.astype(np.int64).sum()) for one in x]


@function
def sum_items(items: Stream[np.ndarray[Any, Any]]) -> int:
    """Of all elements of all items."""
    return sum(int(item.astype(np.int64).sum()) for item in items)


@function
def repeat_bytes(text: str, times: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(text.encode() * times, np.uint8)
