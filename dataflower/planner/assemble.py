"""From the schedules of stages to plans: budgets, shared machines, and what it all costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dataflower.planner import bounds
from dataflower.planner.method import Solution, demand_of, steps
from dataflower.planner.options import Arrivals, Billing, Options, Scheduler
from dataflower.planner.pack import Key, Machine, Worst, pack
from dataflower.planner.result import Plan, StagePlan
from dataflower.planner.schedule import Allotment
from dataflower.planner.split import Problem


@dataclass(slots=True)
class Draft:
    """The schedules of one application, on their way to a plan."""

    problem: Problem
    rate: float
    solution: Solution
    worst: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.worst = {name: schedule.worst_s for name, schedule in self.solution.schedules.items()}

    @property
    def budgets(self) -> dict[str, float]:
        """Equal stretching: a path's budgets sum up to at most the SLO, as each is divided by the longest path."""
        through = self.problem.application.through(self.worst)
        return {name: max(worst, worst * self.problem.slo_s / through[name]) for name, worst in self.worst.items()}

    @property
    def name(self) -> str:
        """Of the application."""
        return self.problem.application.name


def packs(options: Options) -> bool:
    """Whether partial machines share."""
    return (
        options.billing is Billing.INTEGER
        and options.scheduler is Scheduler.GROUP
        and options.arrivals is not Arrivals.TRACED
        and options.pack
    )


def assemble(drafts: Sequence[Draft], options: Options) -> tuple[Plan, ...]:
    """A plan for each draft; machines are shared among all of them. Names of applications must differ."""
    machines = _packed(drafts, options) if packs(options) else ()
    plans = []
    for draft in drafts:
        own = tuple(m for m in machines if any(s.workflow == draft.name for s in m.shares))
        plans.append(_plan(draft, options, own))
    return tuple(plans)


def _packed(drafts: Sequence[Draft], options: Options) -> tuple[Machine, ...]:
    """Machines that partial ones of several stages share; `worst` of those stages is brought up to date."""
    tuples: dict[Key, Allotment] = {
        (draft.name, stage, i): a
        for draft in drafts
        for stage, schedule in draft.solution.schedules.items()
        for i, a in enumerate(schedule.allotments)
        if a.tokens is None  # a model keeps its weights and its keys and values: it takes no turns
    }
    fixed = {
        (draft.name, stage): draft.worst[stage]
        for draft in drafts
        for stage, schedule in draft.solution.schedules.items()
        if any(a.tokens is not None for a in schedule.allotments)
    }

    def keeps(worst: Worst) -> bool:
        worst = {**fixed, **worst}
        return all(
            bounds.fits(
                draft.problem.application.longest({name: worst[draft.name, name] for name in draft.worst}),
                draft.problem.slo_s,
            )
            for draft in drafts
        )

    demands = None
    if options.arrivals is Arrivals.POISSON:
        demands = {(d.name, stage): demand_of(d.problem, options, stage) for d in drafts for stage in d.worst}
    coming = {
        (d.name, stage): found for d in drafts for stage in d.worst if (found := steps(d.problem, options, stage))
    }
    machines, worst = pack(tuples, keeps, demands, coming)
    worst = {**fixed, **worst}
    for draft in drafts:
        draft.worst = {name: worst[draft.name, name] for name in draft.worst}
    return tuple(m for m in machines if len(m.shares) > 1)


def _plan(draft: Draft, options: Options, shared: tuple[Machine, ...]) -> Plan:
    problem, found, worst, budgets = draft.problem, draft.solution, draft.worst, draft.budgets
    use, integer = found.cost(Billing.USE), found.cost(Billing.INTEGER)
    for machine in shared:  # each share was counted as a machine of its own; it pays for its part of the cycle
        for share in machine.shares:
            if share.workflow == draft.name:
                integer -= machine.price * (1 - share.duration_s / machine.cycle_s)
    stages = tuple(
        StagePlan(
            name,
            problem.rates[name],
            budgets[name],
            worst[name],
            found.schedules[name].allotments,
            found.schedules[name].dummy_rate,
            found.second_worth.get(name, 0.0),
        )
        for name in problem.application.order
    )
    return Plan(
        draft.name,
        draft.rate,
        problem.promise_s,
        stages,
        problem.application.longest(worst),
        use,
        integer,
        use if options.billing is Billing.USE else integer,
        0.0 if packs(options) else found.lower_bound,
        found.exact and not packs(options),
        problem.application.longest_path(worst),
        shared,
        100.0 if options.arrivals is Arrivals.PACED else options.percentile,
    )
