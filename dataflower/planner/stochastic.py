"""Poisson arrivals: what a group of machines promises for a percentile, and at what cost.

Invocations arrive at random; one of them brings a burst of requests to a stage (its fan-out). A batch closes when it
is full or when its oldest request has waited for the time-out; closed batches are served in order by n equal machines,
d seconds each. A batch starts when it has closed and a machine is free, so its first request waits for the longer of
the two, not for their sum: `max(C, V) + d`, C at most the time-out and V the backlog that the batch finds.

V has an exponential tail (Kingman's bound for GI/G/1; Lundberg's exponent). Since service takes a fixed time, serving
in order by n machines is the same as giving each machine every n-th batch, so V is the largest of `m d - time since
the batch m n before closed` over all m.

* Single arrivals: between batches passes `Exp(rate)` and then the shorter of the time-out and the time in which b - 1
  more arrive. With f(q) the Laplace transform of the sum and g(q) that of the second part,
  `P(V > y) <= exp(-q y) / g(q)` for every q with `exp(q d) f(q)^n <= 1`.
* Bursts of up to K: T seconds with m n batches bring at least (m n - 1 - T/timeout) b requests, as each batch that the
  time-out cuts takes that long. The martingale `exp(s N(T) - v T (exp(s K) - 1))` of the requests N, bursts coming at
  rate v, gives `P(V > y) <= exp(-s (b n y/d - b - K + 1))` with `s b (n/d - 1/timeout) = v (exp(s K) - 1)`.

Both hold for a stage that counts a request as arriving when the budgets before it are used up: then every stage sees
the Poisson stream of the invocations, later by a fixed time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import Allotment, Schedule
from dataflower.planner.staircase import Stair, Staircase, staircase

Floats = NDArray[np.floating[Any]]

STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 46, 60, 80, 110, 150, 200)
"""Machines beyond the least number that keeps up: which of them are considered."""
_ROUNDS = 18
"""Halvings of an interval: to 4e-6 of it, on the safe side."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a stage is asked: `rate` requests a second, `factor` of them (at most `most`) for one invocation.

    `late`: the share of the invocations that may take longer than what is promised.
    """

    rate: float
    factor: float = 1.0
    most: int = 0
    late: float = 0.01

    @property
    def burst(self) -> int:
        """Requests that may come at once."""
        return max(1, self.most, math.ceil(self.factor - 1e-9))


@dataclass(frozen=True, slots=True)
class _Groups:
    """Candidates side by side: batch size, duration of a batch and number of machines of each; arrivals for all."""

    b: Floats
    d: Floats
    n: Floats
    rate: float
    burst: int
    late: float

    @classmethod
    def of(cls, configurations: Sequence[Configuration], counts: Sequence[int], demand: Demand) -> _Groups:
        b = np.array([c.batch for c in configurations], dtype=float)
        d = np.array([c.duration_s for c in configurations])
        return cls(b, d, np.array(counts, dtype=float), demand.rate, demand.burst, demand.late)


def late_share(percentile: float, stages: int) -> float:
    """How often one stage of so many may miss its budget, so that all of them together keep the percentile.

    An invocation is late only if some stage was: the shares add up (Boole), whatever depends on what.
    """
    return (1 - percentile / 100) / stages


@lru_cache(maxsize=512)
def curve(configurations: tuple[Configuration, ...], demand: Demand) -> Staircase:
    """Cost of whole machines against the latency that all but a share `late` of the invocations keep at a stage."""
    picks = [(c, n) for c in configurations for n in machines(c, demand.rate)]
    latency = latencies([c for c, _ in picks], [n for _, n in picks], demand)
    return staircase(
        Stair(float(seconds), n * c.price, Schedule((Allotment(c, float(n), demand.rate, float(seconds)),)))
        for (c, n), seconds in zip(picks, latency, strict=True)
        if math.isfinite(seconds)
    )


def machines(c: Configuration, rate: float) -> list[int]:
    """Numbers of machines worth looking at: from the least that keeps up to where each request could have its own."""
    least = math.floor(rate / c.throughput) + 1
    most = math.ceil(rate * c.duration_s) + 12
    return [least + step for step in STEPS if least + step <= max(most, least + 2)]


def latencies(configurations: Sequence[Configuration], counts: Sequence[int], demand: Demand) -> Floats:
    """The latency that `counts` machines in each configuration keep, with the time-out that makes it least.

    The time-out is the latency less the duration. Infinite where the machines can't keep up.
    """
    groups = _Groups.of(configurations, counts, demand)
    bursty = _bursts(groups)
    return bursty if demand.burst > 1 else np.fmin(bursty, _singles(groups))


def quantile(c: Configuration, count: int, demand: Demand, budget_s: float) -> float:
    """The latency that all but `late` keep when the time-out is what `budget_s` leaves; it may exceed that budget."""
    groups = _Groups.of([c], [count], demand)
    timeout = np.array([max(budget_s - c.duration_s, 1e-9)])
    waits = [_wait_bursts(groups, timeout)]
    if demand.burst == 1:
        waits.append(_wait_singles(groups, timeout))
    collect = 0.0 if c.batch == 1 else min(float(timeout[0]), _collect(c.batch, demand.rate, demand.late))
    return c.duration_s + max(collect, float(np.fmin.reduce(waits)[0]))


def turn_s(c: Configuration, cycle_s: float, demand: Demand) -> float:
    """The latency that all but `late` keep on a machine that comes round every `cycle_s` at most; infinite if it can't.

    A turn takes up to b requests. Since the last turn that left nothing waiting, every turn was a full one, so what
    waits is at most b more than arrivals at a rate of b/cycle would have left over: the same martingale as above with
    s b/cycle = v (exp(s K) - 1). A request with q ahead of it begins within q/b + 1 turns.
    """
    x = _growth(np.array([c.batch / cycle_s / demand.rate]))[0]
    if not (math.isfinite(x) and x > 0):
        return math.inf
    ahead = demand.burst * math.log(1 / demand.late) / float(x) + demand.burst - 1
    return c.duration_s + cycle_s * (2 + ahead / c.batch)


def _collect(batch: int, rate: float, late: float) -> float:
    """Time in which `batch - 1` more requests have come, but for a share `late`: Chernoff's bound for Erlang's tail."""
    k, ratio = batch - 1, 1.0
    while k * (ratio - 1 - math.log(ratio)) < -math.log(late):
        ratio *= 1.01
    return k * ratio / rate


def _bursts(g: _Groups) -> Floats:
    spare = g.n / g.d - g.rate / g.b  # batches a second that the machines could serve on top
    keeps_up = spare > 1e-9 * g.rate
    shortest = np.where(keeps_up, 1 / np.where(keeps_up, spare, 1.0), np.inf)
    single = g.b <= 1
    with np.errstate(invalid="ignore"):
        low, high = shortest, np.where(single, np.inf, 2 * shortest)
        high = np.where(single, np.inf, np.maximum(high, _wait_bursts(g, high)))
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            enough = _wait_bursts(g, middle) <= middle
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        wait = np.where(single, _wait_bursts(g, np.full_like(g.b, np.inf)), high)
    return np.where(keeps_up, g.d + wait, np.inf)


def _wait_bursts(g: _Groups, timeout: Floats) -> Floats:
    """The backlog that a batch meets, but for a share `late`, if requests come in bursts."""
    serves = g.b * (g.n / g.d - np.where(g.b > 1, 1 / timeout, 0.0))
    x = _growth(serves / g.rate)  # s K
    ahead = np.where(g.b > 1, g.b + g.burst - 1.0, g.burst - 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wait = g.d / (g.b * g.n) * (ahead + g.burst * math.log(1 / g.late) / x)
    return np.where(np.isfinite(x) & (x > 0), np.maximum(wait, 0.0), np.inf)


def _growth(ratio: Floats) -> Floats:
    """X > 0 with (exp(x) - 1)/x = ratio, by Newton from above; nan where the ratio is not above 1."""
    good = ratio > 1 + 1e-9
    r = np.where(good, ratio, 2.0)
    x = 2 * np.log(r)
    for _ in range(10):
        x = x - (np.expm1(x) - r * x) / (np.exp(x) - r)
    return np.where(good, x, np.nan)


def _singles(g: _Groups) -> Floats:
    """The least latency if requests come one at a time: the time-out at which the backlog is as long as itself."""
    keeps_up = g.n * g.b > g.rate * g.d * (1 + 1e-9)
    low, high = np.zeros_like(g.b), 4 * g.b / g.rate + 4 * g.d
    for _ in range(12):  # far enough for a time-out that hardly ever cuts
        short = keeps_up & (_wait_singles(g, high) > high)
        if not short.any():
            break
        high = np.where(short, 2.5 * high, high)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        enough = _wait_singles(g, middle) <= middle
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    kept = keeps_up & (_wait_singles(g, high) <= high * (1 + 1e-6))
    return np.where(kept, g.d + high, np.inf)


def _wait_singles(g: _Groups, timeout: Floats) -> Floats:
    """The backlog that a batch meets, but for a share `late`: the best exponent that the machines allow."""
    timeout = np.where(g.b > 1, timeout, 0.0)
    upper = _terms(g.b, g.rate * timeout)
    mean = 1 / g.rate + _mean_collection(g.b, g.rate, timeout)
    stable = g.n * mean > g.d * (1 + 1e-9)
    # q such that q d + n log f(q) = 0: convex with one root above 0, between these two
    low, high = np.zeros_like(g.b), np.full_like(g.b, 1e-3) / g.d
    for _ in range(60):
        more = stable & (high * g.d + g.n * _log_gap(g, timeout, high, upper) < 0)
        if not more.any():
            break
        low, high = np.where(more, high, low), np.where(more, 2 * high, high)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        below = middle * g.d + g.n * _log_gap(g, timeout, middle, upper) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    collection = _log_gap(g, timeout, low, upper) - np.log(g.rate / (g.rate + low))
    with np.errstate(divide="ignore", invalid="ignore"):
        wait = (math.log(1 / g.late) - collection) / low
    return np.where(stable & (low > 0), np.maximum(wait, 0.0), np.inf)


def _log_gap(g: _Groups, timeout: Floats, q: Floats, upper: Floats) -> Floats:
    """Log of the Laplace transform of the time between batches at q."""
    full = 1 - _terms(g.b, (g.rate + q) * timeout)
    share = g.rate / (g.rate + q)
    collected = share ** (g.b - 1) * np.maximum(full, 0.0) + np.exp(-q * timeout) * upper
    return np.asarray(np.log(share) + np.log(np.maximum(collected, 1e-300)))


def _mean_collection(b: Floats, rate: float, timeout: Floats) -> Floats:
    """Mean of the shorter of the time-out and the time in which b - 1 more arrive."""
    return np.asarray((b - 1) / rate * (1 - _terms(b + 1, rate * timeout)) + timeout * _terms(b, rate * timeout))


def _terms(b: Floats, x: Floats) -> Floats:
    """P(fewer than b - 1 arrivals) if x are expected: regularised upper incomplete gamma of (b - 1, x)."""
    most = int(b.max(initial=1.0)) - 1
    if most <= 0:
        return np.zeros_like(x)
    orders = np.arange(most)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most)))]) if most > 1 else np.zeros(1)
    safe = np.maximum(x, 1e-300)[:, None]
    each = np.exp(orders * np.log(safe) - safe - factorials)
    return np.asarray(np.minimum(1.0, np.where(orders < (b - 1)[:, None], each, 0.0).sum(1)))
