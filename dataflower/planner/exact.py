"""The cheapest split of the SLO: exact composition of the staircases of all modules.

1. `price` values a second at each module. That gives a lower bound, and choices that keep the SLO.
2. Those choices are improved step by step: an upper bound. Often the two meet, and nothing is left to do.
3. Modules in series and in parallel are put together, two at a time, into the staircase of both (min-plus
   composition over breakpoints, no quantisation). A step is dropped if another is quicker and cheaper, if it is too
   slow for the rest of the application, or if its cost at the prices alone exceeds the gap between the bounds.
4. What is neither in series nor in parallel is enumerated, under the same bound.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dataflower.planner import bounds
from dataflower.planner.application import Application
from dataflower.planner.network import Network, network
from dataflower.planner.optimal import solve_milp
from dataflower.planner.price import Prices, prices
from dataflower.planner.staircase import Curves, Stair

_MILP_STAGES = 24
_MAX_PRODUCT = 2_000_000
_MAX_TRIES = 20_000
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Composition:
    """A step for each module. No choice costs less than `lower_bound`; `exact` if none costs less than this one."""

    stairs: Mapping[str, Stair]
    cost: float
    lower_bound: float
    exact: bool
    second_worth: Mapping[str, float]
    """What a second more for this module alone would save, in cost for an hour (from the prices of latency)."""


@dataclass(frozen=True, slots=True)
class _Front:
    """The staircase of a part of the network, with the way back to the steps of its modules."""

    tail: int
    head: int
    latency: Floats
    cost: Floats
    flow: float
    least: float
    module: str = ""
    parts: tuple[_Front, ...] = ()
    picks: tuple[Indices, ...] = ()

    def choices(self, i: int) -> Iterator[tuple[str, int]]:
        """Module and step number behind step `i`."""
        if self.module:
            yield self.module, int(self.picks[0][i])
        for part, pick in zip(self.parts, self.picks, strict=False):
            yield from part.choices(int(pick[i]))

    def at(self, steps: Indices) -> _Front:
        """The same part with these of its steps alone."""
        picks = tuple(pick[steps] for pick in self.picks)
        return replace(self, latency=self.latency[steps], cost=self.cost[steps], picks=picks)


def compose(application: Application, curves: Curves, slo_s: float, max_points: int = 4096) -> Composition | None:
    """The cheapest choice of one step for each module so that no path is longer than the SLO; None if there is none."""
    if not all(curves.values()):
        return None
    net = network(application)
    value = prices(net, curves, slo_s)
    if value is None:
        return None
    first = _improve(application, curves, _start(application, curves, value, slo_s), slo_s)
    search = _Search(net, curves, slo_s, value, first, max_points)
    if search.gap > bounds.TOLERANCE * search.cost:
        search.run()
        if not search.exact and len(curves) <= _MILP_STAGES:
            _ask_highs(application, search)
    stairs = {name: curves[name][i] for name, i in search.best.items()}
    bound = search.cost if search.exact else max(value.bound, 0.0)
    worth = {arc.module: flow for arc, flow in zip(net.arcs, value.flow, strict=True) if arc.module}
    return Composition(stairs, search.cost, bound, search.exact, worth)


def _ask_highs(application: Application, search: _Search) -> None:
    """Settle what enumeration could not: with the few steps that are still worth keeping, by HiGHS.

    Its tolerances let a path exceed the SLO by a hair, so a choice of its own is taken only if it really fits; but
    nothing that fits costs less than its optimum.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for arc, front in zip(search.net.arcs, search.fronts(), strict=True):
        if arc.module:
            kept[arc.module] = tuple(int(i) for i in front.picks[0])
    if not all(kept.values()):
        search.exact = True
        return
    curves = {name: tuple(search.curves[name][i] for i in steps) for name, steps in kept.items()}
    found = solve_milp(application, curves, search.slo_s)
    if found is None or found[0] >= search.cost * (1 - bounds.TOLERANCE):
        search.exact = True
        return
    choice = {name: kept[name][i] for name, i in found[1].items()}
    if bounds.fits(application.longest(_latencies(search.curves, choice)), search.slo_s):
        search.best, search.cost, search.exact = choice, found[0], True


def _start(application: Application, curves: Curves, value: Prices, slo_s: float) -> dict[str, int]:
    """The choices at the prices; the quickest ones should rounding have spoilt those."""
    index = {name: {s.latency_s: i for i, s in enumerate(stairs)} for name, stairs in curves.items()}
    start = {name: index[name][value.latency_s[name]] for name in curves}
    if bounds.fits(application.longest(_latencies(curves, start)), slo_s):
        return start
    return dict.fromkeys(curves, 0)


