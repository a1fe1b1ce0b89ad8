"""Two reports side by side: which of the differences are more than noise."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from dataflower.errors import InvalidArgument
from dataflower.loadgen.report import Report
from dataflower.loadgen.statistics import Interval, Values, bootstrap_difference

Statistic = Callable[[Values], Any]


class Change(enum.Enum):
    """Of b against a."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "no clear difference"


class Difference(Struct, frozen=True):
    """One figure: `a`, `b`, and b - a with its interval (95 %)."""

    figure: str
    a: float
    b: float
    difference: Interval
    change: Change


class Comparison(Struct, frozen=True):
    """Every figure that both reports have, and what keeps them from being the same experiment."""

    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    seed: int


def compare(a: Report, b: Report, *, seed: int = 0) -> Comparison:
    """B against a.

    Raises:
        InvalidArgument: one of them measured too little.
    """
    for name, report in (("the first", a), ("the second", b)):
        if report.counts.ok < 2:
            raise InvalidArgument(f"{name} report has {report.counts.ok} answered requests: too few to compare")
    found = []
    for figure, values_a, values_b, statistic, up in _figures(a, b):
        interval = bootstrap_difference(values_a, values_b, statistic, seed=seed)
        better = (interval.value > 0) == up
        change = Change.UNCLEAR if not interval.is_clear else Change.BETTER if better else Change.WORSE
        one, two = (float(statistic(v[None, :])[0]) for v in (values_a, values_b))
        found.append(Difference(figure, one, two, interval, change))
    return Comparison(tuple(found), tuple(_warnings(a, b)), seed)


def _figures(a: Report, b: Report) -> Iterator[tuple[str, Values, Values, Statistic, bool]]:
    """(name, values of a, values of b, statistic, whether more is better)."""
    for column in ("latency_ms", "ttft_ms", "itl_ms", "tpot_ms"):
        one, two = _answered(a, column), _answered(b, column)
        if len(one) < 2 or len(two) < 2:
            continue
        name = "e2e" if column == "latency_ms" else column.removesuffix("_ms")
        yield f"{name}_ms avg", one, two, _mean, False
        for q in (50, 90, 95, 99):
            yield f"{name}_ms p{q}", one, two, _quantile(q), False
    if a.limits is not None and b.limits is not None:
        shares = [np.array(report.requests.good, dtype=np.float64) for report in (a, b)]
        yield "attainment", shares[0], shares[1], _mean, True
    failures = [np.array([bool(code) for code in r.requests.code], dtype=np.float64) for r in (a, b)]
    if any(f.any() for f in failures):
        yield "failed share", failures[0], failures[1], _mean, False


def _answered(report: Report, column: str) -> Values:
    values = getattr(report.requests, column)
    return np.array([v for v, code in zip(values, report.requests.code, strict=True) if not code and v is not None])


def _mean(values: Values) -> Any:
    return values.mean(axis=-1)


def _quantile(q: int) -> Statistic:
    return lambda values: np.percentile(values, q, axis=-1, method="inverted_cdf")


def _warnings(a: Report, b: Report) -> Iterator[str]:
    for what, one, two in (
        ("workflows", a.settings.workflow, b.settings.workflow),
        ("rates", a.settings.rate, b.settings.rate),
        ("arrivals", a.settings.arrivals, b.settings.arrivals),
        ("seeds", a.settings.seed, b.settings.seed),
        ("limits", a.limits, b.limits),
        ("protocols", a.settings.protocol, b.settings.protocol),
        ("machines", a.machine, b.machine),
    ):
        if one != two:
            shown = f": {one} and {two}" if isinstance(one, str | float | int) else ""
            yield f"the {what} differ{shown}"
    for name, report in (("first", a), ("second", b)):
        for reason in report.verdict.reasons:
            yield f"the {name}: {reason}"
