"""Whether an invocation can still be served in time: refused at once it costs nothing, and the others keep the SLO.

Each stage is taken for a fluid queue that its containers drain at their planned capacity: an accepted invocation puts
its tasks there, no earlier than they could arrive. What really stands in the queue, and how long runs really take
(`core.slowdown`), correct the picture when the machine is slower than the plan thought. What is left of errors shows in
accepted invocations that take longer than they may: by as much less is accepted from then on, for some seconds.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from dataflower.core.lengths import length_of
from dataflower.core.plan import DispatchPlan, Length, StageDispatch
from dataflower.core.pool import Pool
from dataflower.spec.scopes import predecessors
from dataflower.spec.workflow import INPUTS, Fanout, Stage, Workflow
from dataflower.wire import Value

MARGIN = 0.1
"""Share of the SLO that is left unused, as far as the plan's own worst case allows: for what no model knows."""
GAIN = 0.5
"""Share of the time by which an accepted invocation took too long that is kept back from then on."""
FADE_S = 5.0
"""Seconds after which a third is left of what is kept back."""

_UNKNOWN: Mapping[str, Value] = {}
LEAST_SHARE = 0.1
"""Of what the containers can serve: if so little would have to be let in for waits to fit, nothing is."""
_NOTHING_S = 1e-4


@dataclass(slots=True, eq=False)
class _Station:
    """A stage as admission sees it. Times in seconds.

    Attributes:
        pool: its tasks and containers.
        plan: what it is run by.
        capacity: tasks a second, by the plan.
        replicas: containers, by the plan.
        duration_s: of its longest run.
        offset_s: from arrival until its tasks are there, at the least.
        tail_s: from its start on, its own run included, to the end of the invocation, at the most, by the plan.
        waits_s: the part of that which isn't runs.
        before: the stages that it waits for.
        behind: the stages that wait for it.
        free_at: when all that was accepted will have begun.
    """

    pool: Pool
    plan: StageDispatch
    capacity: float
    replicas: int
    duration_s: float
    offset_s: float
    tail_s: float
    waits_s: float
    before: list[_Station] = field(default_factory=list)
    behind: list[_Station] = field(default_factory=list)
    free_at: float = 0.0

    def rate(self) -> float:
        """Tasks a second that it can serve now; containers that are still starting don't count."""
        ready = self.pool.size - self.pool.starting
        able = self.capacity * max(1, min(ready, self.replicas)) / self.replicas
        slowdown = self.pool.slowdown
        return able if slowdown is None else able / slowdown.counted

    def weight(self, length: Length | None) -> float:
        """A task of this length as so many usual ones."""
        tokens = self.plan.tokens
        return 1.0 if tokens is None or length is None else tokens.weight(length)

    def late_s(self, length: Length, now: float, by: float) -> float:
        """By how much a task of this length misses the first token's limit for those before it, or the end.

        As many as run at a time don't wait for each other. A prompt that is too long by itself is nobody's fault.
        """
        tokens = self.plan.tokens
        if tokens is None:
            return -math.inf
        late = self.free_at + self.tail_s + tokens.longer_s(length) - by
        if tokens.ttft_s:
            together = sum(group.replicas * group.batch for group in self.plan.groups)
            wait_s = self.free_at - now - self.offset_s - together / self.rate()
            late = max(late, wait_s - max(0.0, tokens.ttft_s - tokens.prompt_s * length.prompt))
        return late

    def longer_s(self) -> float:
        """By how much a run takes longer than the plan says."""
        slowdown = self.pool.slowdown
        return 0.0 if slowdown is None else (slowdown.high - 1) * self.duration_s


