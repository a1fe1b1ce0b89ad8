"""The switches of the planner: every published method and every ablation is a value of `Options`."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Dispatch(enum.Enum):
    """How requests reach the machines of a stage, which decides the worst-case latency (`bounds`).

    RR        single requests go round the machines
    BATCH_RR  whole batches go round the equal machines of one configuration
    DT        whole batches go to the groups in proportion to their throughput
    TC        whole batches; the machines with the best throughput for their price collect first
    GROUP     whole batches; the next one goes to the first free machine of the one group, however many it has
    """

    RR = "rr"
    BATCH_RR = "batch-rr"
    DT = "dt"
    TC = "tc"
    GROUP = "group"


class Scheduler(enum.Enum):
    """How the machines of one stage are chosen for a budget.

    GREEDY   tuple after tuple, best throughput for the price first (`schedule.generate`)
    OPTIMAL  every sequence of tuples and every number of dummy requests of the published model (`optimal`)
    GROUP    all machines of a configuration share whole batches; exact (`group`)
    """

    GREEDY = "greedy"
    OPTIMAL = "optimal"
    GROUP = "group"


class Splitter(enum.Enum):
    """How the end-to-end SLO is divided over the stages.

    EVEN          equal shares along the longest chain of stages
    THROUGHPUT    greedy: the step that raises throughput for its price the most
    COST          greedy: the step that saves the most
    UPGRADE       greedy from batch 1 on the fastest device: larger batch or cheaper device, whatever saves the most
    LATENCY_COST  greedy: the step that saves the most for each second that it lengthens the critical path
    QUANTISED     dynamic programme over budgets that are multiples of a quantum
    EXACT         composition of the exact cost staircases
    """

    EVEN = "even"
    THROUGHPUT = "throughput"
    COST = "cost"
    UPGRADE = "upgrade"
    LATENCY_COST = "latency-cost"
    QUANTISED = "quantised"
    EXACT = "exact"


class Arrivals(enum.Enum):
    """How invocations are taken to arrive, which decides what is promised.

    PACED    evenly spaced: every invocation keeps the SLO
    POISSON  at random, independently: the percentile of the SLO keeps it (`stochastic`)
    TRACED   as in a recording that the caller gives: the percentile of its invocations keeps it (`traced`)
    """

    PACED = "paced"
    POISSON = "poisson"
    TRACED = "traced"


class Billing(enum.Enum):
    """What a plan costs: machines by the share of time in use, or whole machines."""

    USE = "use"
    INTEGER = "integer"


class Kinds(enum.Enum):
    """Which devices a plan may mix: any, or one kind for the whole application (the best, cheapest or fastest)."""

    ANY = "any"
    ONE = "one"
    CHEAPEST = "cheapest"
    FASTEST = "fastest"


@dataclass(frozen=True, slots=True)
class Options:
    """One method. The defaults are ours; `baselines` has the others.

    Attributes:
        dispatch: who gets which request.
        scheduler: how the machines of a stage are chosen.
        splitter: how the SLO is divided.
        billing: what is minimised (exact splitter and GROUP scheduler) and reported as `Plan.cost`.
        kinds: whether devices may be mixed.
        max_tuples: most configurations in one stage; None for any number (GREEDY).
        dummy: raise the rate with dummy requests where that is cheaper (GREEDY).
        reassign: rounds in which left-over latency is given to residual machines; None until nothing improves.
        merger: treat parallel stages between the same neighbours as one in the greedy splitters.
        cost_direct: also run the COST splitter and keep the cheaper plan.
        batching: False plans with batch 1 alone.
        quanta: steps of the QUANTISED splitter, and of the budgets that EXACT asks a GREEDY or OPTIMAL scheduler for.
        max_points: longest staircase kept by the EXACT splitter; beyond it the plan is near-optimal and says so.
        pack: with INTEGER billing, let partial machines of different stages share one (`pack`; not for TRACED).
        arrivals: what the plan holds for. Other than PACED: GROUP scheduler only, and always whole machines, since
            machines that are billed by use would all stand ready for nothing.
        tighten: with POISSON arrivals, also try plans that the bounds don't vouch for, and rehearse them (`rehearse`).
        risk: each stage may be late so many times as often as adds up to the percentile; above 1 that is no promise.
        bursts: with PACED arrivals and the GROUP scheduler, count with the requests of one invocation coming at once
            (`bursts`); else as evenly spaced too, which is the published model.
        percentile: which share of the invocations must keep the SLO, unless arrivals are paced (then all do).
        margin: share of the SLO that stages don't get: for the front door, hops, and what no profile knows.
    """

    dispatch: Dispatch = Dispatch.GROUP
    scheduler: Scheduler = Scheduler.GROUP
    splitter: Splitter = Splitter.EXACT
    billing: Billing = Billing.USE
    kinds: Kinds = Kinds.ANY
    max_tuples: int | None = None
    dummy: bool = False
    reassign: int | None = 0
    merger: bool = False
    cost_direct: bool = False
    batching: bool = True
    quanta: int = 100
    max_points: int = 4096
    pack: bool = True
    arrivals: Arrivals = Arrivals.PACED
    bursts: bool = True
    percentile: float = 99.0
    tighten: bool = False
    risk: float = 1.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        if (self.dispatch is Dispatch.GROUP) != (self.scheduler is Scheduler.GROUP):
            raise ValueError("GROUP dispatch and the GROUP scheduler go together")
        if self.scheduler is Scheduler.OPTIMAL and self.dispatch is not Dispatch.TC:
            raise ValueError("the OPTIMAL scheduler knows TC dispatch only")
        if self.max_tuples is not None and self.max_tuples < 1:
            raise ValueError("max_tuples must be at least 1")
        if self.quanta < 1 or self.max_points < 2:
            raise ValueError("quanta must be at least 1 and max_points at least 2")
        if self.arrivals is not Arrivals.PACED and (
            self.scheduler is not Scheduler.GROUP or self.billing is not Billing.INTEGER
        ):
            raise ValueError("plans for a percentile need the GROUP scheduler and INTEGER billing")
        if not 0 < self.percentile <= 100 or (self.percentile == 100 and self.arrivals is not Arrivals.PACED):
            raise ValueError("the percentile must lie between 0 and 100")
        if not 0 <= self.margin < 1:
            raise ValueError("the margin must be at least 0 and below 1")
        if not self.risk >= 1:
            raise ValueError("the risk must be at least 1")
