"""Does dataflow execution beat control flow on the DataFlower paper's workflows: at the tail, and at the peak?

The same functions in the same containers, led and fed in three ways, in turns: by this engine; by a central state
machine with every intermediate result in a Redis on another machine (egress limited as in the paper, behind a line of
50 MB/s, `--store-line`); and by
worker-side scheduling with results in a Redis on this machine (no limit). Open loop: requests at constant distance,
latency from the moment at which they were due. Burst: ten times as many, for as long. Closed loop: the best throughput
over numbers of clients, once each has had an answer. `p99_cut` is 1 - ours / theirs; `best` and `least` are over
workflows, loads and baselines.

On two hosts (`--hosts 2`, the default but for `--quick`) the steps of the paper's worker 1 run on another host, in a
network namespace of its own, and each container may send to the other host what the paper allows it; worker-side
scheduling then sends what is read over there to a store on another machine, at the same rate. On three (`--hosts 3`)
those of its worker 2 have a host of their own, too.

Times and bytes of the paper are scaled alike (`--scale`), and rates accordingly: about 35 minutes at the default, three
hours at 1. See bench/baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import redis
import uvloop

from bench.baseline import store
from bench.baseline.orchestrator import Kind, Orchestrator
from bench.baseline.workloads import BENCHMARKS, Benchmark
from bench.engine import call, engine
from bench.report import Report, finish, percentile
from bench.second_host import NAME, THIRD, TOKEN, second_host
from dataflower.testing.container_driver import ZygoteDriver

Invoke = Callable[[], Awaitable[object]]
OURS = "dataflower"
BURST = 10
BURST_RPM = 10.0
ROUNDS = 2
"""Of answers for each client, at least, in a closed loop."""


class Shape:
    """A load: when each request is due, in seconds from the start."""

    def __init__(self, name: str, due: list[float]) -> None:
        self.name, self.due = name, due


def shapes(benchmark: Benchmark, scale: float, count: int) -> list[Shape]:
    """The loads of a workflow: evenly spaced; for word count also a burst, after as long a time of quiet."""
    gap = 60 / benchmark.rpm * scale
    found = [Shape("open", [i * gap for i in range(count)])]
    if benchmark.name == "wordcount":
        gap = 60 / BURST_RPM * scale
        calm = [i * gap for i in range(count // BURST + 1)]
        found.append(Shape("burst", calm + [calm[-1] + gap + i * gap / BURST for i in range(count)]))
    return found


async def open_loop(invoke: Invoke, due: list[float]) -> list[float]:
    """Latencies in seconds, from when each request was due."""
    latencies: list[float] = []
    start = time.perf_counter()

    async def one(at: float) -> None:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        await invoke()
        latencies.append(time.perf_counter() - start - at)

    async with asyncio.TaskGroup() as requests:
        for at in due:
            requests.create_task(one(at))
    return latencies


async def closed_loop(invoke: Invoke, clients: int, seconds: float) -> float:
    """Completions per second with so many clients, each of which asks again as soon as it has its answer.

    As in the paper the beginning does not count: until every client has had an answer. From there on for `seconds`, and
    for at least `ROUNDS` answers for each client, since those who began together go on in waves.
    """
    done: list[float] = []
    waiting = clients  # for their first answers
    end = math.inf

    def is_over() -> bool:
        return not waiting and time.perf_counter() >= end and len(done) > ROUNDS * clients

    async def client() -> None:
        nonlocal waiting, end
        await invoke()
        waiting -= 1
        if not waiting:
            done.append(time.perf_counter())
            end = done[0] + seconds
        while not is_over():
            await invoke()
            if not waiting and not is_over():
                done.append(time.perf_counter())

    await asyncio.gather(*(client() for _ in range(clients)))
    return (len(done) - 1) / (done[-1] - done[0])


class Results:
    """What was measured: latencies by (workflow, load, system), throughputs by (workflow, system)."""

    def __init__(self) -> None:
        self.latencies: dict[tuple[str, str, str], list[float]] = {}
        self.peaks: dict[tuple[str, str], float] = {}

    def cuts(self) -> list[float]:
        """Of the p99, for every workflow, load and baseline."""
        found = []
        for (workflow, load, system), samples in self.latencies.items():
            if system != OURS:
                ours = percentile(self.latencies[workflow, load, OURS], 99)
                found.append(1 - ours / percentile(samples, 99))
        return found

    def gains(self) -> list[float]:
        """In peak throughput, for every workflow and baseline."""
        return [self.peaks[workflow, OURS] / peak for (workflow, system), peak in self.peaks.items() if system != OURS]

    def report(self, report: Report) -> None:
        """All rows, those that are asked for last."""
        for (workflow, load, system), samples in self.latencies.items():
            milliseconds = [sample * 1e3 for sample in samples]
            key = f"p99_ms_{workflow}_{load}_{system}"
            words = f"{workflow}, {load}, {system}: p99"
            report.add(key, words, percentile(milliseconds, 99), unit="ms", samples=milliseconds)
        for (workflow, system), peak in self.peaks.items():
            report.add(f"peak_{workflow}_{system}", f"{workflow}, {system}: peak throughput", peak * 60, unit="/min")


async def measure(
    benchmark: Benchmark, zygote: ZygoteDriver | None, results: Results, options: argparse.Namespace
) -> None:
    """One workflow in all systems; in ours alone without a zygote for the others."""
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"cpus": 64, "max_containers": 256}
        if options.others:
            peers = tuple(other.peer for other in options.others.values())
            settings |= {"host_name": "a", "peers": peers, "peer_token": TOKEN}
        source = benchmark.workflow(options.scale, tuple(options.others))
        host = await stack.enter_async_context(engine(source, **settings))
        systems: dict[str, Invoke] = {OURS: lambda: call(host, benchmark.name, {"request": "1"})}
        for kind in Kind if zygote is not None else ():
            made = Orchestrator(kind, benchmark, zygote, options.stores, options.scale, hosts=options.hosts)
            systems[kind.value] = (await stack.enter_async_context(made)).invoke
        await host.wait_ready(benchmark.name)
        for invoke in systems.values():
            for _ in range(2):
                await invoke()
        for shape in shapes(benchmark, options.scale, options.requests):
            for due in turns(shape.due, options.turns):
                for system, invoke in systems.items():
                    samples = results.latencies.setdefault((benchmark.name, shape.name, system), [])
                    samples += await open_loop(invoke, due)
        longest = sum(step.seconds for step in benchmark.steps) * options.scale
        for clients in benchmark.clients[-1:] if options.quick else benchmark.clients:
            for system, invoke in systems.items():
                rate = await closed_loop(invoke, clients, longest * options.closed)
                key = benchmark.name, system
                results.peaks[key] = max(rate, results.peaks.get(key, 0.0))


def turns(due: list[float], count: int) -> list[list[float]]:
    """The load in so many pieces, each starting at 0, so that the systems take turns."""
    size = -(-len(due) // count)
    return [[at - due[i] for at in due[i : i + size]] for i in range(0, len(due), size)]


async def run(report: Report, options: argparse.Namespace) -> None:
    """All figures."""
    results = Results()
    reason = "" if store.binary() else store.MISSING
    with ExitStack() as stack:
        zygote = stack.enter_context(ZygoteDriver(preload=("numpy", "redis"))) if not reason else None
        names = (NAME, THIRD)[: options.hosts - 1]
        options.others = {name: stack.enter_context(second_host(name=name)) for name in names}
        for name, other in options.others.items():
            print(f"another host, {name}: {other.words}")
        if zygote is not None:
            near = stack.enter_context(store.store(local=True))
            far = stack.enter_context(store.store(local=False, line=options.store_line))
            options.stores = (near, far)
            print(f"for the baselines: {near.words}, {far.words}")
        for benchmark in [BENCHMARKS[name] for name in options.only or BENCHMARKS]:
            await measure(benchmark.times(options.containers), zygote, results, options)
    results.report(report)
    cuts, gains = results.cuts(), results.gains()
    best, least, gain = (max(cuts), min(cuts), max(gains)) if not reason else (None, None, None)
    report.add("p99_cut_best", "largest cut of the p99", best, at_least=0.354, missing=reason)
    report.add("p99_cut_least", "least cut of the p99", least, at_least=0, missing=reason)
    report.add("peak_gain_best", "largest gain in peak throughput", gain, at_least=3.8, missing=reason)


def arguments() -> argparse.Namespace:
    """The usual ones, and how much is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the paper's times and bytes, few requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--scale", type=float, default=0.2, help="of the paper's times and bytes (default %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="in each open loop (default %(default)s)")
    parser.add_argument("--only", action="append", choices=[*BENCHMARKS], help="this workflow (may be repeated)")
    parser.add_argument(
        "--store-line", default=store.LINE, help="to the store on another machine; '': no limit (default %(default)s)"
    )
    parser.add_argument("--hosts", type=int, choices=(1, 2, 3), help="default 2, with --quick 1")
    parser.add_argument("--containers", type=int, default=4, help="factor for containers and clients; --quick: 1")
    options = parser.parse_args()
    options.hosts = options.hosts or (1 if options.quick else 2)
    options.turns, options.closed = 4, 6
    if options.quick:
        options.scale, options.requests, options.turns, options.closed, options.containers = 0.02, 8, 1, 2, 1
    return options


def main() -> None:
    """Run the benchmark."""
    options = arguments()
    report = Report("dataflow")
    report.rivals["redis (client)"] = redis.__version__
    uvloop.run(run(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
