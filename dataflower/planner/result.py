"""What planning finds: a `Plan`, or an `Infeasible` that says why there is none and what there is instead."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.planner.pack import Machine
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import Allotment, whole
from dataflower.planner.tokens import TokenPlan

SLACK_USED = 0.5
"""Share of what a budget leaves beyond the worst case that batches may wait for; the rest is for what comes late."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage keeps its share of the SLO.

    Attributes:
        stage: its name.
        rate: requests a second that it must serve; the dummy requests come on top.
        budget_s: its share of the SLO; on every path the shares sum up to at most the SLO.
        worst_s: worst-case latency, at most the budget; half of the rest is slack for batch time-outs.
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
    def tokens(self) -> TokenPlan | None:
        """How it keeps its tokens, if it works in tokens."""
        return self.tuples[0].tokens

    @property
    def until_s(self) -> float:
        """How long after the stages before it are to be done with an invocation it is to be done itself.

        The promise holds for every time-out between the one that the worst case counts on and what the whole budget
        leaves: longer ones only make for fuller batches. The engine's own time has no place in the model, so some of
        the budget is left to it.
        """
        return self.worst_s + SLACK_USED * max(0.0, self.budget_s - self.worst_s)

    def timeout_s(self, configuration: Configuration) -> float:
        """How long the oldest request of a batch may wait for others in this configuration, in seconds."""
        return max(0.0, self.until_s - configuration.duration_s)

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
        """Share of its whole machines that real requests keep busy, in full batches."""
        busy = sum(t.rate / t.configuration.throughput for t in self.tuples) * self.rate / (self.rate + self.dummy_rate)
        return busy / sum(whole(t.machines) for t in self.tuples)


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
        percentile: the share of invocations that keep the SLO; 100 for paced arrivals.
        risk: how much oftener than the bounds ask each stage may be late; above 1 the plan was rehearsed (`rehearse`).
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
    percentile: float = 100.0
    risk: float = 1.0

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
        nearest_slo_s: an SLO for which planning succeeds at this rate, at most 0.2 % above the smallest; None if none.
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
