"""Why a stage got its budget: what a little less or a little more time would cost it. Also what its tail looks like."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dataflower.planner import stochastic, traced
from dataflower.planner.method import curves
from dataflower.planner.options import Arrivals, Billing, Options
from dataflower.planner.question import Question
from dataflower.planner.result import Plan, StagePlan
from dataflower.planner.schedule import Allotment, whole
from dataflower.planner.staircase import Stair


@dataclass(frozen=True, slots=True)
class Reason:
    """One stage of a plan, and the steps beside the one that it stands on.

    Attributes:
        stage: its name.
        here: the step of the plan.
        quicker: the next step with less latency; None if there is none.
        cheaper: the next step with less cost; None if there is none.
        worth_per_ms: what another millisecond of SLO, given to this stage, would save in an hour: the price of time at
            which the split is the best (exact splitter), else 0.
        on_path: whether the stage lies on the longest path.
    """

    stage: str
    here: Stair
    quicker: Stair | None
    cheaper: Stair | None
    worth_per_ms: float
    on_path: bool

    @property
    def saves_per_ms(self) -> float:
        """What the next cheaper step saves in an hour for each millisecond that it takes longer."""
        return _slope(self.here, self.cheaper)

    @property
    def costs_per_ms(self) -> float:
        """What the next quicker step costs in an hour for each millisecond that it gains."""
        return _slope(self.quicker, self.here)


def _slope(quick: Stair | None, slow: Stair | None) -> float:
    if quick is None or slow is None:
        return 0.0
    return (quick.cost - slow.cost) / ((slow.latency_s - quick.latency_s) * 1000)


def reasons(question: Question, plan: Plan) -> tuple[Reason, ...]:
    """A reason for each stage, in the order of the plan; the steps are those of the question's scheduler."""
    options = replace(question.options, risk=plan.risk)
    problem = question.problem(plan.rate, plan.slo_s)
    stairs = curves(problem, options)
    found = []
    for stage in plan.stages:
        cost = stage.cost if options.billing is Billing.USE else _integer(stage)
        latency_s = max(t.worst_s for t in stage.tuples)
        curve = stairs[stage.stage]
        quicker = [s for s in curve if s.latency_s < latency_s * (1 - 1e-9)]
        cheaper = [s for s in curve if s.cost < cost * (1 - 1e-9)]
        here = next((s for s in curve if abs(s.latency_s - latency_s) <= 1e-9 * latency_s), None)
        found.append(
            Reason(
                stage.stage,
                here or Stair(latency_s, cost, curve[0].schedule),
                quicker[-1] if quicker else None,
                cheaper[0] if cheaper else None,
                stage.second_worth / 1000,
                stage.stage in plan.path,
            )
        )
    return tuple(found)


def _integer(stage: StagePlan) -> float:
    return sum(whole(t.machines) * t.configuration.price for t in stage.tuples)


def tail_s(question: Question, stage: StagePlan, percentile: float = 99.0) -> float:
    """The latency that `percentile` % of a stage's requests keep, as its arrivals are taken to be. An upper bound."""
    if stage.tokens is not None:
        return stage.worst_s
    late = 1 - percentile / 100
    return max(_tail(question, question.options, stage, a, late) for a in stage.tuples)


def _tail(question: Question, options: Options, stage: StagePlan, a: Allotment, late: float) -> float:
    c = a.configuration
    if options.arrivals is Arrivals.PACED:
        if c.batch == 1:
            return a.worst_s
        waits = np.arange(c.batch) / a.rate  # of the last request of a batch, of the one before it, ...
        quantile = waits[min(c.batch - 1, math.ceil((1 - late) * c.batch - 1e-9) - 1)]
        return min(a.worst_s, c.duration_s + float(quantile))
    module = question.application.module(stage.stage)
    if question.trace is None:
        demand = stochastic.Demand(a.rate, module.factor, module.burst, late)
        return stochastic.quantile(c, whole(a.machines), demand, stage.until_s)
    arrivals = question.trace.at(stage.rate / module.factor)
    requests = traced.spread(len(arrivals), module.factor, module.burst)
    latency = traced.replay(arrivals, requests, c, whole(a.machines), stage.timeout_s(c))
    return traced.percentile_of(latency, len(arrivals), late)
