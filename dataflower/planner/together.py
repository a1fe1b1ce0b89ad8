"""Several workflows on one set of machines: each planned for its own SLO, their partial machines packed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataflower.errors import InvalidArgument
from dataflower.planner.assemble import Draft, assemble, packs
from dataflower.planner.nearest import explain as explained
from dataflower.planner.options import Arrivals, Billing, Options
from dataflower.planner.pack import Machine
from dataflower.planner.question import Question
from dataflower.planner.rehearse import tighten
from dataflower.planner.result import Infeasible, Plan


@dataclass(frozen=True, slots=True)
class Tenant:
    """One workflow among others: a question with its own rate and SLO."""

    question: Question
    rate: float
    slo_s: float


@dataclass(frozen=True, slots=True)
class Together:
    """Plans in the order of the tenants. A machine that several of them share is in the `shared` of each."""

    plans: tuple[Plan, ...]

    @property
    def cost(self) -> float:
        """Of all of them for an hour."""
        return sum(plan.cost for plan in self.plans)

    @property
    def shared(self) -> tuple[Machine, ...]:
        """Machines that several stages share, each once."""
        return tuple(dict.fromkeys(m for plan in self.plans for m in plan.shared))


def plan_together(tenants: Sequence[Tenant], options: Options, *, explain: bool = True) -> Together | Infeasible:
    """The cheapest of two ways: every stage cheap alone with whole machines, or cheap by use; then packed.

    Without packing (`packs`) the plans are those that each workflow would get alone.

    Raises:
        InvalidArgument: no tenants, two of one name, or a rate or SLO that is not positive.
        NotFound: a model has no profile.
    """
    names = [tenant.question.application.name for tenant in tenants]
    if not names or len(set(names)) < len(names):
        raise InvalidArgument("workflows that are planned together need names of their own")
    by_use = packs(options) and options.arrivals is Arrivals.PACED
    ways = [options, replace(options, billing=Billing.USE)] if by_use else [options]
    found: list[Together] = []
    problems = [tenant.question.problem(tenant.rate, tenant.slo_s) for tenant in tenants]

    def make(others: Options) -> tuple[Plan, ...] | None:
        drafts = []
        for tenant, problem in zip(tenants, problems, strict=True):
            solution = tenant.question.solve(problem, others)
            if solution is None:
                return None
            drafts.append(Draft(problem, tenant.rate, solution))
        return assemble(drafts, options)

    for way in ways:
        drafts = []
        for tenant, problem in zip(tenants, problems, strict=True):
            solution = tenant.question.solve(problem, way)
            if solution is None:
                break
            drafts.append(Draft(problem, tenant.rate, solution))
        if solution is None:
            if way is options:
                return explained(tenant.question, problem, tenant.rate, search=explain)
            continue  # what is busy by the average only has no machines to stand by for what comes at once
        plans = assemble(drafts, options)
        if options.tighten:
            plans = tighten(plans, [tenant.question.application for tenant in tenants], options, make)
        found.append(Together(plans))
    return min(found, key=lambda t: t.cost)
