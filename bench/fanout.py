"""How long does it take to spread 64 KB to eight and bring the results together?

One stage, eight that read its output, one that reads all of theirs: `fanout_ms`. The same with a fan-out over a stream
of eight items (`each`, then `gather`), where the engine finds out how many there are: `fanout_each_ms`.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace

import numpy as np
import uvloop

from bench.engine import call, document, engine, stage
from bench.report import Report, arguments, finish
from bench.rivals import field
from dataflower.host.runtime import Runtime

WIDTH, NBYTES = 8, 64 * 1024
LETTERS = "abcdefgh"
REPLICAS = f", scaling: {{min_replicas: {WIDTH}, max_replicas: {WIDTH}}}"


def fixed() -> str:
    """1-8-1 with eight stages in the middle."""
    lines = [stage("first", "forward", "{x: inputs.x}")]
    lines += [stage(f"s{letter}", "forward", "{x: first.out}") for letter in LETTERS]
    lines += [stage("last", "join", "{" + ", ".join(f"{letter}: s{letter}.out" for letter in LETTERS) + "}")]
    return document("fixed", "{x: {type: any}}", "\n".join(lines), "{y: last.out}")


def each() -> str:
    """1-8-1 with one stage of eight containers in the middle."""
    lines = [
        stage("first", "scatter", "{x: inputs.x, width: inputs.width}"),
        stage("middle", "forward", "{x: {each: first.item}}", REPLICAS),
        stage("last", "total", "{items: {gather: middle.out}}"),
    ]
    return document("each", "{x: {type: any}, width: {type: int}}", "\n".join(lines), "{y: last.out}")


async def milliseconds(host: Runtime, name: str, rounds: int) -> list[float]:
    """Durations of warm calls."""
    x = np.ones(NBYTES, np.uint8)
    inputs = {"x": x} if name == "fixed" else {"x": x, "width": WIDTH}
    samples = []
    for number in range(rounds + rounds // 4):
        start = time.perf_counter()
        result = await call(host, name, inputs)
        if number >= rounds // 4:
            samples.append((time.perf_counter() - start) * 1e3)
        assert result["y"] == WIDTH * NBYTES
    return samples


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    turns, rounds = (1, 100) if options.quick else (5, 400)
    ours: dict[str, list[float]] = {"fixed": [], "each": []}
    with field(not options.alone) as rivals:
        rivals.add("ray", "ray_all")
        async with engine(fixed(), each()) as host:
            await host.wait_ready("each")
            for _ in range(turns):
                for name in ours:
                    ours[name] += await milliseconds(host, name, rounds)
                request = {"width": WIDTH, "nbytes": NBYTES, "rounds": rounds // 4, "warm": rounds // 10}
                rivals.measure("actors", "ray", "actors_fanout", **request)
        fixed_ms, each_ms = statistics.median(ours["fixed"]), statistics.median(ours["each"])
        words = "1-8-1, 64 KB"
        report.add("fanout_ms", words, fixed_ms, unit="ms", at_most=1.0, samples=ours["fixed"])
        report.add("fanout_each_ms", f"{words}, over a stream", each_ms, unit="ms", samples=ours["each"])
        theirs, samples, reason = rivals.median("actors"), rivals.samples("actors", 1e3), rivals.reason("actors")
        value = theirs * 1e3 if theirs else None
        report.add("fanout_ms_actors", f"{words}, Ray actors", value, unit="ms", samples=samples, missing=reason)
        ratio = value / fixed_ms if value else None
        report.add("fanout_vs_ray", "Ray actors over ours", ratio, at_least=10, missing=reason)
        report.rivals |= rivals.versions


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("fanout")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
