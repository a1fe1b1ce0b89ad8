"""Partial machines of different stages, and of different workflows, on one machine, by a duty cycle (Nexus).

A machine serves its shares in turn; a share's batch is cut when its turn comes. The cycle takes as long as all
their batches together, so a request waits for at most one cycle before its own batch runs: cycle + d. That works
while no share collects a full batch within one cycle: cycle <= b/rate for each. All of them stay loaded, so that what
they need of the device's memory adds up. Where arrivals are random, a share waits for as many cycles as its backlog
takes (`stochastic.turn_s`), and where requests come at once, for as many as those take (`bursts`, a turn being what a
batch takes). With random arrivals whole stages that one machine serves alone are what is put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dataflower.planner import bounds
from dataflower.planner.bursts import Steps
from dataflower.planner.profile import Configuration
from dataflower.planner.schedule import ROUNDING, Allotment
from dataflower.planner.stochastic import Demand, turn_s

Key = tuple[str, str, int]
"""Workflow, stage, and number of the tuple in it."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a tuple that does not fill a machine: `rate` requests a second in batches of at most `batch`."""

    stage: str
    tuple_index: int
    batch: int
    duration_s: float
    rate: float
    budget_s: float
    jitter_s: float = 0.0
    """How much later than evenly its requests may come, when they are picked out of a faster stream."""
    workflow: str = ""
    memory_bytes: int = 0
    demand: Demand | None = None
    """Set where arrivals are random."""
    steps: Steps | None = None
    """Set where requests come at once: how those of this share do."""

    @property
    def period_s(self) -> float:
        """Time in which a full batch collects."""
        return self.batch / self.rate


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine and what runs on it in turn."""

    hardware: str
    price: float
    shares: tuple[Share, ...]
    limit_bytes: int = 0

    @property
    def cycle_s(self) -> float:
        """Time of one round."""
        return sum(s.duration_s for s in self.shares)

    def worst_s(self, share: Share) -> float:
        """Worst-case latency of a share: alone it collects a batch, with others it waits for its turn."""
        if share.demand is not None:
            c = Configuration(share.batch, share.duration_s, self.hardware, self.price)
            return turn_s(c, self.cycle_s, share.demand)
        if share.steps is not None:
            own, turns = (share.duration_s, 0) if len(self.shares) == 1 else (self.cycle_s, 1)
            c = Configuration(share.batch, own, self.hardware, self.price)
            return share.duration_s + turns * self.cycle_s + share.steps.wait_s(c, 1)
        if len(self.shares) == 1:
            return share.duration_s + (share.batch - 1) / share.rate + share.jitter_s
        return self.cycle_s + share.duration_s + share.jitter_s

    @property
    def holds(self) -> bool:
        """Whether every share keeps its budget and its load, and all of them fit into the memory."""
        if self.limit_bytes and sum(s.memory_bytes for s in self.shares) > self.limit_bytes:
            return False
        return all(
            bounds.fits(self.cycle_s, s.period_s) and bounds.fits(self.worst_s(s), s.budget_s) for s in self.shares
        )


Worst = dict[tuple[str, str], float]
"""Worst-case latency by workflow and stage, in seconds."""


def pack(
    tuples: Mapping[Key, Allotment],
    keeps: Callable[[Worst], bool],
    demands: Mapping[tuple[str, str], Demand] | None = None,
    steps: Mapping[tuple[str, str], Steps] | None = None,
) -> tuple[tuple[Machine, ...], Worst]:
    """Machines for the partial machines of all tuples, the busiest first, each where it still fits (first fit).

    A share that joins others waits for its turn, and so do they; the full machines of its tuple lose their helper. What
    that does to the stages is put to `keeps`.

    Args:
        tuples: by workflow and stage and number; their full machines stay as they are.
        keeps: whether every promise is kept if the stages take so long.
        demands: what each stage is asked, by workflow and stage, if arrivals are random.
        steps: how requests come where several of one invocation come at once, by workflow and stage.

    Returns:
        The machines, and the worst case of every stage with them.
    """
    total: dict[tuple[str, str], float] = {}
    worst: Worst = {}
    for (workflow, stage, _), a in tuples.items():
        place = (workflow, stage)
        total[place] = total.get(place, 0.0) + a.rate
        worst[place] = max(worst.get(place, 0.0), a.worst_s)
    partial = [
        (a, share)
        for key, a in tuples.items()
        if (
            share := _share(key, a, total[key[:2]], (steps or {}).get(key[:2]))
            if demands is None
            else _alone(key, a, demands[key[:2]])
        )
        is not None
    ]
    partial.sort(key=lambda p: (-p[1].rate / p[0].configuration.throughput, *_place(p[1])))
    machines: list[Machine] = []
    for a, share in partial:
        c = a.configuration
        for i, machine in enumerate(machines):
            if machine.hardware != c.hardware or _place(share)[:2] in {_place(s)[:2] for s in machine.shares}:
                continue
            joined = Machine(c.hardware, c.price, (*machine.shares, share), c.limit_bytes)
            if not joined.holds:
                continue
            after = {**worst, **_worst_on(joined, tuples, total, worst)}
            if keeps(after):
                machines[i], worst = joined, after
                break
        else:
            machines.append(Machine(c.hardware, c.price, (share,), c.limit_bytes))
    return tuple(machines), worst


def _worst_on(machine: Machine, tuples: Mapping[Key, Allotment], total: Worst, worst: Worst) -> Worst:
    """The worst case of the stages on a machine."""
    found = {}
    for share in machine.shares:
        place = (share.workflow, share.stage)
        if share.demand is not None:
            found[place] = machine.worst_s(share)
            continue
        own = full_part_s(tuples[_place(share)], total[place])
        if own and share.steps is not None:
            own += share.steps.late_s
        found[place] = max(worst[place], machine.worst_s(share), own)
    return found


def _place(share: Share) -> Key:
    return share.workflow, share.stage, share.tuple_index


def _share(key: Key, a: Allotment, stage_rate: float, steps: Steps | None) -> Share | None:
    """The part of a tuple that does not fill a machine; None if there is none.

    Of requests that come at once it gets its share, and perhaps one more.
    """
    workflow, stage, index = key
    c, full = a.configuration, math.floor(a.machines + ROUNDING)
    rest = a.rate - full * c.throughput
    if rest <= ROUNDING * a.rate:
        return None
    jitter = 1 / stage_rate if rest < stage_rate * (1 - ROUNDING) else 0.0
    if steps is not None:
        part = rest / stage_rate
        steps = Steps(steps.rate, steps.each * part, steps.lag * part + (1 if jitter else 0))
    return Share(stage, index, c.batch, c.duration_s, rest, math.inf, jitter, workflow, c.memory_bytes, None, steps)


def _alone(key: Key, a: Allotment, demand: Demand) -> Share | None:
    """A stage that one machine serves alone; None if it has several."""
    workflow, stage, index = key
    c = a.configuration
    if a.machines > 1 + ROUNDING:
        return None
    return Share(stage, index, c.batch, c.duration_s, a.rate, math.inf, 0.0, workflow, c.memory_bytes, demand)


def full_part_s(a: Allotment, stage_rate: float) -> float:
    """Worst-case latency of the full machines of a tuple whose partial one has gone elsewhere; 0 if it has none."""
    c, full = a.configuration, math.floor(a.machines + ROUNDING)
    return bounds.group(c, full * c.throughput, split_rate=stage_rate) if full else 0.0
