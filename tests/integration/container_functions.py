"""User functions that the container tests run in real containers."""

import asyncio
import itertools
import os
import sys
import threading
import time

import numpy as np

from dataflower import Stream, function

KEPT = []


def same(x):
    return x


def add(a, b=10):
    return a + b


def both(x):
    return {"twice": x * 2, "half": x // 2}


def count(n):
    print("counting to", n)
    yield from range(n)


def summed(n):
    for i in range(n):
        yield {"items": i}
    return {"total": sum(range(n))}


def listed(n):
    return list(range(n))


def total(numbers: Stream):
    return sum(numbers)


def relay(numbers: Stream):
    yield from numbers


def keep_all(frames: Stream):
    KEPT.append(list(frames))
    return len(KEPT[-1])


def first_of(frames: Stream):
    for frame in frames:
        return int(frame[0])


async def slow_add(a, b):
    await asyncio.sleep(0.001)
    return a + b


async def acount(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


async def arelay(numbers: Stream):
    async for number in numbers:
        yield number * 10


async def asleep():
    await asyncio.sleep(1000)


class Counter:
    def setup(self, start=0, label=""):
        self.value = start
        self.label = label

    def __call__(self, step):
        self.value += step
        return f"{self.label}{self.value}"

    def trim(self):
        if self.value < 0:
            raise ValueError("nothing to give back")
        print("counter trimmed at", self.value, flush=True)

    def close(self):
        print("counter closed at", self.value, flush=True)


class AsyncModel:
    async def setup(self, scale):
        await asyncio.sleep(0)
        self.scale = scale

    async def __call__(self, x):
        return x * self.scale


class NoSetup:
    def setup(self, path):
        raise FileNotFoundError(f"no weights at {path}")

    def __call__(self):
        return None


def spin():
    print("spinning", flush=True)
    for _ in itertools.count():
        pass


def spin_stubborn():
    print("spinning", flush=True)
    while True:
        try:
            for _ in itertools.count():
                pass
        finally:
            print("cleaned up", flush=True)


def fails(what):
    raise {"value": ValueError, "os": OSError, "exit": SystemExit, "interrupt": KeyboardInterrupt}[what]("bad " + what)


def leaves():
    sys.exit(3)


def halfway(n):
    yield from range(n)
    raise RuntimeError("broke halfway")


def ones(n):
    return np.ones(n, np.uint8)


def empties(n, context):
    array = context.empty((n,), "uint8")
    array[:] = 7
    return array


def image(n):
    return np.zeros((n, n + 1, 3), np.float32)


def keeps(x):
    KEPT.append(x)
    return len(KEPT)


def forgets():
    KEPT.clear()


def frames_of(x, n):
    for i in range(n):
        yield x[i * 10000 :]


def about(context):
    return {
        "invocation": context.invocation,
        "tag": list(context.tag),
        "attempt": context.attempt,
        "stage": context.stage,
        "remaining": context.remaining_s() > 0,
        "cancelled": context.cancelled,
    }


def logs(context):
    context.log.info("hello from user code")
    print("out")
    print("err", file=sys.stderr)


def threads():
    import torch

    return torch.get_num_threads()


def torch_op(x: "torch.Tensor"):  # noqa: F821
    return (x * 2).sum().item()


BARRIER = threading.Barrier(4)


def meets(x):
    BARRIER.wait()
    return x


def sleeps():
    print("sleeping", flush=True)
    time.sleep(1000)


def params_of(x, *, factor, offset=0):
    return x * factor + offset


@function(outputs={"out": Stream()})
def nothing():
    return []


def unsendable():
    return object()


def keep_or_drop(x):
    KEPT[:] = [] if x is None else [x]


def brief(n):
    total = 0
    for i in range(n):
        total += i
    return total


def fresh_frames(n):
    for i in range(n):
        yield np.arange(100_000, dtype=np.uint8) + np.uint8(i)


def greedy(nbytes):
    return int(np.ones(nbytes, np.uint8).sum())


def faults_of(nbytes, blocks, rounds):
    """Page faults a round, of one that needs so many blocks at once and lets them go; the first round is left out."""
    import resource

    import numpy as np

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = 0
    for i in range(rounds + 1):
        held = [np.ones(nbytes, np.uint8) for _ in range(blocks)]
        del held
        before = before if i else faults()
    return (faults() - before) / rounds


def ticks(n):
    for i in range(n):
        sum(range(50))
        yield i


def draws():
    import random

    return [random.random(), float(np.random.random())]


def segfaults():
    import ctypes

    ctypes.string_at(0)


def says_and_reads(name, fifo):
    if fifo:
        os.mkfifo(fifo)
    print("begins", name, flush=True)
    if fifo:
        with open(fifo, "rb") as end:
            end.read(1)
    return name


def forks_and_returns(x, how="return"):
    if not os.fork() and how == "raise":
        raise SystemExit
    return x


def forks_and_yields(n):
    os.fork()
    yield from range(n)


async def forks_and_awaits(x):
    os.fork()
    await asyncio.sleep(0)
    return x


class ForksInSetup:
    def setup(self):
        os.fork()

    def __call__(self, x):
        return x


def computes_in_a_child(x):
    """As `os.fork` is meant to be used: the child answers over a pipe and leaves."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, bytes([x * 2]))
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reader, 1)[0]
