"""Distributions, shares and intervals: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Values = NDArray[np.float64]
_AT_ONCE = 2_000_000
"""Values resampled at a time: what bounds the memory of a bootstrap."""


class Distribution(Struct, frozen=True):
    """Of `n` values, exactly: a percentile is a value that occurred (nearest rank)."""

    n: int
    avg: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def distribution(values: Sequence[float] | Values) -> Distribution | None:
    """None of no values."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return None
    p50, p90, p95, p99 = (percentile(array, q) for q in (50, 90, 95, 99))
    return Distribution(
        len(array),
        float(array.mean()),
        float(array.std()),
        float(array.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(array.max()),
    )


def percentile(values: Sequence[float] | Values, q: float) -> float:
    """The smallest of the values that at least `q` per cent of them do not exceed."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), q, method="inverted_cdf"))


class Interval(Struct, frozen=True):
    """An estimate and the interval that holds it with the stated confidence."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether it lies wholly on one side of 0."""
        return self.low > 0 or self.high < 0


def bootstrap_difference(
    a: Values,
    b: Values,
    statistic: Callable[[Values], Any],
    *,
    seed: int,
    rounds: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """`statistic(b) - statistic(a)`, with a percentile interval of the circular block bootstrap.

    Requests that follow one another share queues, so that their latencies are not independent: what is drawn is not
    single requests but runs of n^(1/3) of them (Politis and Romano, 1992). `statistic` takes (rounds, n) along the
    last axis. `a` and `b` are in the order of time and not empty.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(len(a), len(b)))
    parts = []
    for first in range(0, rounds, at_once):
        many = min(at_once, rounds - first)
        parts.append(statistic(_resampled(b, random, many)) - statistic(_resampled(a, random, many)))
    differences = np.concatenate(parts)
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(differences, (tail, 100 - tail))
    return Interval(float(statistic(b[None, :])[0] - statistic(a[None, :])[0]), float(low), float(high))


def _resampled(values: Values, random: np.random.Generator, rounds: int) -> Values:
    n = len(values)
    block = max(1, round(n ** (1 / 3)))
    starts = random.integers(0, n, size=(rounds, -(-n // block)))
    picks = (starts[:, :, None] + np.arange(block)).reshape(rounds, -1)[:, :n] % n
    return np.asarray(values[picks])
