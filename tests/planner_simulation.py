"""A naive replay of a plan, event by event: a check on what the planner promises. Shares no code with its formulas."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from dataflower.planner import Application, Plan, PlanDocument


@dataclass
class Stage:
    """Machines of one stage, the open batch, and closed batches that wait."""

    batch: int
    duration_s: float
    timeout_s: float
    free: int
    open: list[tuple[float, int]] = field(default_factory=list)
    closed: list[list[int]] = field(default_factory=list)
    opened: int = 0


def stages_of(document: PlanDocument) -> dict[str, Stage]:
    """As an engine would set them up; for plans with one group in each stage."""
    found = {}
    for name, stage in document.stages.items():
        (group,) = stage.groups
        found[name] = Stage(group.batch, group.duration_ms / 1000, group.timeout_ms / 1000, group.replicas)
    return found


def latencies(
    application: Application,
    document: PlanDocument,
    arrivals: Sequence[float],
    requests: Mapping[str, Sequence[int]],
    *,
    hold: bool = False,
) -> list[float]:
    """End-to-end latency of each invocation.

    Args:
        application: the DAG.
        document: the plan.
        arrivals: times, rising.
        requests: stage -> requests of each invocation; 0 passes the stage by.
        hold: a stage takes up an invocation only when those before it are to be done with it, as the formulas assume.
    """
    stages = stages_of(document)
    share = {name: stage.timeout_s + stage.duration_s for name, stage in stages.items()}
    before: dict[str, float] = {}
    for name in application.order:
        before[name] = max((before[p] + share[p] for p in application.parents[name]), default=0.0)
    events: list[tuple[float, int, str, str, object]] = []
    order = count()
    waiting = [{name: len(application.parents[name]) for name in application.order} for _ in arrivals]
    left = [{name: requests[name][i] for name in application.order} for i in range(len(arrivals))]
    undone = [len(application.order)] * len(arrivals)
    done_at = [0.0] * len(arrivals)

    def push(time: float, kind: str, stage: str, what: object) -> None:
        heapq.heappush(events, (time, next(order), kind, stage, what))

    for i, time in enumerate(arrivals):
        for name in application.order:
            if not application.parents[name]:
                push(time, "ready", name, i)

    def start(stage: Stage, name: str, now: float) -> None:
        while stage.free and stage.closed:
            stage.free -= 1
            push(now + stage.duration_s, "done", name, stage.closed.pop(0))

    def close(stage: Stage, name: str, now: float) -> None:
        stage.closed.append([i for _, i in stage.open])
        stage.open = []
        stage.opened += 1
        start(stage, name, now)

    def finish(i: int, name: str, now: float) -> None:
        undone[i] -= 1
        if not undone[i]:
            done_at[i] = now
        for child in application.children[name]:
            waiting[i][child] -= 1
            if not waiting[i][child]:
                push(max(now, arrivals[i] + before[child]) if hold else now, "ready", child, i)

    while events:
        now, _, kind, name, what = heapq.heappop(events)
        stage = stages[name]
        if kind == "ready":
            i = int(str(what))
            if not left[i][name]:
                finish(i, name, now)
                continue
            for _ in range(left[i][name]):
                if not stage.open:  # it waits until its time before and here is used up but for the batch itself
                    push(max(now, arrivals[i] + before[name] + stage.timeout_s), "timeout", name, stage.opened)
                stage.open.append((now, i))
                if len(stage.open) == stage.batch:
                    close(stage, name, now)
        elif kind == "timeout":
            if stage.open and stage.opened == what:
                close(stage, name, now)
        else:
            assert isinstance(what, list)
            stage.free += 1
            for i in what:
                left[i][name] -= 1
                if not left[i][name]:
                    finish(i, name, now)
            start(stage, name, now)
    assert not any(undone)
    return [done - came for done, came in zip(done_at, arrivals, strict=True)]


def late_share(plan: Plan, latency: Sequence[float]) -> float:
    """How many invocations took longer than the SLO; sums of the same seconds in another order count as equal."""
    return sum(taken > plan.slo_s * (1 + 1e-7) for taken in latency) / len(latency)
