"""Dividing the SLO over the stages by greedy steps: the published splitter and those of its competitors.

Every splitter returns a budget for each module, in seconds, whose sum on no path exceeds the SLO; None if even the
quickest configurations do. The readings are in docs/planner.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from dataflower.planner import bounds
from dataflower.planner.answers import TokenStage
from dataflower.planner.application import Application
from dataflower.planner.options import Dispatch, Options, Splitter
from dataflower.planner.profile import Configuration
from dataflower.planner.traced import Trace


@dataclass(frozen=True, slots=True)
class Problem:
    """What a splitter is asked: rates in requests a second, ranked configurations, the time that stages have.

    `slo_s` is what the promise leaves for stages; `margin`: the share of the promise that it does not. `trace`:
    recorded arrivals of invocations, where the plan is to hold for those. `tokens`: stages that work in tokens. `caps`:
    most seconds of single stages.
    """

    application: Application
    rates: Mapping[str, float]
    configurations: Mapping[str, tuple[Configuration, ...]]
    slo_s: float
    trace: Trace | None = None
    margin: float = 0.0
    tokens: Mapping[str, TokenStage] = field(default_factory=dict)
    caps: Mapping[str, float] = field(default_factory=dict)

    @property
    def promise_s(self) -> float:
        """The SLO itself."""
        return self.slo_s / (1.0 - self.margin)

    def promising(self, promise_s: float) -> Problem:
        """The same with another SLO."""
        return replace(self, slo_s=promise_s * (1.0 - self.margin))


Budgets = dict[str, float]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A way to run a unit: its latency, its cost, and the configuration of each member."""

    latency_s: float
    cost: float
    configurations: tuple[Configuration, ...]


@dataclass(slots=True)
class _Unit:
    """Modules that move together: one, or parallel ones that were merged."""

    members: tuple[str, ...]
    choices: tuple[_Choice, ...]
    at: _Choice = field(init=False)

    def __post_init__(self) -> None:
        self.at = min(self.choices, key=lambda c: (c.latency_s, c.cost))


@dataclass(frozen=True, slots=True)
class _Move:
    unit: _Unit
    to: _Choice
    lengthens_s: float
    """By how much the longest of all paths grows."""

    @property
    def saves(self) -> float:
        return self.unit.at.cost - self.to.cost

    @property
    def takes_s(self) -> float:
        return self.to.latency_s - self.unit.at.latency_s


Worth = Callable[[_Move], tuple[float, ...]]


def split(problem: Problem, options: Options, splitter: Splitter) -> Budgets | None:
    """Budgets by one of the greedy splitters, or the even one."""
    if splitter is Splitter.EVEN:
        return even(problem)
    units = _units(problem, options)
    if splitter is Splitter.UPGRADE:
        for unit in units:
            unit.at = _fastest_single(unit)
    worth: dict[Splitter, Worth] = {
        Splitter.LATENCY_COST: _by_latency_cost,
        Splitter.THROUGHPUT: _by_throughput,
        Splitter.COST: _by_cost,
        Splitter.UPGRADE: _by_cost,
    }
    allowed = _upgrades if splitter is Splitter.UPGRADE else _any_choice
    return _climb(problem, units, worth[splitter], allowed)


def even(problem: Problem) -> Budgets | None:
    """Equal shares: each module gets the SLO over the number of modules on the longest chain through it."""
    chains = problem.application.through(dict.fromkeys(problem.rates, 1.0))
    return {name: problem.slo_s / length for name, length in chains.items()}


def estimate(options: Options, c: Configuration, rate: float) -> float:
    """The latency that a splitter reckons with, before anyone knows the tuples."""
    if options.dispatch is Dispatch.RR and options.max_tuples != 1:
        return bounds.round_robin(c, rate)
    return bounds.whole_stage(options.dispatch, c, rate)


