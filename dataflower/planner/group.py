"""Our scheduler of one stage: all machines of a configuration share whole batches.

The bound d + (b - 1)/T holds for the whole group, the fractional machine included (`bounds.group`). Billed by use a
second configuration can only cost more: the one with the best ratio that fits the budget takes everything, at T
p/t. With whole machines a second group may fill what the first would leave idle; the stream is then split between
the two, request by request and as evenly as whole requests can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dataflower.planner import bounds
from dataflower.planner.bursts import Steps
from dataflower.planner.options import Billing
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import ROUNDING, Allotment, Schedule, whole
from dataflower.planner.staircase import Stair, Staircase, staircase

STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Machines beyond the least number that keeps up: which of them are considered where requests come at once."""


def curve(
    configurations: Sequence[Configuration], rate: float, billing: Billing, limit_s: float, steps: Steps | None = None
) -> Staircase:
    """Cost against budget, exact: one group by use, at most two with whole machines. Steps beyond `limit_s` are cut.

    `steps`: how requests come, if not evenly spaced.
    """
    every = (*configurations, *_partly_filled(configurations, rate, limit_s))
    if steps is None:
        stairs = [_single(c, rate, billing) for c in every]
    else:
        stairs = [stair for c in every for stair in _bursty(c, rate, billing, steps)]
    stairs = [s for s in stairs if bounds.fits(s.latency_s, limit_s)]
    if billing is Billing.INTEGER:
        stairs += _pairs(configurations, rate, limit_s, 0.0 if steps is None else steps.late_s)
    return staircase(stairs)


def _partly_filled(configurations: Sequence[Configuration], rate: float, limit_s: float) -> list[Configuration]:
    """Batches cut before they are full: fewer requests in the time that the full batch takes.

    Where requests are rare this takes the place of dummy requests, and never costs more: those fill up the same
    batch, but what counts is how many real requests come before it must be cut.
    """
    found = []
    for c in configurations:
        smaller = max((o.batch for o in configurations if o.hardware == c.hardware and o.batch < c.batch), default=0)
        most = min(c.batch - 1, math.floor((limit_s - c.duration_s) * rate * (1 + bounds.TOLERANCE)) + 1)
        found += [replace(c, batch=k) for k in range(smaller + 1, most + 1)]
    return found


def _single(c: Configuration, rate: float, billing: Billing) -> Stair:
    worst = bounds.group(c, rate)
    schedule = Schedule((Allotment(c, rate / c.throughput, rate, worst),))
    return Stair(worst, schedule.cost if billing is Billing.USE else schedule.integer_cost, schedule)


def _bursty(c: Configuration, rate: float, billing: Billing, steps: Steps) -> Iterator[Stair]:
    """The same where requests come at once. More machines than the rate needs shorten the queue that they make."""
    least = whole(rate / c.throughput)
    most = least if billing is Billing.USE else max(least, math.ceil(steps.burst / c.batch))
    shortest = math.inf
    for extra in STEPS:
        count = least + extra
        if count > most:
            break
        worst = c.duration_s + steps.wait_s(c, count)
        if worst >= shortest:
            continue
        shortest = worst
        busy = rate / c.throughput if count == least else float(count)
        schedule = Schedule((Allotment(c, busy, rate, worst),))
        yield Stair(worst, schedule.cost if billing is Billing.USE else schedule.integer_cost, schedule)


def _pairs(configurations: Sequence[Configuration], rate: float, limit_s: float, late_s: float) -> list[Stair]:
    """Two groups with whole machines: n of the first, full, and as many of the second as the rest needs.

    `late_s`: how long requests wait more because they come at once.
    """
    throughput = np.array([c.throughput for c in configurations])
    price = np.array([c.price for c in configurations])
    alone_s = np.array([c.duration_s for c in configurations]) + 1 / rate + late_s
    waits = np.array([c.batch - 1 for c in configurations])
    found: list[tuple[float, float, int, int, int]] = []
    for i, first in enumerate(configurations):
        counts = np.arange(1, math.ceil(rate / first.throughput - ROUNDING))
        rest = rate - counts * first.throughput
        machines = np.maximum(1, np.ceil(rest[:, None] / throughput - ROUNDING))
        cost = counts[:, None] * first.price + machines * price
        latency = np.maximum(
            (alone_s[i] + waits[i] / (rate - rest))[:, None],
            alone_s + waits / rest[:, None],
        )
        usable = np.argwhere(latency <= limit_s)
        found += [(float(latency[n, j]), float(cost[n, j]), i, int(counts[n]), int(j)) for n, j in usable]
    best, stairs = math.inf, []
    for _, cost_, i, n, j in sorted(found):
        if cost_ < best:
            best = cost_
            stairs.append(_pair(configurations[i], n, configurations[j], rate, late_s))
    return stairs


def _pair(first: Configuration, n: int, second: Configuration, rate: float, late_s: float) -> Stair:
    rest = rate - n * first.throughput
    shares = ((first, rate - rest), (second, rest))
    schedule = Schedule(
        tuple(Allotment(c, x / c.throughput, x, bounds.group(c, x, split_rate=rate) + late_s) for c, x in shares)
    )
    return Stair(schedule.worst_s, n * first.price + whole(rest / second.throughput) * second.price, schedule)
