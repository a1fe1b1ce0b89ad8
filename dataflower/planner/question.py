"""A question to the planner, to be asked again for other rates and other SLOs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataflower.errors import InvalidArgument
from dataflower.planner.answers import TokenStage
from dataflower.planner.application import Application
from dataflower.planner.method import Solution, restricted, solve
from dataflower.planner.options import Arrivals, Kinds, Options
from dataflower.planner.profile import Profiles
from dataflower.planner.split import Problem
from dataflower.planner.traced import Trace


@dataclass(frozen=True, slots=True)
class Question:
    """What is planned, by which method.

    Attributes:
        application: the DAG.
        profiles: durations and prices.
        options: the method. Only ours (the GROUP scheduler) knows of tokens.
        batches: model -> batch sizes to consider besides the measured ones.
        trace: the recorded arrivals, for `Arrivals.TRACED`.
        tokens: the stages that work in tokens; each has a profile for whole tasks, too.
        caps: most seconds that single stages may take.

    Raises:
        InvalidArgument: a trace is missing, or is given for arrivals that are not traced.
    """

    application: Application
    profiles: Profiles
    options: Options
    batches: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trace: Trace | None = None
    tokens: Mapping[str, TokenStage] = field(default_factory=dict)
    caps: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.options.arrivals is Arrivals.TRACED) != (self.trace is not None):
            raise InvalidArgument("a trace of arrivals and `Arrivals.TRACED` go together")

    def problem(self, rate: float, slo_s: float) -> Problem:
        """The same for `rate` invocations a second within `slo_s` seconds each.

        Raises:
            InvalidArgument: rate or SLO are not positive.
            NotFound: a model has no profile.
        """
        if not rate > 0:
            raise InvalidArgument(f"rate must be greater than 0, not {rate}")
        if not slo_s > 0:
            raise InvalidArgument(f"the SLO must be greater than 0 s, not {slo_s}")
        configurations = {}
        for module in self.application.modules:
            found = self.profiles.configurations(module.model, batches=self.batches.get(module.model, ()))
            configurations[module.name] = tuple(c for c in found if self.options.batching or c.batch == 1)
        rates = {m.name: rate * m.factor for m in self.application.modules}
        margin = self.options.margin
        slo_s *= 1.0 - margin
        return Problem(self.application, rates, configurations, slo_s, self.trace, margin, self.tokens, self.caps)

    def solve(self, problem: Problem, options: Options | None = None) -> Solution | None:
        """The schedules, with the kinds of devices that the options allow; None if there are none within the SLO."""
        options = options or self.options
        if options.kinds is Kinds.ANY:
            return solve(problem, options)
        kinds = sorted({(c.price, c.hardware) for cs in problem.configurations.values() for c in cs})
        usable = [(hw, p) for _, hw in kinds if (p := restricted(problem, hw)) is not None]
        if not usable:
            return None
        if options.kinds is Kinds.CHEAPEST:
            return solve(usable[0][1], options)
        if options.kinds is Kinds.FASTEST:
            return solve(min(usable, key=lambda pair: _quickest(pair[1]))[1], options)
        found = [s for _, p in usable if (s := solve(p, options)) is not None]
        return min(found, key=lambda s: s.cost(options.billing), default=None)


def _quickest(problem: Problem) -> float:
    return problem.application.longest({n: min(c.duration_s for c in cs) for n, cs in problem.configurations.items()})
