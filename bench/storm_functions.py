"""Functions of the storms: arrays that carry their number, and notes of when a function ran, outside of the engine."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dataflower import Context, Stream, function

NOTE = struct.Struct("<qqdd")
"""Call, place of the stage (0: the first), when the function began and when it ended (CLOCK_MONOTONIC, seconds).

One when it begins, which has no end (0), so that a function that is killed has noted itself, and one when it ends.
"""
STEP_S = 0.0005
Array = np.ndarray[Any, Any]


def numbered_array(number: int, nbytes: int) -> Array:
    """An array that says which it is, and by whose bytes one sees that it is whole."""
    array = np.full(nbytes, number % 251, np.uint8)
    array[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    return array


def number_of(array: Array, nbytes: int) -> int:
    """Which one it is; -1 if it is not whole."""
    number = int.from_bytes(array[:8].tobytes(), "little")
    whole = array.nbytes == nbytes and bool((array[8:] == number % 251).all())
    return number if whole else -1


@function(outputs={"chunk": Stream()})
def make(n: int, nbytes: int) -> Iterator[Any]:
    """Arrays 0 to `n` - 1."""
    for i in range(n):
        yield numbered_array(i, nbytes)


@function
def one(n: int, nbytes: int) -> Any:
    """Array `n`."""
    return numbered_array(n, nbytes)


@function
def forward(x: Any) -> Any:
    """Hand on what came, by reference."""
    return x


@function
def copy(x: Any) -> Any:
    """A new array with the same bytes."""
    return x.copy()


@function(batch=True)
def copies(x: list[Any]) -> list[Any]:
    """The same for several at a time."""
    return [array.copy() for array in x]


@function(outputs={"chunk": Stream()})
def flow(chunk: Stream[Any]) -> Iterator[Any]:
    """New arrays for those of a stream."""
    for array in chunk:
        yield array.copy()


class Linger:
    """Passes on what came after a while, and notes when it ran; it can be interrupted at each step."""

    def setup(self, log: str, place: int) -> None:
        """`place`: of the stage among the others."""
        self._place = place
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)

    def __call__(self, x: Any, call: int, seconds: float, context: Context) -> Any:
        """`seconds` of waiting; what comes is passed on, of the first stage a new array."""
        begun = time.monotonic()
        os.write(self._log, NOTE.pack(call, self._place, begun, 0.0))
        try:
            _wait(seconds)
            if self._place:
                return x
            out = context.empty((int(x),), "UINT8")
            out[:] = call % 251
            return out
        finally:
            os.write(self._log, NOTE.pack(call, self._place, begun, time.monotonic()))


@function(outputs={"chunk": Stream()})
class Count:
    """A stream of numbers, one each while, with a note of when it ran."""

    def setup(self, log: str, place: int) -> None:
        """As for `Linger`."""
        self._place = place
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)

    def __call__(self, n: int, call: int, seconds: float) -> Iterator[Any]:
        """0 to `n` - 1, each after `seconds`."""
        begun = time.monotonic()
        os.write(self._log, NOTE.pack(call, self._place, begun, 0.0))
        try:
            for number in range(n):
                _wait(seconds)
                yield number
        finally:
            os.write(self._log, NOTE.pack(call, self._place, begun, time.monotonic()))


@function(outputs={"chunk": Stream()})
class Trickle:
    """Passes on a stream, slowly, with a note of when it ran."""

    def setup(self, log: str, place: int) -> None:
        """As for `Linger`."""
        self._place = place
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)

    def __call__(self, chunk: Stream[Any], call: int, seconds: float) -> Iterator[Any]:
        """Each item after `seconds`."""
        begun = time.monotonic()
        os.write(self._log, NOTE.pack(call, self._place, begun, 0.0))
        try:
            for item in chunk:
                _wait(seconds)
                yield item
        finally:
            os.write(self._log, NOTE.pack(call, self._place, begun, time.monotonic()))


def _wait(seconds: float) -> None:
    """In steps, between which it can be interrupted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(STEP_S)