def _climb(
    problem: Problem,
    units: list[_Unit],
    worth: Worth,
    allowed: Callable[[_Unit], Iterable[_Choice]],
) -> Budgets | None:
    """Apply the move that is worth most until none saves anything within the SLO."""
    while True:
        latency = {name: unit.at.latency_s for unit in units for name in unit.members}
        through = problem.application.through(latency)
        longest = max(through.values())
        if not bounds.fits(longest, problem.slo_s):
            return None
        best: tuple[tuple[float, ...], _Move] | None = None
        for unit in units:
            path = max(through[name] for name in unit.members)
            for choice in allowed(unit):
                after = path + choice.latency_s - unit.at.latency_s
                move = _Move(unit, choice, max(0.0, after - longest))
                if move.saves <= bounds.TOLERANCE * unit.at.cost or not bounds.fits(after, problem.slo_s):
                    continue
                value = worth(move)
                if best is None or value > best[0]:
                    best = (value, move)
        if best is None:
            return latency
        best[1].unit.at = best[1].to


def _by_latency_cost(move: _Move) -> tuple[float, ...]:
    """Saving for each second; moves that lengthen no critical path come first, the largest saving of them leading."""
    if move.lengthens_s <= 0 or move.takes_s <= 0:
        return (float("inf"), move.saves, -move.takes_s)
    return (move.saves / move.takes_s, move.saves, -move.takes_s)


def _by_cost(move: _Move) -> tuple[float, ...]:
    return (move.saves, -move.takes_s)


def _by_throughput(move: _Move) -> tuple[float, ...]:
    """How many times more throughput for the price."""
    return (move.unit.at.cost / move.to.cost, -move.takes_s)


def _any_choice(unit: _Unit) -> Iterable[_Choice]:
    return unit.choices


def _fastest_single(unit: _Unit) -> _Choice:
    return min(unit.choices, key=lambda c: (c.configurations[0].batch, c.latency_s, c.cost))


def _upgrades(unit: _Unit) -> Iterable[_Choice]:
    """The next batch size on the same device, or the same batch (or the next smaller) on a cheaper one."""
    now = unit.at.configurations[0]
    others = [(c, c.configurations[0]) for c in unit.choices]
    larger = [(o.batch, c) for c, o in others if o.hardware == now.hardware and o.batch > now.batch]
    if larger:
        yield min(larger, key=lambda pair: pair[0])[1]
    for hardware in sorted({o.hardware for _, o in others if o.price < now.price}):
        fitting = [(o.batch, c) for c, o in others if o.hardware == hardware and o.batch <= now.batch]
        if fitting:
            yield max(fitting, key=lambda pair: pair[0])[1]


def _units(problem: Problem, options: Options) -> list[_Unit]:
    names = [m.name for m in problem.application.modules]
    groups: dict[object, list[str]] = {}
    for name in names:
        neighbours = (
            frozenset(problem.application.parents[name]),
            frozenset(problem.application.children[name]),
        )
        groups.setdefault(neighbours if options.merger and any(neighbours) else name, []).append(name)
    return [_unit(problem, options, tuple(members)) for members in groups.values()]


def _unit(problem: Problem, options: Options, members: tuple[str, ...]) -> _Unit:
    """The choices of a unit; of merged modules each takes its cheapest configuration within the common latency."""
    runs = [
        [
            (estimate(options, c, problem.rates[name]), problem.rates[name] / c.throughput * c.price, c)
            for c in problem.configurations[name]
        ]
        for name in members
    ]
    if len(runs) == 1:
        return _Unit(members, tuple(_Choice(latency, cost, (c,)) for latency, cost, c in runs[0]))
    choices = []
    for latency in sorted({latency for run in runs for latency, _, _ in run}):
        fitting = [[(cost, c) for at, cost, c in run if at <= latency] for run in runs]
        if not all(fitting):
            continue
        within = [min(run) for run in fitting]
        choices.append(_Choice(latency, sum(cost for cost, _ in within), tuple(c for _, c in within)))
    return _Unit(members, tuple(choices))
