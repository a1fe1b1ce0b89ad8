"""Profiles, a rate and an SLO in; a `Plan` out, or an `Infeasible` that says what would be feasible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dataflower.planner.application import Application
from dataflower.planner.assemble import Draft, assemble, packs
from dataflower.planner.nearest import explain as explained
from dataflower.planner.options import Arrivals, Billing, Options
from dataflower.planner.profile import Profiles
from dataflower.planner.question import Question
from dataflower.planner.rehearse import tighten
from dataflower.planner.result import Infeasible, Plan, StagePlan
from dataflower.planner.traced import Trace

__all__ = ["OURS", "Infeasible", "Plan", "StagePlan", "plan"]

OURS = Options()


def plan(
    application: Application,
    profiles: Profiles,
    rate: float,
    slo_s: float,
    options: Options = OURS,
    *,
    batches: Mapping[str, tuple[int, ...]] | None = None,
    trace: Trace | None = None,
    explain: bool = True,
) -> Plan | Infeasible:
    """The plan of a method for `rate` invocations a second within `slo_s` seconds each.

    Args:
        application: the DAG.
        profiles: durations and prices; every model of the application must be there.
        rate: invocations a second, arriving as `options.arrivals` says.
        slo_s: end-to-end, in seconds.
        options: the method; ours if not given.
        batches: model -> batch sizes to consider besides the measured ones (interpolated, on the safe side).
        trace: recorded arrivals, for `Arrivals.TRACED`; stretched so that their mean rate is `rate`.
        explain: False leaves the nearest SLO and rate out of `Infeasible`: they take many plans to find.

    Raises:
        InvalidArgument: rate or SLO are not positive; a trace is missing or not wanted.
        NotFound: a model has no profile.
    """
    return answer(Question(application, profiles, options, batches or {}, trace), rate, slo_s, explain=explain)


def answer(asked: Question, rate: float, slo_s: float, *, explain: bool = True) -> Plan | Infeasible:
    """`plan` for a question as it is, with stages that work in tokens."""
    options, application = asked.options, asked.application
    problem = asked.problem(rate, slo_s)
    found = asked.solve(problem)
    if found is None:
        return explained(asked, problem, rate, search=explain)
    (best,) = assemble([Draft(problem, rate, found)], options)
    if options.tighten:

        def make(others: Options) -> tuple[Plan, ...] | None:
            riskier = asked.solve(problem, others)
            return None if riskier is None else assemble([Draft(problem, rate, riskier)], options)

        (best,) = tighten([best], [application], options, make)
    if packs(options) and options.arrivals is Arrivals.PACED:
        # partial machines that are cheap by use may pack better than whole ones that are cheap alone
        by_use = asked.solve(problem, replace(options, billing=Billing.USE))
        if by_use is not None:
            best = min(best, *assemble([Draft(problem, rate, by_use)], options), key=lambda p: p.cost)
    return best
