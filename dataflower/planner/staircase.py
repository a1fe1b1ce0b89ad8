"""Cost against budget of a stage, as a staircase: what the exact splitter composes.

Each step is a latency that some schedule really has, with the least cost of any schedule that is as quick;
latencies rise and costs fall from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dataflower.planner.schedule import Schedule

_NEXT = 1e-7
"""The next budget to ask for lies this share below the latency of the last answer."""


@dataclass(frozen=True, slots=True)
class Stair:
    """One step: `cost` for an hour by the billing that was asked for."""

    latency_s: float
    cost: float
    schedule: Schedule


Staircase = tuple[Stair, ...]
Curves = Mapping[str, Staircase]
"""Staircase of each module by name."""


def staircase(stairs: Iterable[Stair]) -> Staircase:
    """The steps that no other is both quicker and cheaper than."""
    kept: list[Stair] = []
    for stair in sorted(stairs, key=lambda s: (s.latency_s, s.cost)):
        if not kept or stair.cost < kept[-1].cost * (1 - 1e-12):
            kept.append(stair)
    return tuple(kept)


def descend(best: Callable[[float], Schedule | None], budget_s: float) -> Staircase:
    """The staircase of a scheduler, asked with ever smaller budgets until it finds nothing.

    Exact if `best` is: a schedule for a budget is the best for all budgets down to its own latency.
    """
    found: list[Stair] = []
    while budget_s > 0 and (schedule := best(budget_s)) is not None:
        found.append(Stair(schedule.worst_s, schedule.cost, schedule))
        budget_s = min(schedule.worst_s, budget_s) * (1 - _NEXT)
    return staircase(found)


def cheapest_within(stairs: Staircase, budget_s: float) -> Stair | None:
    """The last step that fits the budget."""
    best = None
    for stair in stairs:
        if stair.latency_s > budget_s:
            break
        best = stair
    return best


def quantised(stairs: Staircase, quantum_s: float) -> Staircase:
    """The same with every latency raised to a multiple of `quantum_s`."""
    raised = (Stair(math.ceil(s.latency_s / quantum_s - 1e-9) * quantum_s, s.cost, s.schedule) for s in stairs)
    return staircase(raised)
