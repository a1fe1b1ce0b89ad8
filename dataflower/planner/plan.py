"""Profiles, a rate and an SLO in; a `Plan` out, or an `Infeasible` that says what would be feasible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dataflower.errors import InvalidArgument
from dataflower.planner.application import Application
from dataflower.planner.method import Solution, restricted, solve
from dataflower.planner.options import Billing, Kinds, Options, Scheduler
from dataflower.planner.pack import Machine, full_part_s, pack
from dataflower.planner.profile import Profiles
from dataflower.planner.schedule import Allotment, Schedule, whole
from dataflower.planner.split import Problem, estimate

OURS = Options()


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage keeps its share of the SLO.

    Attributes:
        stage: its name.
        rate: requests a second that it must serve; the dummy requests come on top.
        budget_s: its share of the SLO; on every path the shares sum up to at most the SLO.
        worst_s: worst-case latency, at most the budget; the rest is slack for batch time-outs.
        tuples: configurations with their machines, best ranked first.
        dummy_rate: requests a second that nobody sent; they are the first to be dropped.
        second_worth: cost for an hour that one more second for this stage would save (exact splitter), else 0.
    """

    stage: str
    rate: float
    budget_s: float
    worst_s: float
    tuples: tuple[Allotment, ...]
    dummy_rate: float
    second_worth: float

    @property
    def cost(self) -> float:
        """For an hour, by use."""
        return sum(t.cost for t in self.tuples)

    @property
    def machines(self) -> float:
        """Machines in use, on the average."""
        return sum(t.machines for t in self.tuples)

    @property
    def utilisation(self) -> float:
        """Share of its whole machines that real requests keep busy."""
        real = sum(t.machines for t in self.tuples) * self.rate / (self.rate + self.dummy_rate)
        return real / sum(whole(t.machines) for t in self.tuples)


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages in the order of the application, and what they cost for an hour.

    Attributes:
        application: its name.
        rate: invocations a second.
        slo_s: the promised end-to-end latency.
        stages: one for each module.
        worst_s: worst-case latency of an invocation.
        use_cost: billed by use.
        integer_cost: billed by whole machines, after packing if that was asked for.
        cost: the one of the two that was minimised.
        lower_bound: no plan of this model costs less (exact splitter; 0 where machines are packed, which is greedy).
        exact: whether the cost is proven to be the least of this model.
        shared: machines that partial tuples of several stages share (`pack`).
        path: the path with the largest worst-case latency.
    """

    application: str
    rate: float
    slo_s: float
    stages: tuple[StagePlan, ...]
    worst_s: float
    use_cost: float
    integer_cost: float
    cost: float
    lower_bound: float
    exact: bool
    path: tuple[str, ...]
    shared: tuple[Machine, ...] = ()

    @property
    def cost_per_1000(self) -> float:
        """Cost of a thousand invocations."""
        return self.cost / 3600 / self.rate * 1000

    @property
    def headroom_s(self) -> float:
        """What the SLO leaves beyond the worst case."""
        return self.slo_s - self.worst_s


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No plan: why, and what there is instead.

    Attributes:
        stage: the stage that binds: of those on the path the one with the largest least latency.
        path: the stages whose least latencies alone exceed the SLO, or come nearest to it.
        least_s: the sum of those least latencies.
        nearest_slo_s: an SLO for which planning succeeds at this rate, at most 0.1 % above the smallest; None if none.
        nearest_rate: a rate for which planning succeeds with this SLO; None if none was found.
    """

    application: str
    rate: float
    slo_s: float
    stage: str
    path: tuple[str, ...]
    least_s: float
    nearest_slo_s: float | None
    nearest_rate: float | None

    def __str__(self) -> str:
        slo = "none" if self.nearest_slo_s is None else f"{self.nearest_slo_s * 1000:.4g} ms"
        rate = "none" if self.nearest_rate is None else f"{self.nearest_rate:.4g}/s"
        return (
            f"{self.application}: no plan keeps {self.slo_s * 1000:.4g} ms at {self.rate:g}/s; "
            f"stage {self.stage} binds on {' -> '.join(self.path)} ({self.least_s * 1000:.4g} ms at the quickest); "
            f"nearest feasible SLO {slo}, nearest feasible rate {rate}"
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    application: Application
    profiles: Profiles
    options: Options
    batches: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def problem(self, rate: float, slo_s: float) -> Problem:
        configurations = {}
        for module in self.application.modules:
            found = self.profiles.configurations(module.model, batches=self.batches.get(module.model, ()))
            configurations[module.name] = tuple(c for c in found if self.options.batching or c.batch == 1)
        rates = {m.name: rate * m.factor for m in self.application.modules}
        return Problem(self.application, rates, configurations, slo_s)


def plan(
    application: Application,
    profiles: Profiles,
    rate: float,
    slo_s: float,
    options: Options = OURS,
    *,
    batches: Mapping[str, tuple[int, ...]] | None = None,
    explain: bool = True,
) -> Plan | Infeasible:
    """The plan of a method for `rate` invocations a second within `slo_s` seconds each.

    Args:
        application: the DAG.
        profiles: durations and prices; every model of the application must be there.
        rate: invocations a second, evenly spaced.
        slo_s: end-to-end, in seconds.
        options: the method; ours if not given.
        batches: model -> batch sizes to consider besides the measured ones (interpolated, on the safe side).
        explain: False leaves the nearest SLO and rate out of `Infeasible`: they take many plans to find.

    Raises:
        InvalidArgument: rate or SLO are not positive.
        NotFound: a model has no profile.
    """
    if not rate > 0:
        raise InvalidArgument(f"rate must be greater than 0, not {rate}")
    if not slo_s > 0:
        raise InvalidArgument(f"the SLO must be greater than 0 s, not {slo_s}")
    asked = _Asked(application, profiles, options, batches or {})
    problem = asked.problem(rate, slo_s)
    found = _solve(problem, options)
    if found is not None:
        best = _assemble(problem, rate, found, options)
        if _packs(
            options
        ):  # partial machines that are cheap by use may pack better than whole ones that are cheap alone
            by_use = _solve(problem, replace(options, billing=Billing.USE))
            other = best if by_use is None else _assemble(problem, rate, by_use, options)
            best = min(best, other, key=lambda p: p.cost)
        return best
    return _explain(asked, problem, rate, search=explain)


def _solve(problem: Problem, options: Options) -> Solution | None:
    if options.kinds is Kinds.ANY:
        return solve(problem, options)
    kinds = sorted({(c.price, c.hardware) for cs in problem.configurations.values() for c in cs})
    usable = [(hw, p) for _, hw in kinds if (p := restricted(problem, hw)) is not None]
    if not usable:
        return None
    if options.kinds is Kinds.CHEAPEST:
        return solve(usable[0][1], options)
    if options.kinds is Kinds.FASTEST:
        fastest = min(usable, key=lambda pair: _quickest(pair[1]))
        return solve(fastest[1], options)
    found = [s for _, p in usable if (s := solve(p, options)) is not None]
    return min(found, key=lambda s: s.cost(options.billing), default=None)


def _quickest(problem: Problem) -> float:
    return problem.application.longest({n: min(c.duration_s for c in cs) for n, cs in problem.configurations.items()})


def _assemble(problem: Problem, rate: float, found: Solution, options: Options) -> Plan:
    worst = {name: schedule.worst_s for name, schedule in found.schedules.items()}
    through = problem.application.through(worst)
    # equal stretching: each path's budgets sum up to at most the SLO, as through[name] is the longest with that module
    budgets = {name: max(worst[name], worst[name] * problem.slo_s / through[name]) for name in worst}
    shared: tuple[Machine, ...] = ()
    if _packs(options):
        shared = _packed(found.schedules, budgets, worst)
    use = found.cost(Billing.USE)
    integer = found.cost(Billing.INTEGER) - sum((len(m.shares) - 1) * m.price for m in shared)
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
        problem.application.name,
        rate,
        problem.slo_s,
        stages,
        problem.application.longest(worst),
        use,
        integer,
        use if options.billing is Billing.USE else integer,
        0.0 if _packs(options) else found.lower_bound,
        found.exact and not _packs(options),
        problem.application.longest_path(worst),
        shared,
    )


