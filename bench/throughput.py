"""How many requests a second go through three stages, 1 KB each, with 64 in flight?

Ours through the engine in this process (no gRPC), the rivals from a process of their own, in turns. A turn is a quarter
of warm-up and then the time that counts. And how fair the host is to two workflows: with as many in flight of each,
tasks a second of the one over those of the other; with one in flight beside them, how long that takes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Mapping

import uvloop

from bench.engine import call, engine
from bench.hop import chain
from bench.report import Report, arguments, finish
from bench.rivals import field
from dataflower.host.runtime import Runtime

STAGES, NBYTES, IN_FLIGHT = 3, 1024, 64
OTHER = 2
"""Stages of the workflow beside."""
ALONE = {STAGES: IN_FLIGHT}
RIVALS = {
    "rayserve": ("ray", "serve_throughput", "Ray Serve, handles", 10.0),
    "actors": ("ray", "actors_throughput", "Ray actors", None),
    "graph": ("ray", "graph_throughput", "Ray compiled graph", None),
    "mosec": ("mosec", "throughput", "mosec, raw codec", None),
}


async def ours(host: Runtime, seconds: float, in_flight: Mapping[int, int] = ALONE) -> dict[int, list[float]]:
    """Milliseconds of each request that ended within `seconds`, by stages of its chain; `in_flight`: of each chain."""
    payload = {"x": os.urandom(NBYTES)}
    took: dict[int, list[float]] = {stages: [] for stages in in_flight}
    stop = False

    async def client(stages: int) -> None:
        while not stop:
            start = time.perf_counter()
            await call(host, f"chain{stages}", payload)
            took[stages].append((time.perf_counter() - start) * 1e3)

    clients = [asyncio.create_task(client(stages)) for stages, count in in_flight.items() for _ in range(count)]
    await asyncio.sleep(seconds / 4)
    before = {stages: len(samples) for stages, samples in took.items()}
    await asyncio.sleep(seconds)
    found = {stages: samples[before[stages] :] for stages, samples in took.items()}
    stop = True
    await asyncio.gather(*clients)
    return found


async def fairness(report: Report, host: Runtime, turns: int, seconds: float) -> None:
    """Two workflows on one host."""
    shares, alone, beside = [], [], []
    for _ in range(turns):
        both = await ours(host, seconds, {STAGES: IN_FLIGHT, OTHER: IN_FLIGHT})
        tasks = [stages * len(samples) for stages, samples in both.items()]
        shares.append(min(tasks) / max(tasks))
        alone += (await ours(host, seconds / 2, {OTHER: 1}))[OTHER]
        beside += (await ours(host, seconds, {STAGES: IN_FLIGHT, OTHER: 1}))[OTHER]
    words = f"two workflows, {IN_FLIGHT} in flight of each: tasks a second of the one over the other's"
    report.add("fair_share", words, statistics.median(shares), samples=shares)
    for key, what, samples in (("alone", "nobody", alone), ("beside", f"{IN_FLIGHT} of another workflow", beside)):
        words = f"{OTHER} stages, 1 KB, one in flight beside {what}"
        report.add(f"{key}_ms", words, statistics.median(samples), unit="ms", samples=samples)


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    turns, seconds = (1, 1.0) if options.quick else (5, 4.0)
    rates: list[float] = []
    with field(not options.alone) as rivals:
        rivals.add("ray", "ray_all")
        rivals.add("mosec", "mosec_chain")
        async with engine(chain(STAGES), chain(OTHER)) as host:
            await ours(host, 0.2)
            for _ in range(turns):
                rates.append(len((await ours(host, seconds))[STAGES]) / seconds)
                for key, (name, do, _, _) in RIVALS.items():
                    request = {"stages": STAGES, "nbytes": NBYTES, "in_flight": IN_FLIGHT, "seconds": seconds}
                    rivals.measure(key, name, do, **request)
            await fairness(report, host, turns, seconds / 2)
        rps = statistics.median(rates)
        report.add("rps_1KB", "3 stages, 1 KB, 64 in flight", rps, unit="/s", at_least=10_000, samples=rates)
        for key, (_, _, words, target) in RIVALS.items():
            theirs, reason = rivals.median(key), rivals.reason(key)
            report.add(f"rps_{key}", words, theirs, unit="/s", samples=rivals.samples(key), missing=reason)
            ratio = rps / theirs if theirs else None
            report.add(f"rps_vs_{key}", f"ours over {words}", ratio, at_least=target, missing=reason)
        report.rivals |= rivals.versions


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("throughput")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
