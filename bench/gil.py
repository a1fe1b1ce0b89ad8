"""Does a function that computes in pure Python hold up what it handed over before?

A generator yields a token and then spins for 200 ms without letting the interpreter go; the next stage says how old the
token is when it has it (CLOCK_MONOTONIC is one clock for all processes). `gil_delay_ms` is the p99 of that, for small
tokens; with a megabyte to copy, too; and with a producer that sleeps meanwhile (`gil_delay_slept_ms`), which tells how
much of it is the machine's own. `gil_floor_ms`: the same hand-over, spinning, between three processes of plain Python
with sockets, the one in the middle passing it on, in turns with ours: what the kernel takes where there is no engine.
`gil_next_ms`: two calls for one container, the first spins: from its end to the
start of the second, whose inputs could be made ready meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
from argparse import Namespace
from itertools import pairwise

import numpy as np
import uvloop

from bench.engine import call, document, engine, stage
from bench.report import Report, arguments, finish, percentile
from bench.rivals import Field, field

SPIN_S, TOKENS = 0.2, 10
CASES = {"": (16, False), "_1MB": (1024 * 1024, False), "_slept": (16, True)}
"""Bytes of a token, and whether the producer sleeps instead of spinning."""
ONE = ", scaling: {min_replicas: 1, max_replicas: 1}"


def workflows() -> list[str]:
    """A spinning producer and its consumer; and one stage with one container."""
    lines = [
        stage(
            "spin",
            "spin",
            "{tokens: inputs.tokens, seconds: inputs.seconds, nbytes: inputs.nbytes, sleeps: inputs.sleeps}",
        ),
        stage("delays", "delays", "{token: spin.token}"),
    ]
    inputs = "{tokens: {type: int}, seconds: {type: float}, nbytes: {type: int}, sleeps: {type: bool, default: false}}"
    spin = document("spin", inputs, "\n".join(lines), "{delay: delays.delay}")
    busy = stage("busy", "busy", "{x: inputs.x, seconds: inputs.seconds}", ONE)
    return [spin, document("busy", "{x: {type: any}, seconds: {type: float}}", busy, "{times: busy.out}")]


async def measure(report: Report, options: Namespace, rivals: Field) -> None:
    """All figures."""
    turns = 1 if options.quick else 20
    delays: dict[str, list[float]] = {suffix: [] for suffix in CASES}
    gaps: list[float] = []
    async with engine(*workflows()) as host:
        inputs = {"tokens": 2, "seconds": 0.0, "nbytes": 16}
        await call(host, "spin", inputs)
        x = np.ones(1024 * 1024, np.uint8)
        for _ in range(turns):
            for suffix, (nbytes, sleeps) in CASES.items():
                inputs = {"tokens": TOKENS, "seconds": SPIN_S, "nbytes": nbytes, "sleeps": sleeps}
                result = await call(host, "spin", inputs)
                delays[suffix] += [delay * 1e3 for delay in result["delay"]]
            rivals.measure("floor", "floor", "spun", tokens=TOKENS, seconds=SPIN_S)
            calls = [call(host, "busy", {"x": x, "seconds": SPIN_S / 4}) for _ in range(TOKENS)]
            times = sorted((result["times"] for result in await asyncio.gather(*calls)), key=lambda t: t["begin"])
            gaps += [(second["begin"] - first["end"]) * 1e3 for first, second in pairwise(times)]
    for suffix, samples in delays.items():
        nbytes, sleeps = CASES[suffix]
        size = "1 MB" if nbytes > 16 else "16 bytes"
        then = "asleep" if sleeps else "of pure Python"
        question = f"token of {size} handed over, then {SPIN_S * 1e3:.0f} ms {then}: delay, p99"
        limit = None if suffix else 2.0
        report.add(
            f"gil_delay{suffix}_ms", question, percentile(samples, 99), unit="ms", at_most=limit, samples=samples
        )
    floor = rivals.samples("floor", 1e3)
    question = f"the same between plain processes, then {SPIN_S * 1e3:.0f} ms of pure Python: delay, p99"
    value = percentile(floor, 99) if floor else None
    report.add("gil_floor_ms", question, value, unit="ms", samples=floor, missing=rivals.reason("floor"))
    question = "from the end of a spinning task to the start of the next, 1 MB of input"
    report.add("gil_next_ms", question, statistics.median(gaps), unit="ms", samples=gaps)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("gil")
    with field() as rivals:
        rivals.add("floor", "floor", "relay", ours=True)
        uvloop.run(measure(report, options, rivals))
    finish(report, options)


if __name__ == "__main__":
    main()
