"""Functions that are called through a real front door; `tests/` must be on the code path."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataflower.spec.context import Context
from dataflower.spec.function import Stream, Tensor, Text, function

Array = np.ndarray[Any, Any]


@function(outputs={"out": Tensor("FP32", ["N", 3])})
def double(x: Array) -> Array:
    return x * np.float32(2)


@function(outputs={"out": Text()})
def shout(text: str) -> str:
    return text.upper()


@function(outputs={"out": Stream(Tensor("UINT8", [2, 2]))})
def frames(n: int) -> Iterator[Array]:
    for i in range(n):
        yield np.full((2, 2), i, np.uint8)


@function
def same(x: Any) -> Any:
    return x


def forever() -> str:
    time.sleep(600)
    return "woken"


@function(outputs={"token": Stream(Text())})
def tokens(text: str, gate: str) -> Iterator[str]:
    """The first word at once; the others when the file `gate` is there."""
    first, *rest = text.split()
    yield first
    while not Path(gate).exists():
        time.sleep(0.005)
    yield from rest


@function(outputs={"total": Stream()})
def totals(numbers: Stream[int]) -> Iterator[int]:
    total = 0
    for number in numbers:
        total += number
        yield total


@function(outputs={"out": Text()})
def wait(log: str, context: Context) -> str:
    """Waits to be stopped, and leaves in `log` how long it had and whether it was told."""
    with Path(log).open("a", buffering=1) as file:
        file.write(f"{context.remaining_s()}\n")
        try:
            while not context.cancelled:
                time.sleep(0.005)
        finally:
            file.write(f"{context.cancelled}\n")
    return "nobody reads this"
