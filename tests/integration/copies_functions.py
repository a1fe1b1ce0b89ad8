"""User functions whose large outputs have to be copied."""

from __future__ import annotations

import os
import signal
import weakref

import numpy as np

from dataflower import Stream, function

kept = []


@function
def own(n: int, fill: int):
    return np.full(n, fill, np.uint8)


@function
def kept_and_changed(n: int, fill: int):
    for before in kept:
        np.add(before, 1, out=before)
    array = np.full(n, fill, np.uint8)
    kept.append(array)
    return array


@function
def seen_weakly(n: int, fill: int):
    array = np.full(n, fill, np.uint8)
    kept.append(weakref.ref(array))
    return array


@function(outputs=["a", "b", "c"])
def several(n: int, fill: int):
    found = {"a": np.full(n, fill, np.uint8), "b": np.full(2 * n, fill + 1, np.uint8), "c": fill}
    return found


@function(outputs={"out": Stream()})
def fresh_items(n: int, count: int):
    for i in range(count):
        yield np.full(n if i % 3 else 10, i, np.uint8)


@function(outputs={"out": Stream()})
def one_buffer(n: int, count: int):
    buffer = np.empty(n, np.uint8)
    for i in range(count):
        buffer[:] = i
        yield buffer
        buffer[:] = 255


@function(outputs={"out": Stream()})
def fails_after(n: int, count: int):
    for i in range(count):
        yield np.full(n, i, np.uint8)
    raise ValueError("that was all")


@function
def dies_on_the_second(n: int, fill: int, marker: str):
    """SIGKILLs its process in the first run of task 1, when the outputs of task 0 are on their way."""
    if fill == 1 and not os.path.exists(marker):
        os.close(os.open(marker, os.O_CREAT | os.O_WRONLY))
        os.kill(os.getpid(), signal.SIGKILL)
    return np.full(n, fill, np.uint8)


@function
def ends(x):
    return [int(x[0]), int(x[len(x) // 2]), int(x[-1]), len(x)]
