"""Functions that do next to nothing, so that what is measured is the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dataflower import Context, Stream, function


@function
def forward(x: Any) -> Any:
    """Hand on what came: a tensor goes on by reference."""
    return x


@function
def length(x: Any) -> int:
    """Size in bytes."""
    return int(x.nbytes)


@function
def blank(trigger: Any, nbytes: int, context: Context) -> np.ndarray[Any, Any]:
    """A tensor of `nbytes` in the arena, of which one byte is written: what follows is pure passing-on."""
    tensor: np.ndarray[Any, Any] = context.empty((nbytes,), "UINT8")
    tensor[:1] = 1
    return tensor


@function(outputs={"chunk": Stream()})
def produce(chunks: int, seconds: float) -> Iterator[int]:
    """`chunks` items, one every `seconds` of work."""
    for i in range(chunks):
        time.sleep(seconds)
        yield i


@function(outputs={"chunk": Stream()})
def work(chunk: Stream[int], seconds: float) -> Iterator[int]:
    """Takes `seconds` for each item of a stream and hands it on."""
    for item in chunk:
        time.sleep(seconds)
        yield item


@function
def first_operation(x: Any) -> float:
    """One torch operation, to show that the library is really there."""
    import torch

    return float(torch.ones(4).sum())


@function
def join(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> int:
    """Bytes of eight arrays."""
    return int(sum(item.nbytes for item in (a, b, c, d, e, f, g, h)))


@function(outputs={"item": Stream()})
def scatter(x: Any, width: int) -> Iterator[Any]:
    """The same array `width` times, as a stream."""
    for _ in range(width):
        yield x


@function
def total(items: list[Any]) -> int:
    """Bytes of a list of arrays."""
    return int(sum(item.nbytes for item in items))


class Write:
    """Writes a new array of `nbytes` in one of three ways, from the same bytes as `plain`."""

    def __init__(self) -> None:
        self._took = 0.0
        self._source: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._warm: np.ndarray[Any, Any] = np.empty(0, np.uint8)

    def __call__(self, nbytes: int, way: str, context: Context) -> Any:
        """`plain`: seconds for a copy into warm memory of its own; `arena`: an array of the arena; `copied`: any array.

        `torch`: as `arena`, written by torch. `took`: seconds of the last write into an array of the arena, by numpy.
        `spun`, `slept`: an array of the arena that is not written, after as long in a loop of Python, or asleep.
        """
        if way == "took":
            return self._took
        if self._source.nbytes != nbytes:
            self._source = np.arange(nbytes // 8, dtype=np.uint64).view(np.uint8)
            self._warm = self._source.copy()
        if way == "plain":
            start = time.perf_counter()
            np.copyto(self._warm, self._source)
            return time.perf_counter() - start
        if way == "arena":
            out = context.empty((nbytes,), "UINT8")
            start = time.perf_counter()
            np.copyto(out, self._source)
            self._took = time.perf_counter() - start
            return out
        if way in ("spun", "slept"):
            return self._idle(context.empty((nbytes,), "UINT8"), way)
        if way == "torch":
            import torch

            out = context.empty((nbytes,), "UINT8")
            torch.from_numpy(out).copy_(torch.from_numpy(self._source))
            return out
        np.copyto(self._warm, self._source)
        return self._warm

    def _idle(self, out: np.ndarray[Any, Any], way: str) -> np.ndarray[Any, Any]:
        end = time.perf_counter() + self._took
        if way == "slept":
            time.sleep(self._took)
        while time.perf_counter() < end:
            pass
        return out


class Fresh:
    """Computes in numpy, then returns a new array of `nbytes`."""

    def __init__(self) -> None:
        self._numbers = np.linspace(0.0, 1.0, 1 << 15)
        self._kept: np.ndarray[Any, Any] | None = None

    def __call__(self, nbytes: int, seconds: float, way: str) -> np.ndarray[Any, Any]:
        """`kept`: the function has a name of its own for the array, until the next call; `own`: it has none."""
        self._kept = None
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            np.sin(self._numbers)
        if way == "own":
            return np.full(nbytes, 7, np.uint8)
        self._kept = np.full(nbytes, 7, np.uint8)
        return self._kept


@function(outputs={"item": Stream()})
def fresh_items(count: int, nbytes: int, seconds: float, way: str) -> Iterator[np.ndarray[Any, Any]]:
    """`Fresh`, as a stream."""
    make = Fresh()
    for _ in range(count):
        if way == "own":
            yield make(nbytes, seconds, way)
        else:
            item = make(nbytes, seconds, "own")
            yield item


@function
def seen_items(items: Stream[Any]) -> int:
    """One byte of each."""
    return sum(int(item[0]) for item in items)


@function
def seen(x: np.ndarray[Any, Any]) -> int:
    """One byte from either end."""
    return int(x[0]) + int(x[-1])


@function
def seen_or_seconds(x: Any) -> float:
    """Of an array one byte from either end, so that its pages are really there; a number is handed on."""
    return x if isinstance(x, float) else float(x[0]) + float(x[-1])


@function(outputs={"token": Stream()})
def spin(tokens: int, seconds: float, nbytes: int, sleeps: bool = False) -> Iterator[Any]:
    """Hand over a token with the time of day, then compute for `seconds` in pure Python, or sleep; `tokens` times."""
    payload = np.zeros(nbytes, np.uint8)
    for _ in range(tokens):
        yield {"at": time.monotonic(), "data": payload}
        if sleeps:
            time.sleep(seconds)
            continue
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            count += 1


@function(outputs={"delay": Stream()})
def delays(token: Stream[Any]) -> Iterator[float]:
    """How old each token is when it is there."""
    for item in token:
        yield time.monotonic() - item["at"]


@function
def busy(x: Any, seconds: float) -> dict[str, float]:
    """Compute for `seconds` in pure Python; gives begin and end."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        pass
    return {"begin": begin, "end": time.monotonic()}


class Resident:
    """One torch operation, then a name that no other container has: process ids are not telling in sandboxes."""

    def setup(self) -> None:
        """Choose the name."""
        self._name = os.urandom(8).hex()

    def __call__(self, x: Any) -> str:
        """The name."""
        import torch

        torch.ones(4).sum()
        return self._name


@function(outputs={"chunk": Stream()})
def numbered(n: int, nbytes: int) -> Iterator[Any]:
    """Arrays that carry their number, and bytes by which one sees that they are whole."""
    for i in range(n):
        array = np.full(nbytes, i % 251, np.uint8)
        array[:8] = np.frombuffer(i.to_bytes(8, "little"), np.uint8)
        yield array


@function
def linger(seconds: float, nbytes: int) -> Any:
    """A tensor after a while, in steps that can be interrupted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)
    return np.zeros(nbytes, np.uint8)