class Admission:
    """Decides for the invocations of one workflow that runs by a plan."""

    def __init__(
        self, plan: DispatchPlan, workflow: Workflow, pools: Mapping[str, Pool], *, streams: bool = False
    ) -> None:
        """`pools` by stage. `streams`: outputs come item by item, as fast as the caller takes them."""
        self._learns = not streams and not any(port.stream for port in workflow.inputs)
        planned = {stage.stage: stage for stage in plan.stages}
        self._asked = {
            stage.stage: _from_caller(workflow.stages[stage.stage]) for stage in plan.stages if stage.tokens is not None
        }
        """Inputs of the workflow that stages with a language model take as they are."""
        parents = {name: predecessors(workflow, stage) for name, stage in workflow.stages.items()}
        order = tuple(TopologicalSorter(parents).static_order())
        quickest = {name: min(g.duration_s for g in stage.groups) for name, stage in planned.items()}
        longest = {name: max(g.duration_s for g in stage.groups) for name, stage in planned.items()}
        worst = {name: stage.worst_s for name, stage in planned.items()}
        before = _along(order, parents, quickest)
        children: dict[str, list[str]] = {name: [] for name in order}
        for name in order:
            for parent in parents[name]:
                children[parent].append(name)
        after, runs = (_along(order[::-1], children, each) for each in (worst, longest))
        self._stations = [
            _Station(
                pool=pools[name],
                plan=planned[name],
                capacity=planned[name].capacity,
                replicas=sum(g.replicas for g in planned[name].groups),
                duration_s=longest[name],
                offset_s=before[name],
                tail_s=after[name] + longest[name],
                waits_s=max(0.0, after[name] - runs[name]),
            )
            for name in order
            if name in planned
        ]
        """Those that others wait for first."""
        of = {station.plan.stage: station for station in self._stations}
        nearest: dict[str, dict[str, None]] = {}
        for name in order:  # a switch, which no plan names, is looked through
            nearest[name] = {}
            for parent in parents[name]:
                nearest[name].update({parent: None} if parent in of else nearest[parent])
        for station in self._stations:
            station.before = [of[name] for name in nearest[station.plan.stage]]
            for other in station.before:
                other.behind.append(station)
        worst_s = max(station.tail_s - station.duration_s + station.plan.worst_s for station in self._stations)
        self._window_s = min(plan.slo_s, max(worst_s, plan.slo_s * (1 - MARGIN)))
        self._spare_s = plan.slo_s - self._window_s
        self._kept_back_s = 0.0
        self._kept_at = 0.0
        """When that much was kept back; it fades from then on."""

    def take_over(self, former: Admission, now: float) -> None:
        """The workflow has run by another plan so far: what was accepted then is still to be served."""
        before = {station.plan.stage: station for station in former._stations}
        for station in self._stations:
            old = before.get(station.plan.stage)
            if old is not None and old.free_at > now:
                station.free_at = now + (old.free_at - now) * old.rate() / station.rate()

    def consider(
        self, now: float, deadline: float, *, alone: bool = False, inputs: Mapping[str, Value] = _UNKNOWN
    ) -> float:
        """Accept an invocation (0), or refuse it: seconds until one like it would be accepted.

        Args:
            now: when it came.
            deadline: its own; 0 = none.
            alone: nothing else of the workflow runs: then it waits for nobody, and is accepted if the plan's run times
                would do, since somebody has to show whether the machine is still as slow as it was.
            inputs: what came with it. Of requests to language models among them the tokens count: room is kept for
                their tasks by weight; one that could not have its first token in time because of those before it is
                refused, and so is one whose answer can't be as long as it is to be.
        """
        lengths = self._lengths(inputs)
        by = now + self._window_s
        if deadline:
            by = min(by, deadline)
        late_by_plan = -math.inf
        for station in self._stations:
            soonest = max(now + station.offset_s, now + station.pool.load / station.rate())
            station.free_at = soonest if alone else max(station.free_at, soonest)
            late_by_plan = max(late_by_plan, station.free_at + station.tail_s - by)
            if station.plan.stage in lengths:
                late_by_plan = max(late_by_plan, station.late_s(lengths[station.plan.stage], now, by))
        extra = self._extra(now)
        late, share = self._late_by_experience(now, by, extra) if extra else (late_by_plan, 1.0)
        if alone and late_by_plan <= 0:
            late, share = 0.0, 1.0
        if max(late, late_by_plan) > 0:
            return max(late, late_by_plan)
        for station in self._stations:
            tasks = station.plan.factor * station.weight(lengths.get(station.plan.stage))
            station.free_at += tasks / (station.rate() * share)
        return 0.0

    def _lengths(self, inputs: Mapping[str, Value]) -> dict[str, Length]:
        """By stage, of those whose tasks are weighed and whose requests the caller has sent along."""
        found: dict[str, Length] = {}
        for name, ports in self._asked.items():
            for port in ports:
                length = length_of(inputs[port]) if port in inputs else None
                if length is not None:
                    found[name] = length
        return found

    def _late_by_experience(self, now: float, by: float, extra: Sequence[float]) -> tuple[float, float]:
        """By how much an invocation would be late, and the share of what stages can serve that may be let in.

        Where even an invocation that finds nobody before it might be late, it is for what it waits for at later stages.
        That is less if less is let in. As many as fit into a batch don't wait for each other.
        """
        late, share = 0.0, 1.0
        ahead: dict[str, float] = {}
        for station, more in zip(self._stations, extra, strict=True):
            pool, rate, factor = station.pool, station.rate(), station.plan.factor
            above = max((ahead[s.plan.stage] + s.pool.running / s.plan.factor for s in station.before), default=0.0)
            waiting = ahead[station.plan.stage] = above + pool.load / factor
            station.free_at = max(station.free_at, now + waiting * factor / rate)
            soonest = now + station.offset_s
            room = by - soonest - station.tail_s - more
            batch_s = max(group.batch for group in station.plan.groups) / rate
            late = max(late, station.free_at - soonest - max(room, batch_s))
            if room < 0:
                share = min(share, 1 + room / station.waits_s if station.waits_s else 0.0)
        if share < LEAST_SHARE:
            return max(late, self._window_s), LEAST_SHARE
        return late, share

    def _extra(self, now: float) -> list[float]:
        """For each stage, seconds that it takes longer than the plan says from its start to the end; empty: it doesn't.

        A run at a stage behind another one may find a run under way there, which takes longer, too.
        """
        kept_back = self._kept_back(now)
        longer = [station.longer_s() for station in self._stations]
        if not any(longer):
            return [kept_back] * len(longer) if kept_back else []
        share = sum(longer) / sum((station.duration_s for station in self._stations), 0.0)
        common = kept_back + min(share, 1.0) * self._spare_s
        own: list[float] = []
        behind: dict[str, float] = {}
        for station, more in zip(reversed(self._stations), reversed(longer), strict=True):
            after = max((behind[other.plan.stage] for other in station.behind), default=0.0)
            own.append(common + more + after)
            wait_s = max(0.0, station.plan.worst_s - station.duration_s)
            waits = max(0.0, min(wait_s, station.duration_s) + more - wait_s) if more else 0.0
            behind[station.plan.stage] = more + waits + after
        return own[::-1]

    def ended(self, arrived: float, now: float) -> None:
        """An invocation that was accepted when it came at `arrived` is over, or is late: learn from it."""
        too_long = now - arrived - self._window_s
        if (
            self._learns and too_long > 0 and arrived >= self._kept_at
        ):  # else it was let in before the last one was learned from
            self._kept_back_s = min(self._kept_back(now) + GAIN * too_long, self._spare_s)
            self._kept_at = now

    def _kept_back(self, now: float) -> float:
        """Seconds by which an invocation must be done before it has to."""
        if not self._kept_back_s:
            return 0.0
        left = self._kept_back_s * math.exp((self._kept_at - now) / FADE_S)
        return left if left > _NOTHING_S else 0.0


