"""Stages that work in tokens among stages that don't: what each may take, so that all objectives hold together.

The first token of an answer comes when the stages before the model are done and the model has its first: that path has
`ttft_s` to itself (`settle`), and its budgets are upper limits for the split of the whole, end to end, in which an
answer counts as long as its first token and all further ones take. Either split is exact for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataflower.planner import bounds, stochastic
from dataflower.planner.options import Arrivals, Options
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import Allotment, Schedule
from dataflower.planner.staircase import Stair, Staircase, staircase
from dataflower.planner.tokens import (
    MOST_REPLICAS,
    TokenCost,
    TokenLoad,
    TokenPlan,
    TokenSlo,
    plan_tokens,
    with_replicas,
)

MOST_STEPS = 40
"""Numbers of replicas that are looked at beyond the fewest."""
WORTH = 0.998
"""More replicas are looked at as long as the next ones answer in this share of the time."""


@dataclass(frozen=True, slots=True)
class TokenKind:
    """A kind of machine that the stage can run on: its price for an hour, and how long steps take there."""

    hardware: str
    price: float
    cost: TokenCost


@dataclass(frozen=True, slots=True)
class TokenStage:
    """A stage that works in tokens.

    Attributes:
        kinds: where it can run.
        prompt: tokens of a prompt, (mean, at the percentile).
        output: of an answer, likewise.
        generations: answers for one task, on the average; they are taken to be asked for at a time.
        ttft_s: most until its first token, from when it has its prompt; None = no limit of its own.
        tpot_s: most for a further token, on the average of an answer.
        gap_s: most between two tokens.
        first: its latency ends with the first token; else with the answer.
        takes: settings that its function can be given (`max_sequences`, `step_tokens`, `ttft_ms`,
            `tpot_ms`).
    """

    kinds: tuple[TokenKind, ...]
    prompt: tuple[float, float]
    output: tuple[float, float]
    generations: float = 1.0
    ttft_s: float | None = None
    tpot_s: float | None = None
    gap_s: float | None = None
    first: bool = False
    takes: tuple[str, ...] = ()

    def load(self, rate: float) -> TokenLoad:
        """Of so many tasks a second."""
        return TokenLoad(rate * self.generations, self.prompt, self.output)

    def slo(self, percentile: float) -> TokenSlo:
        """Its own limits."""
        return TokenSlo(self.ttft_s, self.tpot_s, percentile, self.gap_s)

    def latency_s(self, found: TokenPlan) -> float:
        """What counts as its latency."""
        return found.steady.ttft_s if self.first else found.steady.answer_s(self.output[1])


def percentile_of(options: Options, stages: int) -> float:
    """The percentile that one of so many stages has to keep, so that all together keep that of the options."""
    if options.arrivals is Arrivals.PACED:
        return min(99.999, max(50.0, options.percentile))
    late = min(0.5, stochastic.late_share(options.percentile, stages) * options.risk)
    return min(99.999, max(50.0, 100 * (1 - late)))


def curve(stage: TokenStage, rate: float, percentile: float) -> Staircase:
    """Cost against latency: from the fewest replicas that keep the stage's own limits on, on each kind of machine."""
    stairs = []
    slo, load = stage.slo(percentile), stage.load(rate)
    for kind in stage.kinds:
        fewest = plan_tokens(kind.cost, load, slo)
        if not isinstance(fewest, TokenPlan):
            continue
        found: TokenPlan | None = fewest
        replicas, latency = fewest.replicas, float("inf")
        for _ in range(MOST_STEPS):
            found = with_replicas(kind.cost, load, slo, replicas)
            if found is None or stage.latency_s(found) > latency * WORTH:
                break
            latency = stage.latency_s(found)
            stairs.append(_stair(stage, kind, found, rate))
            if replicas >= MOST_REPLICAS:  # as many as `plan_tokens` would find
                break
            replicas = min(MOST_REPLICAS, max(replicas + 1, round(replicas * 1.1)))
        stairs.append(_stair(stage, kind, fewest, rate))
    return staircase(stairs)


def _stair(stage: TokenStage, kind: TokenKind, found: TokenPlan, rate: float) -> Stair:
    """A replica is a machine that takes `sequences` answers at a time; its "batch" takes as long as one does then."""
    latency = stage.latency_s(found)
    held = kind.cost.holding(stage.load(rate).held)
    slowest = held.step(found.sequences) / (1 - found.steady.busy)
    together = max(1, round(found.sequences / stage.generations))
    full = found.steady.mean_s + max(0.0, stage.output[0] - 1) * slowest
    duration = min(full, latency, found.replicas * together / rate)
    configuration = Configuration(together, duration, kind.hardware, kind.price)
    allotment = Allotment(configuration, float(found.replicas), rate, latency, found)
    return Stair(latency, found.replicas * kind.price, Schedule((allotment,)))


def least_s(stage: TokenStage, rate: float, percentile: float) -> float:
    """The shortest latency that it can have at this rate; infinite if it can't keep its own limits."""
    return min((stair.latency_s for stair in curve(stage, rate, percentile)), default=float("inf"))


def within(stairs: Mapping[str, Staircase], caps: Mapping[str, float]) -> dict[str, Staircase]:
    """Without what takes longer than a stage may."""
    return {
        name: found if name not in caps else tuple(s for s in found if bounds.fits(s.latency_s, caps[name]))
        for name, found in stairs.items()
    }
