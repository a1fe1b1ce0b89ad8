"""Functions that do next to nothing, so that what is measured is the engine."""

from __future__ import annotations

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