def _from_caller(stage: Stage) -> tuple[str, ...]:
    edges = [edge for given in stage.inputs for edge in given.edges]
    return tuple(edge.source.port for edge in edges if edge.source.stage == INPUTS and edge.fanout is Fanout.ALL)


def _along(order: Sequence[str], before: Mapping[str, Iterable[str]], own: Mapping[str, float]) -> dict[str, float]:
    """The longest way to each stage, itself not included. `order`: those before it first; `own`: of planned stages."""
    to: dict[str, float] = {}
    through: dict[str, float] = {}
    for name in order:
        to[name] = max((through[other] for other in before[name]), default=0.0)
        through[name] = to[name] + own.get(name, 0.0)
    return to


def hopeless_s(pools: Iterable[Pool], starved: Container[Pool], now: float, deadline: float) -> float:
    """Without a plan: by how much the wait in some stage's queue alone is longer than the time left; 0 if it isn't.

    Only what was measured counts: where nobody knows how long a function takes, nothing is refused. A pool that is
    not `starved` is taken to have all the containers that it may have.
    """
    late = 0.0
    for pool in pools:
        if pool.backlog and pool.run_s:
            containers = max(1, pool.size) if pool in starved else pool.max_replicas
            late = max(late, now + pool.load * pool.run_s / (containers * pool.together) - deadline)
    return late
