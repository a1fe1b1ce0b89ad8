"""Whether an invocation can still be served in time: refused at once it costs nothing, and the others keep the SLO.

Each stage is taken for a fluid queue that its containers drain at their planned capacity: an accepted invocation puts
its tasks there, no earlier than they could arrive. What really stands in the queue, and how long the function really
takes, correct the picture when the machine is slower than the plan thought.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from dataflower.core.plan import DispatchPlan
from dataflower.core.pool import Pool
from dataflower.spec.scopes import predecessors
from dataflower.spec.workflow import Workflow

MARGIN = 0.1
"""Share of the SLO that is left unused, as far as the plan's own worst case allows: for what no model knows."""


@dataclass(slots=True, eq=False)
class _Station:
    """A stage as admission sees it. Times in seconds, `capacity` in tasks a second.

    `offset`: from arrival until its tasks are there, at the least. `tail`: from its start on, its own run included, to
    the end of the invocation, at the most. `free_at`: when all that was accepted will have begun.
    """

    pool: Pool
    factor: float
    capacity: float
    replicas: int
    duration_s: float
    offset_s: float
    tail_s: float
    free_at: float = 0.0

    def rate(self) -> float:
        """Tasks a second that it can serve now; containers that are still starting don't count."""
        ready = self.pool.size - self.pool.starting
        able = self.capacity * max(1, min(ready, self.replicas)) / self.replicas
        return able * min(1.0, self.duration_s / self.pool.run_s) if self.pool.run_s else able


class Admission:
    """Decides for the invocations of one workflow that runs by a plan."""

    def __init__(self, plan: DispatchPlan, workflow: Workflow, pools: Mapping[str, Pool]) -> None:
        """`pools` by stage."""
        planned = {stage.stage: stage for stage in plan.stages}
        parents = {name: predecessors(workflow, stage) for name, stage in workflow.stages.items()}
        order = tuple(TopologicalSorter(parents).static_order())
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        longest: dict[str, float] = {}
        for name in order:
            shortest = min((g.duration_s for g in planned[name].groups), default=0.0) if name in planned else 0.0
            before[name] = max((longest[p] for p in parents[name]), default=0.0)
            longest[name] = before[name] + shortest
        for name in reversed(order):
            worst = planned[name].worst_s if name in planned else 0.0
            for parent in parents[name]:
                after[parent] = max(after.get(parent, 0.0), after.setdefault(name, 0.0) + worst)
            after.setdefault(name, 0.0)
        self._stations = [
            _Station(
                pool=pools[stage.stage],
                factor=stage.factor,
                capacity=stage.capacity,
                replicas=sum(g.replicas for g in stage.groups),
                duration_s=max(g.duration_s for g in stage.groups),
                offset_s=before[stage.stage],
                tail_s=after[stage.stage] + max(g.duration_s for g in stage.groups),
            )
            for stage in plan.stages
        ]
        worst_s = max(after[stage.stage] + stage.worst_s for stage in plan.stages)
        self._window_s = min(plan.slo_s, max(worst_s, plan.slo_s * (1 - MARGIN)))

    def take_over(self, former: Admission, now: float) -> None:
        """The workflow has run by another plan so far: what was accepted then is still to be served."""
        before = {station.pool: station for station in former._stations}
        for station in self._stations:
            old = before.get(station.pool)
            if old is not None and old.free_at > now:
                station.free_at = now + (old.free_at - now) * old.rate() / station.rate()

    def consider(self, now: float, deadline: float) -> float:
        """Accept an invocation (0), or refuse it: seconds until one like it would be accepted. `deadline` 0 = none."""
        by = now + self._window_s
        if deadline:
            by = min(by, deadline)
        late = 0.0
        for station in self._stations:
            rate = station.rate()
            free_at = max(station.free_at, now + station.offset_s, now + station.pool.backlog / rate)
            station.free_at = free_at
            late = max(late, free_at + station.tail_s - by)
        if late > 0:
            return late
        for station in self._stations:
            station.free_at += station.factor / station.rate()
        return 0.0


def hopeless_s(pools: Iterable[Pool], starved: Container[Pool], now: float, deadline: float) -> float:
    """Without a plan: by how much the wait in some stage's queue alone is longer than the time left; 0 if it isn't.

    Only what was measured counts: where nobody knows how long a function takes, nothing is refused. A pool that is
    not `starved` is taken to have all the containers that it may have.
    """
    late = 0.0
    for pool in pools:
        if pool.backlog and pool.run_s:
            containers = max(1, pool.size) if pool in starved else pool.max_replicas
            late = max(late, now + pool.backlog * pool.run_s / (containers * pool.together) - deadline)
    return late
