"""The functions of the paper's workflows: they look at their inputs, take their time, and write their outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dataflower import Stream, function

PAGE = 4096


def look(inputs: Iterable[Any]) -> int:
    """Read something of every page of all arrays."""
    seen = 0
    for value in inputs:
        if isinstance(value, (list, tuple)):
            seen += look(value)
        elif isinstance(value, np.ndarray):
            seen += int(value[::PAGE].sum())
    return seen


@function
def step(*inputs: Any, seconds: float, nbytes: int) -> Any:
    """Take `seconds`, then give an array of `nbytes`."""
    seen = look(inputs)
    time.sleep(seconds)
    return np.full(nbytes, seen & 0xFF, np.uint8)


@function(outputs={"part": Stream()})
def cut(*inputs: Any, seconds: float, nbytes: int, parts: int) -> Iterator[Any]:
    """Take `seconds` and give `nbytes` in so many parts, each when it is ready."""
    seen = look(inputs)
    for _ in range(parts):
        time.sleep(seconds / parts)
        yield np.full(nbytes // parts, seen & 0xFF, np.uint8)
