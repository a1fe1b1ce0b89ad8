"""Plans for random arrivals, tried on arrivals that are made up once and for all: do they need all that they pay for?

The bounds of `stochastic` add up what never happens at once: every stage at its worst for the same invocation. So plans
with larger shares of late requests for each stage (`Options.risk`) are tried as well, from the safest on, and the
cheapest is taken that keeps the percentile here with room to spare. Batches close and start as in the engine:
work-conserving, by the time-outs of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflower.planner.application import Application
from dataflower.planner.options import Arrivals, Options
from dataflower.planner.result import Plan, StagePlan
from dataflower.planner.schedule import whole
from dataflower.planner.traced import spread, starting

Floats = NDArray[np.floating[Any]]

INVOCATIONS = 20_000
SEED = 20_000
RISKS = (4.0, 16.0, 64.0, 256.0)
SPARE = 0.6
"""Share of the invocations that may be late which a plan may use up here; the rest is for what is different outside."""
LEAST_LATE = 20
"""Invocations that may be late here; a percentile that allows fewer is not tried."""


def tighten(
    first: Sequence[Plan],
    applications: Sequence[Application],
    options: Options,
    make: Callable[[Options], Sequence[Plan] | None],
) -> tuple[Plan, ...]:
    """The cheapest of the plans that keep the percentile in rehearsal; `first` if none is cheaper.

    Args:
        first: plans that the bounds vouch for.
        applications: theirs.
        options: that they were made with.
        make: plans for all of them with other options; None if there are none.
    """
    best = tuple(first)
    if options.arrivals is not Arrivals.POISSON or (1 - options.percentile / 100) * INVOCATIONS < LEAST_LATE:
        return best
    for risk in RISKS:
        found = make(replace(options, risk=risk))
        if found is None or not all(keeps(a, p, options) for a, p in zip(applications, found, strict=True)):
            break
        if sum(p.cost for p in found) < sum(p.cost for p in best) * (1 - 1e-9):
            best = tuple(replace(p, exact=False, lower_bound=0.0, risk=risk) for p in found)
    return best


def keeps(application: Application, plan: Plan, options: Options) -> bool:
    """Whether few enough invocations are late."""
    gaps, counts = _made_up(tuple((m.factor, m.burst) for m in application.modules))
    arrivals = np.cumsum(gaps) / plan.rate
    requests = {m.name: found for m, found in zip(application.modules, counts, strict=True)}
    late = (rehearse(application, plan, arrivals, requests) > plan.slo_s * (1 - options.margin) * (1 + 1e-9)).mean()
    return bool(late <= SPARE * (1 - options.percentile / 100))


@lru_cache(maxsize=16)
def _made_up(modules: tuple[tuple[float, int], ...]) -> tuple[Floats, tuple[NDArray[np.intp], ...]]:
    """Gaps of a Poisson stream of rate 1, and requests of each module; always the same."""
    random = np.random.default_rng(SEED)
    gaps = random.exponential(1.0, INVOCATIONS)
    return gaps, tuple(random.permutation(spread(INVOCATIONS, factor, burst)) for factor, burst in modules)


def rehearse(
    application: Application, plan: Plan, arrivals: Floats, requests: Mapping[str, NDArray[np.intp]]
) -> Floats:
    """End-to-end latency of each invocation, in seconds, stage by stage in the order of the application.

    A stage whose machine is shared, or that works in tokens, takes as long as the plan counts on.
    """
    stages = {stage.stage: stage for stage in plan.stages}
    shared = {(s.workflow, s.stage) for m in plan.shared for s in m.shares}
    shared |= {(plan.application, s.stage) for s in plan.stages if s.tokens is not None}
    until: dict[str, float] = {}
    done: dict[str, Floats] = {}
    for name in application.order:
        parents, stage = application.parents[name], stages[name]
        until[name] = max((until[p] for p in parents), default=0.0) + stage.until_s
        ready = np.maximum.reduce([done[p] for p in parents]) if parents else arrivals
        asks = requests[name] > 0
        done[name] = ready.copy()
        if (plan.application, name) in shared:
            done[name][asks] += stage.worst_s
        elif asks.any():
            done[name][asks] = _served(stage, ready, arrivals + until[name], requests[name])
    return np.asarray(np.maximum.reduce(list(done.values())) - arrivals)


def _served(stage: StagePlan, ready: Floats, due: Floats, requests: NDArray[np.intp]) -> Floats:
    """When the last request of each invocation that has any is done."""
    (allotment,) = stage.tuples
    c, owner = allotment.configuration, np.repeat(np.arange(len(ready)), requests)
    order = owner[np.argsort(ready[owner], kind="stable")]
    times, latest = ready[order], np.maximum(ready[order], due[order] - c.duration_s)
    ends = np.minimum(np.searchsorted(times, latest, side="right"), np.arange(len(times)) + c.batch).tolist()
    firsts, i = [], 0
    while i < len(ends):
        firsts.append(i)
        i = ends[i]
    first = np.array(firsts, dtype=np.intp)
    size = np.diff(np.append(first, len(times)))
    closes = np.where(size == c.batch, times[first + size - 1], latest[first])
    # a batch that is full may close before an older one that waits for its time: it goes first
    turn = np.argsort(closes, kind="stable")
    starts = np.empty_like(closes)
    starts[turn] = starting(closes[turn], c.duration_s, whole(allotment.machines))
    finished = np.full(len(ready), -np.inf)
    np.maximum.at(finished, order, np.repeat(starts + c.duration_s, size))
    return finished[requests > 0]
