"""Was the promise kept? One invocation held against its workflow's SLO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from dataflower.core.trace import InvocationTrace
from dataflower.spec.workflow import Slo

ItemTimes = Mapping[str, Sequence[float]]
"""Stream output -> when each of its items came, seconds on one clock."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit of the SLO. `measured_ms` None: nothing to measure (no stream output, or a single item)."""

    metric: str
    limit_ms: float
    measured_ms: float | None

    @property
    def met(self) -> bool:
        """Whether the limit was kept; what can't be measured does not break it."""
        return self.measured_ms is None or self.measured_ms <= self.limit_ms

    def __str__(self) -> str:
        name = self.metric.removesuffix("_ms")
        if self.measured_ms is None:
            return f"{name}: nothing to measure (limit {self.limit_ms:g} ms)"
        by = abs(self.limit_ms - self.measured_ms)
        side = "met, {:.1f} ms to spare" if self.met else "MISSED by {:.1f} ms"
        return f"{name}: {self.measured_ms:.1f} ms of {self.limit_ms:g} ms, {side.format(by)}"

    def as_data(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "metric": self.metric,
            "limit_ms": self.limit_ms,
            "measured_ms": None if self.measured_ms is None else round(self.measured_ms, 3),
            "met": self.met,
        }


def judge(slo: Slo | None, arrived: float, finished: float, items: ItemTimes) -> tuple[Verdict, ...]:
    """Hold one invocation against the SLO; times in seconds on one clock.

    ttft is the first item of any stream output (or the end, if none streamed); itl the SLO's percentile of the gaps
    between items and tpot their mean, both of the worst stream output.
    """
    if slo is None:
        return ()
    streams = [sorted(times) for times in items.values() if times]
    first = min((times[0] for times in streams), default=finished)
    gaps = [[b - a for a, b in pairwise(times)] for times in streams if len(times) > 1]
    measured = {
        "e2e_ms": finished - arrived,
        "ttft_ms": first - arrived,
        "itl_ms": max((percentile(g, slo.percentile) for g in gaps), default=None),
        "tpot_ms": max((sum(g) / len(g) for g in gaps), default=None),
    }
    return tuple(
        Verdict(metric, limit, None if seconds is None else seconds * 1000)
        for metric, seconds in measured.items()
        if (limit := getattr(slo, metric)) is not None
    )


def judge_trace(slo: Slo | None, trace: InvocationTrace) -> tuple[Verdict, ...]:
    """The same from record points, which don't tell when each item came: itl and tpot are left out."""
    if slo is None:
        return ()
    items = {"": (trace.first_output,)} if trace.first_output else {}
    return judge(replace(slo, itl_ms=None, tpot_ms=None), trace.arrived, trace.finished, items)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` per cent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]
