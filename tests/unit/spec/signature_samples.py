"""Functions of every form, read both ways by test_signature."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import numpy as np

import dataflower
from dataflower import Json, Stream, Tensor, Text, function
from dataflower.spec.function import Kind, PortType

IMAGE = Tensor("uint8", ["H", "W", 3])
LIMIT = 4 * 1024


def plain(a, b: str, c: int = LIMIT, *, d: float = -1.5, e: bool | None = None, f: Any = object): ...
def returns_text(x: bytes) -> str: ...
def typed_tensor(x: np.ndarray, y: np.typing.NDArray[np.float32]) -> np.ndarray: ...
def defaults(a=(1, 2), b={"k": [1]}, c=None, d="x", e=b"raw"): ...  # noqa: B006
def anything(first, **rest): ...
def positional(*items): ...
def reads_stream(frames: Stream[np.ndarray], words: Iterator[str], more: typing.Iterable, old: Iterable[int]): ...


def generator(n: int) -> Iterator[int]:
    yield n


async def coroutine(n: int) -> int:
    return n


async def async_generator(n: int) -> AsyncIterator[str]:
    yield "x"


@function
def bare(x): ...


@function(outputs="text")
def one_name(x) -> str: ...


@function(outputs=["a", "b"])
def two_names(x):
    yield {}


@dataflower.function(outputs={"frame": Stream(IMAGE), "meta": Json()}, inputs={"path": Text()})
def declared(path, fps=2):
    yield {}


@function(outputs={"mask": Tensor("BOOL", ("H", "W")), "n": PortType(Kind.INT)}, inputs={"frames": Stream(IMAGE)})
def declared_values(frames): ...


@function(outputs={"a": Json(), "b": Text()})
def all_values_of_a_generator():
    yield {}


@function(inputs={"extra": Json()})
def declared_extra(x, **rest): ...


class Stateless:
    def __call__(self, x: str) -> str: ...


@function(outputs={"objects": Stream(Json()), "count": PortType(Kind.INT)})
class Stateful:
    def setup(self, model: str = "tiny", *, threshold: float = 0.5): ...
    def __call__(self, frame, scale: float = 1.0):
        yield {}


class Inherits(Stateful):
    def setup(self, **options): ...


class Constructed:
    def __init__(self, cache=None): ...
    def __call__(self, x): ...
