"""How many requests a second go through three stages, 1 KB each, with 64 in flight?

Ours through the engine in this process (no gRPC), the rivals from a process of their own, in turns. A turn is a quarter
of warm-up and then the time that counts.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from argparse import Namespace

import uvloop

from bench.engine import call, engine
from bench.hop import chain
from bench.report import Report, arguments, finish
from bench.rivals import field
from dataflower.host.runtime import Runtime

STAGES, NBYTES, IN_FLIGHT = 3, 1024, 64
RIVALS = {
    "rayserve": ("ray", "serve_throughput", "Ray Serve, handles", 10.0),
    "actors": ("ray", "actors_throughput", "Ray actors", None),
    "graph": ("ray", "graph_throughput", "Ray compiled graph", None),
    "mosec": ("mosec", "throughput", "mosec, raw codec", None),
}


async def ours(host: Runtime, seconds: float) -> float:
    """Requests per second."""
    payload = {"x": os.urandom(NBYTES)}
    done, stop = 0, False

    async def client() -> None:
        nonlocal done
        while not stop:
            await call(host, f"chain{STAGES}", payload)
            done += 1

    clients = [asyncio.create_task(client()) for _ in range(IN_FLIGHT)]
    await asyncio.sleep(seconds / 4)
    before, start = done, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (done - before) / (time.perf_counter() - start)
    stop = True
    await asyncio.gather(*clients)
    return rate


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    turns, seconds = (1, 1.0) if options.quick else (5, 4.0)
    rates: list[float] = []
    with field(not options.alone) as rivals:
        rivals.add("ray", "ray_all")
        rivals.add("mosec", "mosec_chain")
        async with engine(chain(STAGES)) as host:
            await ours(host, 0.2)
            for _ in range(turns):
                rates.append(await ours(host, seconds))
                for key, (name, do, _, _) in RIVALS.items():
                    request = {"stages": STAGES, "nbytes": NBYTES, "in_flight": IN_FLIGHT, "seconds": seconds}
                    rivals.measure(key, name, do, **request)
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
