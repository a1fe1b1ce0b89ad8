"""Does it pay to copy a returned array beside the function, while the container computes the next task?

One container runs tasks that compute for some milliseconds in numpy and return a new array; as many callers as it takes
for a task to wait at all times. `own`: nobody else holds the array, so the data unit's thread copies it into the arena
while the next task computes. `kept`: the function keeps a name for it until the next call, so that it has to be copied
before. Requests per second of the first over those of the second, in turns. `alone`: one caller, one task at a time,
where nothing is to be won: what the first takes over the second.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from argparse import Namespace

import uvloop

from bench.engine import call, document, engine, stage
from bench.report import Report, arguments, finish
from dataflower.host.runtime import Runtime

MB = 1024 * 1024
COMPUTE_MS = (0, 2, 5, 10, 20, 50)
SIZES_MB = (8, 16, 32)
WAYS = ("own", "kept")
CALLERS = 3
ITEMS = 10
INPUTS = "{{{}nbytes: {{type: int}}, seconds: {{type: float}}, way: {{type: string}}}}"


def workflow() -> str:
    """A stage with one container, and one that looks at what it returned."""
    one = ", scaling: {min_replicas: 1, max_replicas: 1}, params: {}"
    lines = [
        stage("make", "Fresh", "{nbytes: inputs.nbytes, seconds: inputs.seconds, way: inputs.way}", one),
        stage("look", "seen", "{x: make.out}", one.replace(", params: {}", "")),
    ]
    return document("fresh", INPUTS.format(""), "\n".join(lines), "{y: look.out}")


def streaming() -> str:
    """The same as a stream."""
    given = "{count: inputs.count, nbytes: inputs.nbytes, seconds: inputs.seconds, way: inputs.way}"
    lines = [stage("make", "fresh_items", given), stage("look", "seen_items", "{items: make.item}")]
    return document("items", INPUTS.format("count: {type: int}, "), "\n".join(lines), "{y: look.out}")


async def rate(host: Runtime, way: str, nbytes: int, seconds: float, *, callers: int, calls: int) -> float:
    """Requests per second."""

    async def ask() -> None:
        for _ in range(calls):
            await call(host, "fresh", {"nbytes": nbytes, "seconds": seconds, "way": way})

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(callers)))
    return callers * calls / (time.perf_counter() - start)


async def in_turns(host: Runtime, nbytes: int, seconds: float, *, callers: int, rounds: int) -> list[float]:
    """What the first way does over the second, once for each round."""
    calls = max(3, round(0.01 * rounds / (seconds + nbytes / 6e9) / callers))
    ratios = []
    for number in range(rounds + 1):
        order = WAYS if number % 2 else WAYS[::-1]
        found = {way: await rate(host, way, nbytes, seconds, callers=callers, calls=calls) for way in order}
        ratios.append(found["own"] / found["kept"])
    return ratios[1:]  # the first makes the pages


async def streams(host: Runtime, nbytes: int, seconds: float, *, rounds: int) -> list[float]:
    """How much sooner a stream is over."""
    ratios = []
    for number in range(rounds + 1):
        took = {}
        for way in WAYS if number % 2 else WAYS[::-1]:
            start = time.perf_counter()
            await call(host, "items", {"count": ITEMS, "nbytes": nbytes, "seconds": seconds, "way": way})
            took[way] = time.perf_counter() - start
        ratios.append(took["kept"] / took["own"])
    return ratios[1:]


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    rounds = 1 if options.quick else 15
    async with engine(workflow(), streaming()) as host:
        for compute in COMPUTE_MS:
            ratios = await in_turns(host, 64 * MB, compute / 1e3, callers=CALLERS, rounds=rounds)
            question = (
                f"64 MB after {compute} ms of computing, copied beside the next task, requests/s over copied before"
            )
            report.add(f"handover_64MB_{compute}ms_gain", question, statistics.median(ratios), samples=ratios)
        for size in SIZES_MB:
            ratios = await in_turns(host, size * MB, 0.002, callers=CALLERS, rounds=rounds)
            question = f"the same, {size} MB after 2 ms"
            report.add(f"handover_{size}MB_2ms_gain", question, statistics.median(ratios), samples=ratios)
        ratios = await streams(host, 64 * MB, 0.01, rounds=rounds)
        question = f"a stream of {ITEMS} items of 64 MB after 10 ms each: items per second over items with a name"
        report.add("handover_items_gain", question, statistics.median(ratios), samples=ratios)
        ratios = await in_turns(host, 64 * MB, 0.005, callers=1, rounds=rounds)
        question = "64 MB after 5 ms, one task at a time: duration over that of copying before"
        report.add("handover_alone_ratio", question, 1 / statistics.median(ratios), samples=ratios)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("handover")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
