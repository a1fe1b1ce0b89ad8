"""When is a median known well enough? Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STEADY = 0.05
"""Relative half-width of the 95 % interval of the median at which measuring stops."""
LEAST = 5
"""Measurements before anything is said."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a series of durations says, in seconds. `steady`: the median is known to within `STEADY`."""

    median_s: float
    high_s: float
    std_s: float
    runs: int
    steady: bool


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median, whatever the distribution: two order statistics (binomial tails).

    With fewer than six samples there is none: the whole range is given.
    """
    ordered, n = sorted(samples), len(samples)
    tail, k = 0.5**n, 0
    while tail + math.comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    k = k if 0.5**n <= 0.025 else -1
    return ordered[max(k, 0)], ordered[min(n - 1 - k, n - 1)]


def is_steady(samples: Sequence[float]) -> bool:
    """Whether the interval of the median is narrow enough."""
    if len(samples) < LEAST:
        return False
    low, high = interval(samples)
    return (high - low) / 2 <= STEADY * statistics.median(samples)


def summary(samples: Sequence[float]) -> Summary:
    """Median, 90th percentile (nearest rank) and spread; the spread is robust against single outliers.

    `std_s` is what the quartiles of a normal distribution would make of it.
    """
    ordered = sorted(samples)
    median = statistics.median(ordered)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [median] * 3
    high = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return Summary(median, high, (quartiles[2] - quartiles[0]) / 1.349, len(ordered), is_steady(ordered))
