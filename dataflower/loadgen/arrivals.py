"""When requests start, whether or not earlier ones were answered (open loop): pure, and the same for the same seed.

Every process here is a sequence of unit gaps (all 1, or gamma distributed) laid on the integral of a rate that may
change with time: the time-rescaling theorem of point processes. Constant, Poisson and gamma arrivals have a flat rate;
ramps and bursts a rate that changes.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dataflower.errors import InvalidArgument

Times = NDArray[np.float64]
"""Seconds since the begin of the run, rising."""
MAX_REQUESTS = 5_000_000


class Shape(enum.StrEnum):
    """How requests come."""

    CONSTANT = "constant"
    POISSON = "poisson"
    GAMMA = "gamma"
    RAMP = "ramp"
    BURST = "burst"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An arrival process.

    Attributes:
        shape: which one.
        rate: requests a second; of a ramp the rate at its begin, of bursts the rate between them.
        cv: coefficient of variation of the gaps: 0 even, 1 Poisson, more is burstier.
        rate_to: of a ramp, the rate at its end; of bursts, the rate within one.
        burst_s: how long a burst lasts.
        every_s: from the begin of one burst to that of the next; the first comes after `every_s - burst_s`.
    """

    shape: Shape = Shape.POISSON
    rate: float = 1.0
    cv: float = 1.0
    rate_to: float = 0.0
    burst_s: float = 1.0
    every_s: float = 10.0

    def __str__(self) -> str:
        spread = {0.0: "evenly spaced", 1.0: "Poisson"}.get(self.cv, f"gamma, cv {self.cv:g}")
        match self.shape:
            case Shape.RAMP:
                return f"ramp from {self.rate:g}/s to {self.rate_to:g}/s, {spread}"
            case Shape.BURST:
                burst = f"bursts of {self.rate_to:g}/s for {self.burst_s:g} s every {self.every_s:g} s"
                return f"{self.rate:g}/s with {burst}, {spread}"
            case _:
                return f"{self.rate:g}/s, {spread}"

    def at_rate(self, rate: float) -> Arrivals:
        """The same process, quicker or slower throughout, so that `rate` is `rate`."""
        return replace(self, rate=rate, rate_to=self.rate_to * rate / self.rate)

    @property
    def peak(self) -> float:
        """The highest rate that it comes to, requests a second."""
        return max(self.rate, self.rate_to)

    def times(self, duration_s: float, seed: int) -> Times:
        """All start times within `duration_s`.

        Raises:
            InvalidArgument: a rate, a length or the number of requests is out of range.
        """
        self._check(duration_s)
        ends, rates = self._pieces(duration_s)
        starts = np.concatenate(([0.0], ends[:-1]))
        # what is expected to have arrived by the end of each piece; within a piece the rate is linear
        counts = np.cumsum((ends - starts) * (rates[:, 0] + rates[:, 1]) / 2)
        if counts[-1] > MAX_REQUESTS:
            raise InvalidArgument(
                f"{counts[-1]:.3g} requests are more than {MAX_REQUESTS}: lower the rate or the duration"
            )
        units = unit_times(float(counts[-1]), self.cv, np.random.default_rng(seed))
        piece = np.searchsorted(counts, units, side="right").clip(max=len(ends) - 1)
        before = np.concatenate(([0.0], counts[:-1]))[piece]
        length = (ends - starts)[piece]
        times = starts[piece] + length * _inverse(units - before, rates[piece, 0], rates[piece, 1], length)
        times = np.maximum.accumulate(times)  # rounding may put one before a neighbour that is closer than that
        return np.asarray(times[times < duration_s])

    def _pieces(self, duration_s: float) -> tuple[Times, NDArray[np.float64]]:
        """Ends of stretches of linear rate, and the rate at both ends of each."""
        if self.shape is Shape.RAMP:
            return np.array([duration_s]), np.array([[self.rate, self.rate_to]])
        if self.shape is not Shape.BURST:
            return np.array([duration_s]), np.array([[self.rate, self.rate]])
        ends, rates = [], []
        for i in range(math.ceil(duration_s / self.every_s)):
            for end, rate in (
                ((i + 1) * self.every_s - self.burst_s, self.rate),
                ((i + 1) * self.every_s, self.rate_to),
            ):
                ends.append(min(end, duration_s))
                rates.append([rate, rate])
        return np.array(ends), np.array(rates)

    def _check(self, duration_s: float) -> None:
        named = {"the duration": duration_s, "the rate": self.rate}
        if self.shape in (Shape.RAMP, Shape.BURST):
            named["the rate to reach"] = self.rate_to
        if self.shape is Shape.BURST:
            named |= {"the length of a burst": self.burst_s, "the time between bursts": self.every_s}
        for what, value in named.items():
            if not (math.isfinite(value) and value > 0):
                raise InvalidArgument(f"{what} must be greater than 0, not {value:g}")
        if not (math.isfinite(self.cv) and self.cv >= 0):
            raise InvalidArgument(f"the coefficient of variation must not be negative: {self.cv:g}")
        if self.shape is Shape.BURST and self.burst_s >= self.every_s:
            raise InvalidArgument(f"bursts of {self.burst_s:g} s don't fit into every {self.every_s:g} s")


def unit_times(until: float, cv: float, random: np.random.Generator) -> Times:
    """Arrivals at a mean rate of 1 before `until`: evenly spaced from 0 on, or with gamma distributed gaps."""
    if cv == 0:
        return np.arange(math.ceil(until - 1e-9), dtype=np.float64)
    shape = 1 / cv**2
    found = np.empty(0)
    last = 0.0
    while last < until:
        more = last + np.cumsum(random.gamma(shape, cv**2, size=max(64, int((until - last) * 1.2))))
        found, last = np.concatenate((found, more)), float(more[-1])
    return found[found < until]


def _inverse(count: Times, first: Times, last: Times, length: Times) -> Times:
    """Where in a piece (0 to 1) the integral of its linear rate reaches `count`."""
    slope = last - first
    root = np.sqrt(np.maximum(first**2 + 2 * slope * count / length, 0))
    return np.asarray(2 * count / length / np.maximum(first + root, 1e-300))


def gaps_of(times: Times) -> tuple[float, float]:
    """(mean rate, coefficient of variation of the gaps) of given arrivals; zeros if there are fewer than three."""
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() <= 0:
        return 0.0, 0.0
    return float(1 / gaps.mean()), float(gaps.std() / gaps.mean())
