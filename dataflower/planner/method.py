"""One method at work: `Options` applied to a problem gives the schedule of every module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dataflower.planner import bounds, group, optimal, stochastic, traced
from dataflower.planner.answers import curve, percentile_of, within
from dataflower.planner.bursts import Steps, bursts_of
from dataflower.planner.exact import compose
from dataflower.planner.options import Arrivals, Billing, Options, Scheduler, Splitter
from dataflower.planner.reassign import reassign
from dataflower.planner.schedule import Schedule, generate, with_dummies
from dataflower.planner.split import Budgets, Problem, estimate, split
from dataflower.planner.staircase import Stair, Staircase, descend, quantised, staircase


@dataclass(frozen=True, slots=True)
class Solution:
    """A schedule for each module; `lower_bound` is set by the exact splitter."""

    schedules: Mapping[str, Schedule]
    lower_bound: float = 0.0
    exact: bool = False
    second_worth: Mapping[str, float] = field(default_factory=dict)

    def cost(self, billing: Billing) -> float:
        """For an hour."""
        if billing is Billing.USE:
            return sum(s.cost for s in self.schedules.values())
        return sum(s.integer_cost for s in self.schedules.values())


def solve(problem: Problem, options: Options) -> Solution | None:
    """The schedules that the method finds; None if it finds none within the SLO."""
    if options.splitter is Splitter.EXACT or options.scheduler is Scheduler.GROUP:
        return _solve_exact(problem, options)
    found = [_solve_greedy(problem, options, options.splitter)]
    if options.cost_direct and options.splitter is not Splitter.COST:
        found.append(_solve_greedy(problem, options, Splitter.COST))
    usable = [s for s in found if s is not None]
    return min(usable, key=lambda s: s.cost(options.billing), default=None)


def curves(problem: Problem, options: Options) -> dict[str, Staircase]:
    """The staircase of every module under the scheduler of the options."""
    return within({name: _curve(problem, options, name) for name in problem.rates}, problem.caps)


def _curve(problem: Problem, options: Options, name: str) -> Staircase:
    configurations, rate = problem.configurations[name], problem.rates[name]
    if name in problem.tokens and options.scheduler is Scheduler.GROUP:
        found = curve(problem.tokens[name], rate, percentile_of(options, len(problem.rates)))
        return tuple(s for s in found if bounds.fits(s.latency_s, problem.slo_s))
    if options.arrivals is not Arrivals.PACED:
        return _percentile_curve(problem, options, name)
    if options.scheduler is Scheduler.GROUP:
        return group.curve(configurations, rate, options.billing, problem.slo_s, steps(problem, options, name))
    budgets = {problem.slo_s * i / options.quanta for i in range(1, options.quanta + 1)}
    budgets |= {b for c in configurations if (b := estimate(options, c, rate)) <= problem.slo_s}
    if options.scheduler is Scheduler.OPTIMAL:
        return descend(lambda budget: optimal.best_schedule(configurations, rate, budget), budgets)
    return descend(lambda budget: _schedule(problem, options, name, budget), budgets)


def steps(problem: Problem, options: Options, name: str) -> Steps | None:
    """How requests come to a stage where invocations are evenly spaced; None if the requests are taken to be, too."""
    if not options.bursts or options.arrivals is not Arrivals.PACED or options.scheduler is not Scheduler.GROUP:
        return None
    found = bursts_of(problem.application).get(name)
    if found is None:
        return None
    return replace(found, rate=problem.rates[name] / problem.application.module(name).factor)


def _percentile_curve(problem: Problem, options: Options, name: str) -> Staircase:
    """Whole machines for all but the stage's part of the invocations that may be late."""
    configurations, demand = problem.configurations[name], demand_of(problem, options, name)
    if problem.trace is not None:
        found = traced.curve(configurations, demand, problem.trace)
    else:
        found = stochastic.curve(configurations, demand)
    return tuple(s for s in found if bounds.fits(s.latency_s, problem.slo_s))


def demand_of(problem: Problem, options: Options, name: str) -> stochastic.Demand:
    """What a stage is asked where arrivals are random."""
    module = problem.application.module(name)
    late = min(0.5, stochastic.late_share(options.percentile, len(problem.rates)) * options.risk)
    return stochastic.Demand(problem.rates[name], module.factor, module.burst, late)


def _solve_exact(problem: Problem, options: Options) -> Solution | None:
    stairs = curves(problem, options)
    if options.splitter is not Splitter.EXACT:
        budgets = _budgets(problem, options, options.splitter)
        if budgets is None:
            return None
        stairs = {
            name: tuple(s for s in found if bounds.fits(s.latency_s, budgets[name])) for name, found in stairs.items()
        }
    found = compose(problem.application, stairs, problem.slo_s, options.max_points)
    if found is None:
        return None
    schedules = {name: stair.schedule for name, stair in found.stairs.items()}
    return Solution(schedules, found.lower_bound, found.exact, found.second_worth)


def _solve_greedy(problem: Problem, options: Options, splitter: Splitter) -> Solution | None:
    budgets = _budgets(problem, options, splitter)
    if budgets is None:
        return None
    schedules: dict[str, Schedule] = {}
    waiting = []
    for name, budget in budgets.items():
        found = _schedule(problem, options, name, budget)
        if found is None:
            waiting.append(name)
        else:
            schedules[name] = found
    for name in waiting:  # the residual does not fit its budget: it may take what the split left over
        taken = {n: schedules[n].worst_s if n in schedules else budgets[n] for n in budgets}
        budget = budgets[name] + problem.slo_s - problem.application.through(taken)[name]
        found = _schedule(problem, options, name, budget) or _filled(problem, options, name, budget)
        if found is None:
            return None
        schedules[name] = found
    ordered = {name: schedules[name] for name in budgets}
    return Solution(reassign(problem, ordered, options))


def _schedule(problem: Problem, options: Options, name: str, budget_s: float) -> Schedule | None:
    search = with_dummies if options.dummy else generate
    return search(problem.configurations[name], problem.rates[name], budget_s, options.dispatch, options.max_tuples)


def _filled(problem: Problem, options: Options, name: str, budget_s: float) -> Schedule | None:
    """A last machine that runs batches as they come, partly filled, and is billed as if they were full."""
    return with_dummies(
        problem.configurations[name], problem.rates[name], budget_s, options.dispatch, options.max_tuples
    )


def _budgets(problem: Problem, options: Options, splitter: Splitter) -> Budgets | None:
    if splitter is not Splitter.QUANTISED:
        return split(problem, options, splitter)
    quantum = problem.slo_s / options.quanta
    stairs = {name: quantised(_estimates(problem, options, name), quantum) for name in problem.rates}
    found = compose(problem.application, stairs, problem.slo_s, options.max_points)
    return None if found is None else {name: stair.latency_s for name, stair in found.stairs.items()}


def _estimates(problem: Problem, options: Options, name: str) -> Staircase:
    """The staircase that a splitter sees before anyone knows the tuples: one configuration for the whole stage."""
    rate = problem.rates[name]
    return staircase(
        Stair(estimate(options, c, rate), rate / c.throughput * c.price, Schedule(()))
        for c in problem.configurations[name]
    )


def restricted(problem: Problem, hardware: str) -> Problem | None:
    """The same with one kind of device; None if a module can't run on it."""
    found = {n: tuple(c for c in cs if c.hardware == hardware) for n, cs in problem.configurations.items()}
    return replace(problem, configurations=found) if all(found.values()) else None
