"""The optimum of the published model by enumeration: the oracle that the other methods are held against.

`best_schedule` tries every sequence of tuples and every useful number of dummy requests for one stage, with bounds
that cut what can't win; `enumerate_choices` and `solve_milp` (HiGHS) find the cheapest choice of one step of each
module's staircase, each in its own way, so that they can check `exact`. Optimal means: for this model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dataflower.errors import ResourceExhausted
from dataflower.planner import bounds
from dataflower.planner.application import Application
from dataflower.planner.options import Dispatch
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import ROUNDING, Allotment, Schedule, with_dummies
from dataflower.planner.staircase import Curves

MAX_NODES = 20_000
"""Partial schedules that are looked at for one stage and one budget before the search gives up."""


def best_schedule(
    configurations: Sequence[Configuration], rate: float, budget_s: float, *, max_nodes: int = MAX_NODES
) -> Schedule | None:
    """The cheapest schedule under TC dispatch, billed by use; None if there is none.

    Raises:
        ResourceExhausted: more than `max_nodes` partial schedules would have to be looked at.
    """
    usable = [c for c in configurations if c.duration_s < budget_s]
    search = _Search(usable, rate, budget_s, max_nodes)
    start = with_dummies(configurations, rate, budget_s, Dispatch.TC)
    if start is not None:
        search.best, search.cost = start, start.cost
    search.descend(0, rate, 0.0, 0.0, ())
    return search.best


@dataclass(slots=True)
class _Search:
    """Depth first over full machines of each configuration in the order of rank, then one machine in part."""

    usable: list[Configuration]
    rate: float
    budget_s: float
    max_nodes: int
    best: Schedule | None = None
    cost: float = math.inf
    nodes: int = 0
    needs: list[float] = field(init=False)
    """For each configuration the least rate that fills its batch in time."""
    cheapest: list[float] = field(init=False)
    """For each rank the least price of a request a second from there on."""

    def __post_init__(self) -> None:
        self.needs = [self._need(c) for c in self.usable]
        self.cheapest = [1 / c.ratio for c in self.usable]

    def _need(self, c: Configuration) -> float:
        spare = self.budget_s * (1 + bounds.TOLERANCE) - c.duration_s
        if c.batch == 1 and spare >= c.duration_s:
            return 0.0
        return c.batch / spare

    def descend(
        self, rank: int, remaining: float, spent: float, dummy: float, full: tuple[tuple[int, int], ...]
    ) -> None:
        """Tuples before `rank` are decided: `spent` for them, `remaining` left, `dummy` requests a second needed."""
        self.nodes += 1
        if self.nodes > self.max_nodes:
            raise ResourceExhausted(f"no optimum within {self.max_nodes} partial schedules")
        if remaining <= ROUNDING * self.rate:
            self._keep(full, None, remaining, spent, max(dummy, -remaining))
            return
        if rank == len(self.usable) or spent + remaining * self.cheapest[rank] >= self.cost * (1 - bounds.TOLERANCE):
            return
        c, need = self.usable[rank], self.needs[rank]
        floor = math.floor(remaining / c.throughput + ROUNDING)
        for n in range(floor + 1, 0, -1):
            extra = max(dummy, need - remaining, n * c.throughput - remaining)
            after = remaining - n * c.throughput
            if after <= ROUNDING * self.rate:
                self._keep((*full, (rank, n)), None, after, spent + n * c.price, extra)
            else:
                self._last(rank, after, spent + n * c.price, extra, (*full, (rank, n)))
                self.descend(rank + 1, after, spent + n * c.price, extra, (*full, (rank, n)))
        self._last(rank, remaining, spent, dummy, full)
        self.descend(rank + 1, remaining, spent, dummy, full)

    def _last(self, rank: int, remaining: float, spent: float, dummy: float, full: tuple[tuple[int, int], ...]) -> None:
        """Finish with one machine in part, which collects the rest and the dummy requests alone."""
        c = self.usable[rank]
        extra = max(dummy, self.needs[rank] - remaining)
        load = remaining + extra
        if load <= c.throughput * (1 + ROUNDING):
            self._keep(full, rank, remaining, spent + load / c.throughput * c.price, extra)

    def _keep(
        self, full: tuple[tuple[int, int], ...], last: int | None, remaining: float, cost: float, dummy: float
    ) -> None:
        if cost >= self.cost * (1 - bounds.TOLERANCE):
            return
        dummy = max(0.0, dummy)
        left, allotments = self.rate + dummy, []
        for rank, n in full:
            c = self.usable[rank]
            worst = bounds.ranked_share(c, left)
            if not bounds.fits(worst, self.budget_s * (1 + bounds.TOLERANCE)):
                return
            allotments.append(Allotment(c, float(n), n * c.throughput, worst))
            left -= n * c.throughput
        if last is not None:
            c = self.usable[last]
            allotments.append(Allotment(c, left / c.throughput, left, bounds.ranked_share(c, left)))
        elif left > ROUNDING * self.rate:
            return
        self.best, self.cost = Schedule(tuple(allotments), dummy), cost


def enumerate_choices(application: Application, curves: Curves, slo_s: float) -> tuple[float, dict[str, int]] | None:
    """The cheapest step of every module by plain depth-first search: for small applications only."""
    names = application.order
    least = {name: stairs[-1].cost for name, stairs in curves.items()}
    rest = [sum(least[n] for n in names[i:]) for i in range(len(names) + 1)]
    latency = {name: stairs[0].latency_s for name, stairs in curves.items()}
    best: tuple[float, dict[str, int]] | None = None

    def descend(i: int, spent: float, choice: dict[str, int]) -> None:
        nonlocal best
        if best is not None and spent + rest[i] >= best[0]:
            return
        if i == len(names):
            best = (spent, dict(choice))
            return
        name = names[i]
        quickest = latency[name]
        for step in range(len(curves[name]) - 1, -1, -1):
            latency[name] = curves[name][step].latency_s
            if bounds.fits(application.longest(latency), slo_s):
                descend(i + 1, spent + curves[name][step].cost, {**choice, name: step})
        latency[name] = quickest

    descend(0, 0.0, {})
    return best


def solve_milp(application: Application, curves: Curves, slo_s: float) -> tuple[float, dict[str, int]] | None:
    """The same by HiGHS: one binary for each step, and a finishing time for each module."""
    import highspy

    highs: Any = highspy
    solver = highs.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 0.0)
    picks = {n: [solver.addBinary(obj=s.cost) for s in stairs] for n, stairs in curves.items()}
    ends = {n: solver.addVariable(lb=0.0, ub=slo_s * (1 + bounds.TOLERANCE)) for n in curves}
    for name, stairs in curves.items():
        solver.addConstr(sum(picks[name]) == 1)
        takes = sum(s.latency_s * x for s, x in zip(stairs, picks[name], strict=True))
        solver.addConstr(ends[name] >= takes)
        for parent in application.parents[name]:
            solver.addConstr(ends[name] >= ends[parent] + takes)
    solver.run()
    if solver.getModelStatus() != highs.HighsModelStatus.kOptimal:
        return None
    choice = {n: max(range(len(xs)), key=lambda i: float(solver.val(xs[i]))) for n, xs in picks.items()}
    return sum(curves[n][i].cost for n, i in choice.items()), choice
