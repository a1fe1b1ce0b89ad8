"""Cost against budget of a stage, as a staircase: what the exact splitter composes.

Each step is a latency that some schedule really has, with the least cost of any schedule that is as quick;
latencies rise and costs fall from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dataflower.planner.schedule import Schedule


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


def descend(best: Callable[[float], Schedule | None], budgets_s: Iterable[float]) -> Staircase:
    """The staircase of a scheduler, asked for these budgets from the largest down until it finds nothing.

    A schedule for a budget is the best for all budgets down to its own latency, so those are not asked for again. With
    dummy requests cost falls without steps as the budget grows; that is why somebody has to say which budgets matter.
    """
    found: list[Stair] = []
    for budget in sorted(budgets_s, reverse=True):
        if found and budget >= found[-1].latency_s:
            continue
        schedule = best(budget)
        if schedule is None:
            break
        found.append(Stair(schedule.worst_s, schedule.cost, schedule))
    return staircase(found)


def quantised(stairs: Staircase, quantum_s: float) -> Staircase:
    """The same with every latency raised to a multiple of `quantum_s`."""
    raised = (Stair(math.ceil(s.latency_s / quantum_s - 1e-9) * quantum_s, s.cost, s.schedule) for s in stairs)
    return staircase(raised)