def _latencies(curves: Curves, choice: Mapping[str, int]) -> dict[str, float]:
    return {name: curves[name][i].latency_s for name, i in choice.items()}


def _improve(application: Application, curves: Curves, choice: dict[str, int], slo_s: float) -> dict[str, int]:
    """Take the single step that saves the most, while there is one within the SLO."""
    while True:
        through = application.through(_latencies(curves, choice))
        best: tuple[float, str, int] | None = None
        for name, at in choice.items():
            now = curves[name][at]
            for i in range(len(curves[name]) - 1, at, -1):
                stair = curves[name][i]
                if bounds.fits(through[name] + stair.latency_s - now.latency_s, slo_s):
                    if best is None or now.cost - stair.cost > best[0]:
                        best = (now.cost - stair.cost, name, i)
                    break
        if best is None:
            return choice
        choice[best[1]] = best[2]


@dataclass(slots=True)
class _Search:
    """The search for something cheaper than `best`."""

    net: Network
    curves: Curves
    slo_s: float
    prices: Prices
    best: dict[str, int]
    max_points: int
    exact: bool = True
    cost: float = field(init=False)
    until: list[float] = field(init=False)
    after: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.cost = sum(self.curves[name][i].cost for name, i in self.best.items())
        quickest = {name: stairs[0].latency_s for name, stairs in self.curves.items()}
        self.until, self.after = self.net.until(quickest), self.net.after(quickest)

    @property
    def gap(self) -> float:
        """What a cheaper plan could still save."""
        return self.cost - self.prices.bound

    def fronts(self) -> list[_Front]:
        """The steps of each arc that a cheaper plan may use."""
        fronts = []
        for arc, flow, least in zip(self.net.arcs, self.prices.flow, self.prices.least, strict=True):
            stairs = self.curves.get(arc.module, ())
            latency = np.array([s.latency_s for s in stairs] or [0.0])
            cost = np.array([s.cost for s in stairs] or [0.0])
            front = _Front(arc.tail, arc.head, latency, cost, flow, least, arc.module, (), (np.arange(len(cost)),))
            fronts.append(self._kept(front))
        return fronts

    def run(self) -> None:
        """Compose, then enumerate what is left."""
        fronts = self._reduce(self.fronts())
        if all(len(front.cost) for front in fronts):
            self._enumerate(fronts)

    def _reduce(self, fronts: list[_Front]) -> list[_Front]:
        """Put together what is in series or in parallel until nothing is."""
        while True:
            parallel: dict[tuple[int, int], _Front] = {}
            for front in fronts:
                ends = (front.tail, front.head)
                parallel[ends] = self._parallel(parallel[ends], front) if ends in parallel else front
            fronts = list(parallel.values())
            entering: dict[int, list[_Front]] = {}
            leaving: dict[int, list[_Front]] = {}
            for front in fronts:
                entering.setdefault(front.head, []).append(front)
                leaving.setdefault(front.tail, []).append(front)
            inner = (n for n in range(1, self.net.moments - 1) if n in entering and n in leaving)
            node = next((n for n in inner if len(entering[n]) == 1 and len(leaving[n]) == 1), None)
            if node is None:
                return fronts
            a, b = entering[node][0], leaving[node][0]
            fronts = [front for front in fronts if front is not a and front is not b]
            fronts.append(self._series(a, b))

    def _series(self, a: _Front, b: _Front) -> _Front:
        while len(a.cost) * len(b.cost) > _MAX_PRODUCT:
            larger = max(len(a.cost), len(b.cost)) // 2
            a, b = self._coarse(a, larger), self._coarse(b, larger)
        latency = (a.latency[:, None] + b.latency).ravel()
        cost = (a.cost[:, None] + b.cost).ravel()
        flow, least = max(a.flow, b.flow), a.least + b.least
        joint = _Front(a.tail, b.head, latency, cost, flow, least)
        keep = self._worth_keeping(joint)
        pairs = np.unravel_index(keep, (len(a.cost), len(b.cost)))
        kept = _Front(a.tail, b.head, latency[keep], cost[keep], flow, least, "", (a, b), pairs)
        return self._coarse(kept, self.max_points)

    def _parallel(self, a: _Front, b: _Front) -> _Front:
        if not len(a.cost) or not len(b.cost):
            return a if not len(a.cost) else b
        latency = np.union1d(a.latency, b.latency)
        latency = latency[latency >= max(a.latency[0], b.latency[0])]
        picks = tuple(np.searchsorted(f.latency, latency, side="right") - 1 for f in (a, b))
        cost = a.cost[picks[0]] + b.cost[picks[1]]
        joint = _Front(a.tail, a.head, latency, cost, a.flow + b.flow, a.least + b.least)
        keep = self._worth_keeping(joint)
        chosen = tuple(pick[keep] for pick in picks)
        kept = _Front(a.tail, a.head, latency[keep], cost[keep], joint.flow, joint.least, "", (a, b), chosen)
        return self._coarse(kept, self.max_points)

    def _kept(self, front: _Front) -> _Front:
        return front.at(self._worth_keeping(front))

    def _worth_keeping(self, front: _Front) -> Indices:
        """The steps, by rising latency, that a plan cheaper than the best so far may use."""
        limit = (self.slo_s - self.until[front.tail] - self.after[front.head]) * (1 + bounds.TOLERANCE)
        extra = front.cost + front.flow * front.latency - front.least
        usable = np.flatnonzero((front.latency <= limit + self.slo_s * bounds.TOLERANCE) & (extra < self.gap))
        order = usable[np.lexsort((front.cost[usable], front.latency[usable]))]
        if not len(order):
            return order
        cost = front.cost[order]
        cheaper = np.empty(len(order), dtype=bool)
        cheaper[0] = True
        cheaper[1:] = cost[1:] < np.minimum.accumulate(cost)[:-1] * (1 - 1e-13)
        return order[cheaper]

    def _coarse(self, front: _Front, points: int) -> _Front:
        """At most so many steps: of neighbours in latency the cheapest. What is left out may have been the optimum."""
        if len(front.cost) <= points:
            return front
        self.exact = False
        span = np.linspace(front.latency[0], front.latency[-1], points)
        keep = np.unique(np.searchsorted(front.latency, span, side="right") - 1)
        return front.at(keep)

    def _enumerate(self, fronts: list[_Front]) -> None:
        """Try the steps of the parts that are left, within the gap.

        At each point the parts that are still open are bounded by what their time limits allow, the rest of the
        application being as quick as it can be; the part that its limit hurts most is decided next.
        """
        extra = [(f.cost + f.flow * f.latency - f.least) for f in fronts]
        latency = [f.latency.tolist() for f in fronts]
        least = [np.minimum.accumulate(e).tolist() for e in extra]
        order = [np.argsort(e, kind="stable").tolist() for e in extra]
        extras = [e.tolist() for e in extra]
        forward = sorted(range(len(fronts)), key=lambda i: fronts[i].tail)
        backward = sorted(range(len(fronts)), key=lambda i: -fronts[i].head)
        at = [steps[0] for steps in latency]
        picks = [0] * len(fronts)
        slo, tries = self.slo_s * (1 + bounds.TOLERANCE), 0

        def limits(open_: list[int]) -> dict[int, int]:
            """For each open part, how many of its steps are quick enough."""
            until, after = [0.0] * self.net.moments, [0.0] * self.net.moments
            for i in forward:
                f = fronts[i]
                until[f.head] = max(until[f.head], until[f.tail] + at[i])
            for i in backward:
                f = fronts[i]
                after[f.tail] = max(after[f.tail], after[f.head] + at[i])
            return {i: bisect_right(latency[i], slo - until[fronts[i].tail] - after[fronts[i].head]) for i in open_}

        def descend(open_: list[int], spent: float) -> None:
            nonlocal tries
            tries += 1
            if tries > _MAX_TRIES:
                self.exact = False
                return
            if not open_:
                self._record(fronts, picks)
                return
            counts = limits(open_)
            if min(counts.values()) == 0:
                return
            bound = spent + sum(least[i][counts[i] - 1] for i in open_)
            if bound >= self.gap - bounds.TOLERANCE * self.cost:
                return
            i = max(open_, key=lambda i: (least[i][counts[i] - 1] - least[i][-1], len(latency[i]), -i))
            others = [j for j in open_ if j != i]
            rest = bound - least[i][counts[i] - 1]
            for step in order[i]:
                if step >= counts[i]:
                    continue
                if rest + extras[i][step] >= self.gap - bounds.TOLERANCE * self.cost:
                    break
                at[i], picks[i] = latency[i][step], step
                descend(others, spent + extras[i][step])
            at[i] = latency[i][0]

        descend(list(range(len(fronts))), 0.0)

    def _record(self, fronts: list[_Front], picks: list[int]) -> None:
        choice = dict(pair for front, i in zip(fronts, picks, strict=True) for pair in front.choices(i))
        cost = sum(self.curves[name][i].cost for name, i in choice.items())
        if cost < self.cost * (1 - bounds.TOLERANCE):
            self.best, self.cost = choice, cost
