"""Does a stage start on the first chunk? Three stages of 20 ms a chunk, eight chunks: 480 ms whole, 200 ms ideal."""

from __future__ import annotations

import statistics
import time

import uvloop

from bench.engine import call, document, engine, stage
from bench.report import Report, arguments, finish

CHUNKS, SECONDS, STAGES = 8, 0.02, 3
IDEAL_S = (CHUNKS + STAGES - 1) * SECONDS


def workflow() -> str:
    """A producer and two stages that read its stream and stream on."""
    lines = [
        stage("a", "produce", "{chunks: inputs.chunks, seconds: inputs.seconds}"),
        stage("b", "work", "{chunk: a.chunk, seconds: inputs.seconds}"),
        stage("c", "work", "{chunk: b.chunk, seconds: inputs.seconds}"),
    ]
    return document("overlap", "{chunks: {type: int}, seconds: {type: float}}", "\n".join(lines), "{out: c.chunk}")


async def measure(rounds: int) -> list[float]:
    """Ratios over the ideal."""
    inputs = {"chunks": CHUNKS, "seconds": SECONDS}
    ratios = []
    async with engine(workflow()) as host:
        await call(host, "overlap", inputs)
        for _ in range(rounds):
            start = time.perf_counter()
            result = await call(host, "overlap", inputs)
            ratios.append((time.perf_counter() - start) / IDEAL_S)
            assert result["out"] == list(range(CHUNKS))
    return ratios


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    ratios = uvloop.run(measure(10 if options.quick else 60))
    report = Report("overlap")
    report.add(
        "overlap_ratio",
        f"{STAGES} stages x {SECONDS * 1e3:.0f} ms x {CHUNKS} chunks over the ideal {IDEAL_S * 1e3:.0f} ms",
        statistics.median(ratios),
        at_most=1.15,
        samples=ratios,
    )
    finish(report, options)


if __name__ == "__main__":
    main()
