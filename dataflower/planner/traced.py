"""Recorded arrivals: what a group of machines would have made of them, batch by batch, and what that costs.

The model is that of `stochastic`; instead of a bound there is a replay. What is promised holds for this recording (and
as far as the future resembles it): with few invocations a percentile is no more than the slowest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflower.errors import InvalidArgument
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import Allotment, Schedule
from dataflower.planner.staircase import Stair, Staircase, staircase
from dataflower.planner.stochastic import Demand, machines

Floats = NDArray[np.floating[Any]]

TIMEOUTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Time-outs that are tried, in multiples of the time in which a batch fills at the mean rate."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Times of arrival in seconds, in order; the first may be anything.

    Raises:
        InvalidArgument: fewer than two, not in order, or all at once.
    """

    times: Floats

    def __post_init__(self) -> None:
        if len(self.times) < 2:
            raise InvalidArgument("a trace needs at least two arrivals")
        if not np.isfinite(self.times).all() or (np.diff(self.times) < 0).any():
            raise InvalidArgument("the arrivals of a trace must be finite numbers in order")
        if not self.times[-1] > self.times[0]:
            raise InvalidArgument("all arrivals of the trace are at one time: it has no rate")

    @classmethod
    def of(cls, times: Sequence[float]) -> Trace:
        """From any numbers, put in order."""
        return cls(np.sort(np.asarray(times, dtype=float)))

    @property
    def rate(self) -> float:
        """Arrivals a second, on the average."""
        return float((len(self.times) - 1) / (self.times[-1] - self.times[0]))

    def at(self, rate: float) -> Floats:
        """The arrivals, closer together or further apart so that there are `rate` a second; the first at 0."""
        return np.asarray((self.times - self.times[0]) * (self.rate / rate))


def spread(invocations: int, factor: float, most: int) -> NDArray[np.intp]:
    """Requests of each invocation: bursts of `most`, as evenly as they can be, `factor` on the average."""
    burst = max(1, most, math.ceil(factor))
    upto = np.floor(np.arange(invocations + 1) * (factor / burst) + 1e-9).astype(np.intp)
    return np.asarray(np.diff(upto) * burst)


def closing(times: Floats, batch: int, timeout_s: float) -> tuple[NDArray[np.intp], Floats]:
    """First request of each batch, and when it closes: when it is full, or `timeout_s` after its first request."""
    within = np.searchsorted(times, times + timeout_s, side="right")
    firsts, count, i = [], len(times), 0
    ends = np.minimum(within, np.arange(count) + batch).tolist()
    while i < count:
        firsts.append(i)
        i = ends[i]
    first = np.array(firsts, dtype=np.intp)
    size = np.diff(np.append(first, count))
    last = times[first + size - 1]
    return first, np.asarray(np.where(size == batch, last, times[first] + timeout_s))


def starting(closes: Floats, duration_s: float, count: int) -> Floats:
    """When each batch starts on the first of `count` machines that is free, in the order of closing."""
    starts = np.empty_like(closes)
    for machine in range(min(count, len(closes))):  # a fixed service time: each machine takes every count-th batch
        turn = duration_s * np.arange(len(closes[machine::count]))
        starts[machine::count] = np.maximum.accumulate(closes[machine::count] - turn) + turn
    return starts


def replay(arrivals: Floats, requests: NDArray[np.intp], c: Configuration, count: int, timeout_s: float) -> Floats:
    """The latency of each invocation that has requests: until the last of them is done, in seconds."""
    times = np.repeat(arrivals, requests)
    first, closes = closing(times, c.batch, timeout_s)
    done = np.repeat(starting(closes, c.duration_s, count) + c.duration_s, np.diff(np.append(first, len(times))))
    last = np.cumsum(requests)[requests > 0] - 1
    return np.asarray(done[last] - arrivals[requests > 0])


def percentile_of(latency: Floats, invocations: int, late: float) -> float:
    """The least latency that at most a share `late` of all `invocations` exceeds."""
    allowed = math.floor(late * invocations + 1e-9)
    return float(np.sort(latency)[-1 - allowed]) if allowed < len(latency) else float(latency.min())


@lru_cache(maxsize=256)
def curve(configurations: tuple[Configuration, ...], demand: Demand, trace: Trace) -> Staircase:
    """Cost of whole machines against the latency that all but a share `late` of the invocations have at a stage."""
    rate = demand.rate
    arrivals = trace.at(rate / demand.factor)
    requests = spread(len(arrivals), demand.factor, demand.burst)
    times = np.repeat(arrivals, requests)
    last = np.cumsum(requests)[requests > 0] - 1
    came = arrivals[requests > 0]
    if not len(times):
        raise InvalidArgument(f"the trace is too short: {len(arrivals)} invocations make no request of a stage")
    stairs = []
    for batch in sorted({c.batch for c in configurations}):
        for timeout_s in (0.0,) if batch == 1 else tuple(m * (batch - 1) / rate for m in TIMEOUTS):
            first, closes = closing(times, batch, timeout_s)
            size = np.diff(np.append(first, len(times)))
            for c in (c for c in configurations if c.batch == batch):
                for count in machines(c, rate):
                    done = np.repeat(starting(closes, c.duration_s, count) + c.duration_s, size)
                    found = percentile_of(done[last] - came, len(arrivals), demand.late)
                    # the time-out that was replayed must lie within the latency, which becomes the budget
                    worst = max(found, c.duration_s + timeout_s)
                    schedule = Schedule((Allotment(c, float(count), rate, worst),))
                    stairs.append(Stair(worst, count * c.price, schedule))
    return staircase(stairs)
