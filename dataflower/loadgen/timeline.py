"""The run in stretches of equal length: what was offered, what came of it, and the containers beside it."""

from __future__ import annotations

from collections.abc import Sequence

from dataflower.loadgen.measure import Measurement, Picture
from dataflower.loadgen.messages import REFUSED, Sample
from dataflower.loadgen.report import Second
from dataflower.loadgen.statistics import percentile

STRETCHES = 120
"""At most so many."""


def timeline(found: Measurement) -> tuple[Second, ...]:
    """Of the whole run, warm-up too; a request belongs to the stretch of its scheduled start."""
    end = max([found.schedule.end_s, *(s.scheduled for s in found.samples)])
    length = max(0.5, _rounded(end / STRETCHES))
    number = max(1, -(-int(end * 1000) // int(length * 1000)))
    samples: list[list[Sample]] = [[] for _ in range(number)]
    for sample in found.samples:
        samples[min(number - 1, int(sample.scheduled / length))].append(sample)
    pictures: list[list[Picture]] = [[] for _ in range(number)]
    for picture in found.pictures:
        if picture.at < end:
            pictures[max(0, min(number - 1, int(picture.at / length)))].append(picture)
    return tuple(_second(i * length, length, samples[i], pictures[i]) for i in range(number))


def _rounded(length: float) -> float:
    """The next larger of 0.5, 1, 2, 5, 10, 20, 50, ... seconds."""
    for power in range(6):
        for digit in (0.5, 1.0, 2.0):
            if length <= digit * 10**power:
                return float(digit * 10**power)
    return length


def _second(at: float, length: float, samples: Sequence[Sample], pictures: Sequence[Picture]) -> Second:
    latencies = [s.latency_s * 1e3 for s in samples if not s.code]
    lags = [(s.sent - s.scheduled) * 1e3 for s in samples]
    stages = {stage.stage for picture in pictures for stage in picture.stages}
    refused = sum(s.code == REFUSED for s in samples)
    return Second(
        at,
        length,
        len(samples),
        ok=len(latencies),
        refused=refused,
        failed=len(samples) - len(latencies) - refused,
        p50_ms=percentile(latencies, 50) if latencies else None,
        p99_ms=percentile(latencies, 99) if latencies else None,
        lag_p99_ms=percentile(lags, 99) if lags else None,
        replicas={name: _mean(name, pictures) for name in sorted(stages)},
        queued=sum(s.queued for p in pictures for s in p.stages) / len(pictures) if pictures else 0.0,
    )


def _mean(stage: str, pictures: Sequence[Picture]) -> float:
    counts = [s.idle + s.busy for p in pictures for s in p.stages if s.stage == stage]
    return sum(counts) / len(counts)
