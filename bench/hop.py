"""How long does one hop take: a value from one stage to the next, each in a process of its own?

A chain of pass-through stages is invoked over and over from the host's own process (no gRPC). `hop` is the median time
of an invocation over the number of stages, so the way in and out is part of it. Two settings: all processes pinned to
one core, and free. The 64 MB tensor lives in the arena of the first stage and is handed on by reference.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import uvloop

from bench.engine import call, document, engine, pin, stage
from bench.report import Report, arguments, finish
from dataflower.host.runtime import Runtime

CHAINS = (1, 2, 4, 8)
SIZES = {"1KB": 1024, "64MB": 64 * 1024 * 1024}


def chain(stages: int) -> str:
    """`stages` pass-through stages."""
    lines = [stage(f"s{i}", "forward", f"{{x: {f's{i - 1}.out' if i else 'inputs.x'}}}") for i in range(stages)]
    return document(f"chain{stages}", "{x: {type: any}}", "\n".join(lines), f"{{y: s{stages - 1}.out}}")


def reference_chain() -> str:
    """A stage that makes a tensor, four that hand it on, one that looks at its size."""
    lines = [stage("make", "blank", "{trigger: inputs.n, nbytes: inputs.n}")]
    lines += [stage(f"s{i}", "forward", f"{{x: {f's{i - 1}.out' if i else 'make.out'}}}") for i in range(4)]
    lines += [stage("end", "length", "{x: s3.out}")]
    return document("by_reference", "{n: {type: int}}", "\n".join(lines), "{size: end.out}")


async def microseconds(host: Runtime, name: str, inputs: Mapping[str, Any], rounds: int, hops: int) -> list[float]:
    """Time per hop of `rounds` warm invocations."""
    for _ in range(max(3, rounds // 10)):
        await call(host, name, inputs)
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        await call(host, name, inputs)
        samples.append((time.perf_counter() - start) / hops * 1e6)
    return samples


async def measure(report: Report, suffix: str, rounds: int, at_most: float) -> None:
    """All figures of one setting."""
    sources = [chain(n) for n in CHAINS]
    async with engine(*sources, reference_chain()) as host:
        payload = os.urandom(SIZES["1KB"])
        for n in CHAINS:
            samples = await microseconds(host, f"chain{n}", {"x": payload}, rounds, n)
            key = f"hop_us_1KB{suffix}" if n == 4 else f"hop_us_1KB_chain{n}{suffix}"
            limit = at_most if n == 4 else None
            question = f"chain of {n}, 1 KB, per hop{' (free)' if suffix else ' (pinned)'}"
            report.add(key, question, statistics.median(samples), unit="us", at_most=limit, samples=samples)
        by_size: dict[str, list[float]] = {size: [] for size in SIZES}
        for _ in range(5):  # interleaved: both sizes see the same machine
            for size, nbytes in SIZES.items():
                by_size[size] += await microseconds(host, "by_reference", {"n": nbytes}, rounds // 10, 6)
        ratio = statistics.median(by_size["64MB"]) / statistics.median(by_size["1KB"])
        question = f"hop at 64 MB by reference over 1 KB{' (free)' if suffix else ' (pinned)'}"
        report.add(f"hop_64MB_over_1KB{suffix}", question, ratio, at_most=None if suffix else 2)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    rounds = 200 if options.quick else 3000
    report = Report("hop")
    allowed = pin(0)
    uvloop.run(measure(report, "", rounds, 80))
    os.sched_setaffinity(0, allowed)
    uvloop.run(measure(report, "_free", rounds, 160))
    finish(report, options)


if __name__ == "__main__":
    main()
