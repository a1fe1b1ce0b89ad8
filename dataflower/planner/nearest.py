"""Why there is no plan, and the nearest SLO and rate for which there is one: both have been planned."""

from __future__ import annotations

from dataclasses import replace

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
        problem.slo_s,
        max(path, key=lambda name: least[name]),
        path,
        sum(least[name] for name in path),
        _nearest_slo(asked, problem) if search else None,
        _nearest_rate(asked, rate, problem.slo_s) if search else None,
    )


def _least(asked: Question, problem: Problem) -> dict[str, float]:
    """The least latency of each stage, by what the method reckons with."""
    if asked.options.arrivals is not Arrivals.PACED:  # what bursts add, more machines can make as short as one likes
        return {name: min(c.duration_s for c in cs) for name, cs in problem.configurations.items()}
    return {
        name: min(estimate(asked.options, c, problem.rates[name]) for c in cs)
        for name, cs in problem.configurations.items()
    }


def _nearest_slo(asked: Question, problem: Problem) -> float | None:
    """Bisection; what is returned has been planned."""
    low, high = problem.slo_s, problem.slo_s
    for _ in range(40):
        high *= 2
        if asked.solve(replace(problem, slo_s=high)) is not None:
            break
        low = high
    else:
        return None
    while high > low * 1.001:
        middle = (low + high) / 2
        if asked.solve(replace(problem, slo_s=middle)) is not None:
            high = middle
        else:
            low = middle
    return high


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
                return rate * found
    return None
