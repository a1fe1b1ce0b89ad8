"""A host at the end of a long line (10 ms each way, 1 Gbit/s): how full do tensors make it, what passes them how soon?

`hosts_line_share`: what arrives per second while tensors of 64 MB follow each other, and while one goes alone
(`hosts_line_share_alone`), of what the line lets through. `hosts_line_reach_ms`: with three such tensors under way in
the same direction at any time, from a cancellation to the end of the function over there that it stops, less the 10 ms
that the line takes (99 of 100 are faster).
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np

from bench.cancelstorm import LONG_S, noted
from bench.engine import ROOT, call, document, engine
from bench.report import Report, percentile
from bench.second_host import NAME, TOKEN, SecondHost, second_host
from bench.storm_functions import NOTE
from dataflower.host.runtime import Runtime

DELAY_S = 0.01
MBIT = 1000.0
NBYTES = 64 << 20
SMALL = 1 << 10
UNDER_WAY = 3


@contextmanager
def long_line(second: SecondHost, delay_s: float, mbit: float) -> Iterator[str]:
    """A line to a host, in a process of its own; gives what to call the host by, as `name=host:port`."""
    address, port = second.address
    command = (sys.executable, "-P", "-m", "dataflower.testing.line", f"{address}:{port}")
    options = ("--delay-ms", str(delay_s * 1e3), "--mbit", str(mbit))
    with subprocess.Popen(
        (*command, *options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"{NAME}=127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def sources(log: Path) -> tuple[str, str, str]:
    """A stage over there that looks at a tensor of the caller, at one that a stage here makes, and one that lingers."""
    rest = f"resources: {{host: {NAME}}}, scaling: {{min_replicas: 1, max_replicas: 1}}"
    look = f"  look: {{function: 'bench.functions:length', inputs: {{x: inputs.x}}, {rest}}}"
    make = "  make: {function: 'bench.storm_functions:one', inputs: {n: inputs.n, nbytes: inputs.nbytes}}"
    made = f"  look: {{function: 'bench.functions:length', inputs: {{x: make.out}}, {rest}}}"
    inputs = "{x: inputs.x, call: inputs.call, seconds: inputs.seconds}"
    params = f"params: {{log: '{log}', place: 1}}"
    linger = f"  linger: {{function: 'bench.storm_functions:Linger', inputs: {inputs}, {params}, {rest}}}"
    return (
        document("look", "{x: {type: any}}", look, "{y: look.out}"),
        document("made", "{n: int, nbytes: int}", f"{make}\n{made}", "{y: look.out}"),
        document("linger", "{x: int, call: int, seconds: float}", linger, "{y: linger.out}"),
    )


async def timed(host: Runtime, nbytes: int) -> float:
    """Seconds of one call with a tensor."""
    x = np.zeros(nbytes, np.uint8)
    start = time.perf_counter()
    await call(host, "look", {"x": x})
    return time.perf_counter() - start


async def share(host: Runtime, rounds: int) -> tuple[float, list[float]]:
    """Of the line's bandwidth: with tensors one behind the other, and alone each."""
    full_s = NBYTES / (MBIT * 125_000)
    empty_s = statistics.median([await timed(host, SMALL) for _ in range(5)])
    await timed(host, NBYTES)  # memory is warm
    alone = [full_s / (await timed(host, NBYTES) - empty_s) for _ in range(rounds)]
    async with full(host):
        before, start = host.peers()[0].bytes_out, time.perf_counter()
        await asyncio.sleep(rounds * full_s)
        moved, took_s = host.peers()[0].bytes_out - before, time.perf_counter() - start
    return moved / (MBIT * 125_000) / took_s, alone


@asynccontextmanager
async def full(host: Runtime) -> AsyncIterator[None]:
    """The line is full meanwhile: some tensors are on their way there at any time."""
    is_over = False

    async def load() -> None:
        while not is_over:
            await call(host, "made", {"n": 1, "nbytes": NBYTES})

    before = host.peers()[0].bytes_out
    async with asyncio.TaskGroup() as loads:  # if either fails, the other stops
        for _ in range(UNDER_WAY):
            loads.create_task(load())
        while host.peers()[0].bytes_out < before + NBYTES:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
        yield
        is_over = True


async def reach(host: Runtime, log: Path, cancels: int) -> list[float]:
    """Seconds from cancellations to the ends of the functions over there, with bytes under way in front of them."""
    rng = random.Random(5)
    at: dict[int, float] = {}
    async with full(host):
        for number in range(1, cancels + 1):
            invocation = await host.invoke("linger", {"x": 1, "call": number, "seconds": LONG_S})
            await asyncio.sleep(4 * DELAY_S + rng.uniform(0.0, 0.03))
            at[number] = time.monotonic()
            invocation.cancel()
            await invocation.wait_over()
            await asyncio.sleep(2 * DELAY_S)
    written = await asyncio.to_thread(log.read_bytes)
    notes = {call: (begun, ended) for call, _, begun, ended in NOTE.iter_unpack(written) if ended}
    return [notes[number][1] - at[number] for number in at if number in notes and notes[number][0] < at[number]]


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    rounds, cancels = (2, 40) if options.quick else (8, 400)
    with second_host(link="") as second, noted() as log, long_line(second, DELAY_S, MBIT) as peer:
        settings = {"host_name": "a", "peers": (peer,), "peer_token": TOKEN, "writable_paths": (str(log.parent),)}
        async with engine(*sources(log), **settings) as host:
            for name in ("look", "made", "linger"):
                await host.wait_ready(name)
            whole, alone = await share(host, rounds)
            late = [1e3 * (seconds - DELAY_S) for seconds in await reach(host, log, cancels)]
    words = f"a line of {DELAY_S * 1e3:g} ms each way and {MBIT:g} Mbit/s"
    report.add("hosts_line_share", f"{words}: share of it that 64 MB tensors use", whole, at_least=0.9)
    question = "the same with one tensor at a time, less an empty call"
    report.add("hosts_line_share_alone", question, statistics.median(alone), samples=alone)
    middle = f"median {statistics.median(late):.2f} ms, {len(late)} found running" if late else ""
    question = f"the same line full: cancel to end over there, less {DELAY_S * 1e3:g} ms, p99 ({middle})"
    slowest = percentile(late, 99) if late else None
    report.add("hosts_line_reach_ms", question, slowest, unit="ms", at_most=10, samples=late, missing="none ran")
