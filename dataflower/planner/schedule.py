"""How many machines of which configuration a stage needs, for its rate and its budget (the published scheduler).

`generate` takes the best configuration that still fits the budget, tuple after tuple; `with_dummies` asks whether a few
requests that nobody sent would make that cheaper. The readings are in docs/planner.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dataflower.planner import bounds
from dataflower.planner.options import Dispatch
from dataflower.planner.profile import Configuration
from dataflower.planner.tokens import TokenPlan

ROUNDING = 1e-9
"""Machines and requests a second below this are rounding, not load."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """A tuple: `machines` (perhaps fractional) in one configuration, serving `rate`, each request within `worst_s`."""

    configuration: Configuration
    machines: float
    rate: float
    worst_s: float
    tokens: TokenPlan | None = None
    """How a stage that works in tokens keeps them."""

    @property
    def cost(self) -> float:
        """By use: machines times price for an hour."""
        return self.machines * self.configuration.price

    @property
    def integer_cost(self) -> float:
        """With whole machines."""
        return whole(self.machines) * self.configuration.price


@dataclass(frozen=True, slots=True)
class Schedule:
    """The tuples of one stage, best ranked first. `dummy_rate` of their rate is requests that nobody sent."""

    allotments: tuple[Allotment, ...]
    dummy_rate: float = 0.0

    @property
    def cost(self) -> float:
        """For an hour, by use."""
        return sum(a.cost for a in self.allotments)

    @property
    def integer_cost(self) -> float:
        """For an hour, with whole machines; tuples of one configuration share theirs."""
        machines: dict[Configuration, float] = {}
        for a in self.allotments:
            machines[a.configuration] = machines.get(a.configuration, 0.0) + a.machines
        return sum(whole(n) * c.price for c, n in machines.items())

    @property
    def worst_s(self) -> float:
        """Worst-case latency of the stage."""
        return max(a.worst_s for a in self.allotments)


def whole(machines: float) -> int:
    """Rounded up, rounding errors aside."""
    return max(1, math.ceil(machines - ROUNDING))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of `generate`: what was left, and which configuration (by rank) took it; None if none could."""

    remaining: float
    chosen: int | None


@dataclass(slots=True)
class _Draft:
    allotments: list[Allotment] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def generate(
    configurations: Sequence[Configuration],
    rate: float,
    budget_s: float,
    dispatch: Dispatch = Dispatch.TC,
    max_tuples: int | None = None,
) -> Schedule | None:
    """The greedy schedule; None if nothing fits. `configurations` must be ranked; rates in requests a second."""
    return _generate(configurations, rate, budget_s, dispatch, max_tuples)[0]


def _generate(
    configurations: Sequence[Configuration], rate: float, budget_s: float, dispatch: Dispatch, max_tuples: int | None
) -> tuple[Schedule | None, list[Step]]:
    if max_tuples == 1:
        return _one_tuple(configurations, rate, budget_s, dispatch)
    draft, remaining = _Draft(), rate
    while remaining > ROUNDING * rate:
        last = max_tuples is not None and len(draft.allotments) == max_tuples - 1
        found: list[Allotment] = []
        for rank, c in enumerate(configurations):
            found = _take(c, remaining, budget_s, dispatch, last=last)
            if found:
                draft.steps.append(Step(remaining, rank))
                break
        if not found:
            draft.steps.append(Step(remaining, None))
            return None, draft.steps
        draft.allotments += found
        remaining -= sum(a.rate for a in found)
    return Schedule(tuple(draft.allotments)), draft.steps


def _one_tuple(
    configurations: Sequence[Configuration], rate: float, budget_s: float, dispatch: Dispatch
) -> tuple[Schedule | None, list[Step]]:
    for rank, c in enumerate(configurations):
        worst = bounds.whole_stage(dispatch, c, rate)
        if bounds.fits(worst, budget_s):
            return Schedule((Allotment(c, rate / c.throughput, rate, worst),)), [Step(rate, rank)]
    return None, [Step(rate, None)]


def _take(c: Configuration, remaining: float, budget_s: float, dispatch: Dispatch, *, last: bool) -> list[Allotment]:
    """What `c` serves of the remaining rate: full machines, or one in part; the last tuple serves all of it."""
    machines = math.floor(remaining / c.throughput + ROUNDING)
    found = []
    if machines:
        worst = bounds.full_machines(dispatch, c, machines, remaining)
        found.append(Allotment(c, float(machines), machines * c.throughput, worst))
    rest = remaining - machines * c.throughput
    if (not machines or last) and rest > ROUNDING * remaining:
        found.append(Allotment(c, rest / c.throughput, rest, bounds.last_machine(dispatch, c, rest)))
    if not all(bounds.fits(a.worst_s, budget_s) for a in found):
        return []
    if last and len(found) == 2:
        rate, worst = sum(a.rate for a in found), max(a.worst_s for a in found)
        return [Allotment(c, rate / c.throughput, rate, worst)]
    return found


def with_dummies(
    configurations: Sequence[Configuration],
    rate: float,
    budget_s: float,
    dispatch: Dispatch = Dispatch.TC,
    max_tuples: int | None = None,
) -> Schedule | None:
    """`generate` at the rate, or at a little more where that is cheaper (or the only way)."""
    best, steps = _generate(configurations, rate, budget_s, dispatch, max_tuples)
    for extra in sorted(set(_dummy_rates(configurations, rate, budget_s, steps))):
        found = generate(configurations, rate + extra, budget_s, dispatch, max_tuples)
        if found is not None and (best is None or found.cost < best.cost * (1 - bounds.TOLERANCE)):
            best = Schedule(found.allotments, extra)
    return best


def _dummy_rates(
    configurations: Sequence[Configuration], rate: float, budget_s: float, steps: Sequence[Step]
) -> Iterator[float]:
    """Rates that make a better ranked configuration usable at a step, or fill its last machine."""
    for step in steps:
        better = configurations if step.chosen is None else configurations[: step.chosen]
        for c in better:
            if c.duration_s < budget_s:
                extra = c.batch / (budget_s - c.duration_s) - step.remaining
                if extra > ROUNDING * rate:
                    yield extra * (1 + bounds.TOLERANCE)
            fill = math.ceil(rate / c.throughput - ROUNDING) * c.throughput - rate
            if fill > ROUNDING * rate:
                yield fill


def regenerate_residual(
    schedule: Schedule,
    configurations: Sequence[Configuration],
    budget_s: float,
    dispatch: Dispatch,
    max_tuples: int | None,
) -> Schedule | None:
    """The same first tuple with another residual, for a larger budget; None if there is no residual or no way.

    Where dummy requests fill the residual, the stage is scheduled anew: with more time it may do without them.
    """
    if schedule.dummy_rate > 0:
        real = sum(a.rate for a in schedule.allotments) - schedule.dummy_rate
        return with_dummies(configurations, real, budget_s, dispatch, max_tuples)
    head = schedule.allotments[0]
    keep: tuple[Allotment, ...] = (head,) if head.machines >= 1 and len(schedule.allotments) > 1 else ()
    rest = schedule.allotments[len(keep) :]
    rate = sum(a.rate for a in rest)
    if not keep and len(rest) == 1 and rest[0].machines >= 1:
        return None
    left = None if max_tuples is None else max_tuples - len(keep)
    found = generate(configurations, rate, budget_s, dispatch, left)
    return None if found is None else Schedule(keep + found.allotments, schedule.dummy_rate)
