"""What does a new 64 MB output cost, over a plain numpy write of the same bytes into warm memory?

A stage writes the output, the next one looks at both of its ends. Time is that of the whole invocation, as its caller
sees it. `write_64MB_ratio`: written straight into the arena (`context.empty`); `copied`: the function returns an array
of its own, which has to be copied there (at best twice the plain write). The plain write runs in the same container,
in turns with the others. `alone`: the write into the arena by itself; `rest_ms`: what the invocation took beyond it;
`spun_rest_ms`, `slept_rest_ms`: the same where the function does not write, but computes in a loop of Python or sleeps
for as long, which tells what of the rest is the fault of the write, and what of the time that passes.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace

import uvloop

from bench.engine import call, document, engine, stage
from bench.report import Report, arguments, finish
from dataflower.host.runtime import Runtime

MB = 1024 * 1024
SIZES = (1, 16, 64)
WAYS = {"arena": "numpy into the arena", "torch": "torch into the arena", "copied": "an array of its own, copied"}
IDLE = {"spun": "computing in Python", "slept": "asleep"}


def workflow() -> str:
    """A writer and a reader; and the writer alone, for the plain write."""
    one = ", scaling: {min_replicas: 1, max_replicas: 1}, params: {}"
    lines = [
        stage("make", "Write", "{nbytes: inputs.nbytes, way: inputs.way}", one),
        stage("look", "seen_or_seconds", "{x: make.out}"),
    ]
    return document("write", "{nbytes: {type: int}, way: {type: string}}", "\n".join(lines), "{y: look.out}")


async def seconds(host: Runtime, way: str, nbytes: int) -> float:
    """Of one invocation; of a plain write, and of the last one into the arena (`took`), of the write alone."""
    start = time.perf_counter()
    result = await call(host, "write", {"nbytes": nbytes, "way": way})
    return float(result["y"]) if way in ("plain", "took") else time.perf_counter() - start


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    rounds = 12 if options.quick else 100
    async with engine(workflow()) as host:
        for size in SIZES:
            nbytes = size * MB
            for way in ("plain", *WAYS):
                for _ in range(3):
                    await seconds(host, way, nbytes)
            samples: dict[str, list[float]] = {way: [] for way in ("plain", *WAYS, "took", *IDLE)}
            for _ in range(rounds):
                for way, found in samples.items():
                    found.append(await seconds(host, way, nbytes) * 1e3)
            plain = statistics.median(samples["plain"])
            report.add(f"plain_{size}MB_ms", f"numpy write of {size} MB", plain, unit="ms", samples=samples["plain"])
            for way, words in WAYS.items():
                key = f"write_{size}MB_ratio" if way == "arena" else f"write_{size}MB_{way}_ratio"
                at_most = 1.15 if key == "write_64MB_ratio" else None
                ratios = [sample / plain for sample in samples[way]]
                question = f"{size} MB, {words}, over that"
                report.add(key, question, statistics.median(ratios), at_most=at_most, samples=ratios)
            alone = [sample / plain for sample in samples["took"]]
            rest = [whole - own for whole, own in zip(samples["arena"], samples["took"], strict=True)]
            question = f"{size} MB, numpy into the arena, the write alone, over that"
            report.add(f"write_{size}MB_alone_ratio", question, statistics.median(alone), samples=alone)
            question = f"{size} MB, numpy into the arena, the rest of the invocation"
            report.add(f"write_{size}MB_rest_ms", question, statistics.median(rest), unit="ms", samples=rest)
            for way, words in IDLE.items():
                rest = [whole - own for whole, own in zip(samples[way], samples["took"], strict=True)]
                question = f"the same, {words} for as long instead"
                key = f"write_{size}MB_{way}_rest_ms"
                report.add(key, question, statistics.median(rest), unit="ms", samples=rest)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("write")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