def _packs(options: Options) -> bool:
    return options.billing is Billing.INTEGER and options.scheduler is Scheduler.GROUP and options.pack


def _packed(
    schedules: Mapping[str, Schedule], budgets: Mapping[str, float], worst: dict[str, float]
) -> tuple[Machine, ...]:
    """Machines that partial ones of several stages share; `worst` of those stages is brought up to date."""
    machines = pack({(name, i): a for name, s in schedules.items() for i, a in enumerate(s.allotments)}, budgets)
    shared = tuple(m for m in machines if len(m.shares) > 1)
    for machine in shared:
        for share in machine.shares:
            schedule = schedules[share.stage]
            a, rate = schedule.allotments[share.tuple_index], sum(x.rate for x in schedule.allotments)
            worst[share.stage] = max(worst[share.stage], machine.worst_s(share), full_part_s(a, rate))
    return shared


def _explain(asked: _Asked, problem: Problem, rate: float, *, search: bool) -> Infeasible:
    """Which stage binds, and the nearest SLO and rate that can be kept."""
    least = {
        name: min(estimate(asked.options, c, problem.rates[name]) for c in cs)
        for name, cs in problem.configurations.items()
    }
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


def _nearest_slo(asked: _Asked, problem: Problem) -> float | None:
    """Bisection; what is returned has been planned."""
    low, high = problem.slo_s, problem.slo_s
    for _ in range(40):
        high *= 2
        if _solve(replace(problem, slo_s=high), asked.options) is not None:
            break
        low = high
    else:
        return None
    while high > low * 1.001:
        middle = (low + high) / 2
        if _solve(replace(problem, slo_s=middle), asked.options) is not None:
            high = middle
        else:
            low = middle
    return high


def _nearest_rate(asked: _Asked, rate: float, slo_s: float) -> float | None:
    """The nearest by factor, up or down, to 1 %: more requests fill batches sooner, fewer need fewer machines."""

    def works(factor: float) -> bool:
        return _solve(asked.problem(rate * factor, slo_s), asked.options) is not None

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
