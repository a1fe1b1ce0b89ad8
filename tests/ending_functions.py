"""Functions that go on for minutes, each in a way of its own, unless they are ended."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dataflower import Stream, function

LONG_S = 600.0


@contextmanager
def noted(log: str) -> Iterator[None]:
    """A byte when it begins, and one when it ends, however it does."""
    note(log, b"b")
    try:
        yield
    finally:
        note(log, b"e")


def note(log: str, what: bytes) -> None:
    """Add to a log."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, what)
    finally:
        os.close(file)


@function
def later(x: Any, log: str) -> str:
    """Says that it ran."""
    note(log, b"l")
    return "ran"


@function
def sleeps(log: str) -> int:
    with noted(log):
        time.sleep(LONG_S)
    return 0


@function
def spins(log: str) -> int:
    end = time.monotonic() + LONG_S
    with noted(log):
        while time.monotonic() < end:
            pass
    return 0


@function
def reads(log: str) -> int:
    """Waits for a byte that never comes."""
    ours, theirs = os.pipe()
    try:
        with noted(log):
            return len(os.read(ours, 1))
    finally:
        os.close(ours)
        os.close(theirs)


@function
def computes(log: str) -> int:
    """In C, without a look at the interpreter."""
    note(log, b"b")
    return len(hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000))


@function
async def awaits(log: str) -> int:
    with noted(log):
        await asyncio.sleep(LONG_S)
    return 0


@function(batch=True)
def sleeps_together(log: list[str]) -> list[int]:
    with noted(log[0]):
        time.sleep(LONG_S)
    return [0] * len(log)


@function(outputs={"item": Stream()})
def one_item(log: str) -> Iterator[int]:
    with noted(log):
        yield 0
        time.sleep(LONG_S)


@function(outputs={"item": Stream()})
async def one_item_async(log: str) -> AsyncIterator[int]:
    with noted(log):
        yield 0
        await asyncio.sleep(LONG_S)


@function(outputs={"item": Stream()})
def endless_items(nbytes: int, log: str) -> Iterator[Any]:
    """Until its reader is behind: then there is no credit, or no room."""
    with noted(log):
        while True:
            yield np.zeros(nbytes, np.uint8)


@function
def takes_one(item: Stream[Any], log: str) -> int:
    """Takes an item of a stream, and then does something else."""
    with noted(log):
        next(iter(item))
        time.sleep(LONG_S)
    return 0


@function
def takes_all(item: Stream[Any], log: str) -> int:
    """Waits for an item that never comes."""
    with noted(log):
        return sum(1 for _ in item)
