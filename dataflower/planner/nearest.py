"""Why there is no plan, and the nearest SLO and rate for which there is one: both have been planned."""

from __future__ import annotations

import math
from collections.abc import Callable

from dataflower.planner.answers import least_s, percentile_of
from dataflower.planner.options import Arrivals
from dataflower.planner.question import Question
from dataflower.planner.result import Infeasible
from dataflower.planner.split import Problem, estimate


def explain(asked: Question, problem: Problem, rate: float, *, search: bool) -> Infeasible:
    """Which stage binds; and, if `search`, the nearest SLO and rate that can be kept."""
    least = _least(asked, problem)
    path = problem.application.longest_path(least)
    return Infeasible(
        problem.application.name,
        rate,
        problem.promise_s,
        max(path, key=lambda name: least[name]),
        path,
        sum(least[name] for name in path),
        _nearest_slo(asked, problem) if search else None,
        _nearest_rate(asked, rate, problem.promise_s) if search else None,
    )


def _least(asked: Question, problem: Problem) -> dict[str, float]:
    """The least latency of each stage, by what the method reckons with."""
    if asked.options.arrivals is not Arrivals.PACED:  # what bursts add, more machines can make as short as one likes
        found = {name: min(c.duration_s for c in cs) for name, cs in problem.configurations.items()}
    else:
        found = {
            name: min(estimate(asked.options, c, problem.rates[name]) for c in cs)
            for name, cs in problem.configurations.items()
        }
    percentile = percentile_of(asked.options, len(problem.rates))
    return found | {name: least_s(stage, problem.rates[name], percentile) for name, stage in problem.tokens.items()}


def _nearest_slo(asked: Question, problem: Problem) -> float | None:
    """Bisection; what is returned has been planned."""
    low, high = problem.promise_s, problem.promise_s
    for _ in range(40):
        high *= 2
        if asked.solve(problem.promising(high)) is not None:
            break
        low = high
    else:
        return None
    while high > low * 1.001:
        middle = (low + high) / 2
        if asked.solve(problem.promising(middle)) is not None:
            high = middle
        else:
            low = middle
    return short(high * 1000, +1, lambda ms: asked.solve(problem.promising(ms / 1000)) is not None) / 1000


def _nearest_rate(asked: Question, rate: float, slo_s: float) -> float | None:
    """The nearest by factor, up or down, to 1 %: more requests fill batches sooner, fewer need fewer machines."""

    def works(factor: float) -> bool:
        return asked.solve(asked.problem(rate * factor, slo_s)) is not None

    for exponent in range(1, 15):
        step = 1.5**exponent
        for good in (1 / step, step):
            if works(good):
                bad, found = (good / 1.5 if good > 1 else good * 1.5), good
                while max(found / bad, bad / found) > 1.01:
                    middle = (found * bad) ** 0.5
                    found, bad = (middle, bad) if works(middle) else (found, middle)
                away = 1 if good > 1 else -1
                return short(rate * found, away, lambda value: works(value / rate))
    return None


def short(value: float, away: int, works: Callable[[float], bool]) -> float:
    """The same with as few digits as it can be said with (four at least), a little further away from what fails.

    People type what they are told: what is printed must be feasible, too.
    """
    for digits in range(4, 10):
        unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
        rounded = round(value / unit)
        if (rounded * unit - value) * away < 0:
            rounded += away
        short = float(f"{rounded * unit:.{digits}g}")
        if works(short):
            return short
    return value
