"""Measurements without a server: requests at given times with given ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.host.api import StageStatus
from dataflower.loadgen.assess import Terms
from dataflower.loadgen.measure import Measurement, Picture
from dataflower.loadgen.messages import Sample
from dataflower.loadgen.report import Settings
from dataflower.loadgen.schedule import Schedule
from dataflower.spec.workflow import Slo

SETTINGS = Settings("w", 1, "a local server", "grpc", "10/s, evenly spaced", 10.0, 0, 10.0, 1.0, 1)


def sample(number: int, latency_s: float = 0.1, *, lag_s: float = 0.0002, code: str = "") -> Sample:
    """Ten a second, from 0 on."""
    due = number / 10
    kind, stage = ("ValueError", "a") if code == "INTERNAL" else ("", "")
    return Sample(number, due, due + lag_s, due + latency_s, code=code, kind=kind, stage=stage, message=f"no {number}")


def trace(sample: Sample) -> InvocationTrace:
    """It waits a tenth of its time and computes half of it."""
    begin, took = 1000 + sample.sent, sample.ended - sample.sent
    points = [begin + took * part for part in (0.05, 0.15, 0.2, 0.7, 0.8)]
    task = TaskTrace("a", (), 1, points[0], 1, points[1], points[2], points[2], 0.0, points[3], points[4])
    return InvocationTrace(f"run-{sample.number}", "w@1", begin, begin + took * 0.9, tasks=[task])


def measured(samples: Sequence[Sample], scheduled: int = 110, *, traced: bool = True) -> Measurement:
    """Eleven seconds, of which the first is warm-up."""
    schedule = Schedule(np.arange(scheduled) / 10, [0] * scheduled, [b""], 1.0, scheduled / 10)
    found = Measurement(schedule, "run", list(samples), begun_at=1.7e9)
    found.pictures = [Picture(t / 2, (StageStatus("a", 0, 1, 1, 3),)) for t in range(scheduled // 5)]
    if traced:
        found.traces = {s.number: trace(s) for s in samples if not s.code}
    return found


def terms(slo: Slo | None = None, **changes: object) -> Terms:
    """With the settings above."""
    return Terms(SETTINGS, slo, **changes)  # type: ignore[arg-type]
