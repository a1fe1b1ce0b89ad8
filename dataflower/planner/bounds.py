"""Worst-case latency of a request under each way of dispatching, for evenly spaced arrivals.

All rates in requests a second, all results in seconds. The bound counts waiting for the batch to fill, waiting for a
machine, and the batch itself. A batch of one has nobody to wait for: where a published formula would let it wait b/w,
we let it wait at most until the machine is free, which is never longer than the batch takes.
"""

from __future__ import annotations

import math

from dataflower.planner.options import Dispatch
from dataflower.planner.profile import Configuration

TOLERANCE = 1e-9
"""Relative: sums of the same seconds in another order count as equal."""


def fits(latency_s: float, budget_s: float) -> bool:
    """Whether a latency is within a budget, rounding aside."""
    return latency_s <= budget_s * (1 + TOLERANCE)


def round_robin(c: Configuration, rate: float) -> float:
    """Single requests spread over machines of which this one gets `rate`: 2d when it is full, d + b/rate when not."""
    return c.duration_s + (c.duration_s if rate >= c.throughput * (1 - TOLERANCE) else _collect(c, rate))


def batch_round_robin(c: Configuration, rate: float) -> float:
    """Whole batches go round equal machines whose total is `rate`: d + (b - 1)/rate."""
    return c.duration_s + (c.batch - 1) / rate


def group_share(c: Configuration, group_rate: float) -> float:
    """DT: a group that receives `group_rate` collects at just that rate: d + b/t_group."""
    return c.duration_s + _collect(c, group_rate)


def ranked_share(c: Configuration, remaining: float) -> float:
    """TC: the tuple sees the requests of all tuples ranked after it as well: d + b/w."""
    return c.duration_s + _collect(c, remaining)


def group(c: Configuration, rate: float, *, split_rate: float = math.inf) -> float:
    """The group dispatch of ours: the batch that is full goes to the first free machine.

    Batches close every b/rate, and n machines with n b/d >= rate are free at least as often, the one that is only
    partly in use included: nobody waits for a machine, so d + (b - 1)/rate. If the group takes its requests one by one
    out of a stream of `split_rate`, as evenly as whole requests can be, each may come one gap of that stream later.
    """
    jitter = 0.0 if math.isinf(split_rate) else 1.0 / split_rate
    return c.duration_s + (c.batch - 1) / rate + jitter


def full_machines(dispatch: Dispatch, c: Configuration, machines: int, remaining: float) -> float:
    """Bound of a tuple of `machines` full machines when it and the tuples after it are sent `remaining`."""
    if dispatch is Dispatch.RR:
        return 2 * c.duration_s
    own = machines * c.throughput
    if dispatch is Dispatch.BATCH_RR:
        return batch_round_robin(c, own)
    if dispatch is Dispatch.DT:
        return group_share(c, own)
    if dispatch is Dispatch.TC:
        return ranked_share(c, remaining)
    return group(c, own)


def last_machine(dispatch: Dispatch, c: Configuration, rate: float) -> float:
    """Bound of one machine that collects alone at `rate`, no more than its throughput."""
    if dispatch is Dispatch.RR:
        return round_robin(c, rate)
    if dispatch in (Dispatch.BATCH_RR, Dispatch.GROUP):
        return batch_round_robin(c, rate)
    return c.duration_s + _collect(c, rate)


def whole_stage(dispatch: Dispatch, c: Configuration, rate: float) -> float:
    """Bound of a stage that runs in this one configuration, its fractional machine shared: a splitter's estimate."""
    if dispatch is Dispatch.RR:
        machines = math.ceil(rate / c.throughput * (1 - TOLERANCE))
        return round_robin(c, rate / machines)
    if dispatch in (Dispatch.BATCH_RR, Dispatch.GROUP):
        return batch_round_robin(c, rate)
    return c.duration_s + _collect(c, rate)


def _collect(c: Configuration, rate: float) -> float:
    return c.batch / rate if c.batch > 1 else min(1 / rate, c.duration_s)
