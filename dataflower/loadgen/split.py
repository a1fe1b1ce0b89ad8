"""Where the time went: record points of invocations -> queue, batch, compute, transfer, and what the engine adds.

Of a task, one after the other:
    queue     its inputs were there, no container was free
    batch     a container was free, and it waited for its batch to fill
    transfer  handing it over and fetching its inputs, and sending its outputs
    compute   user code

Tasks of an invocation overlap, so that their parts can't be added up. Each moment of an invocation belongs to the
first of compute, batch, queue, transfer that any of its tasks was in; what is left, between tasks, is the engine's own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from dataflower.core.trace import InvocationTrace, TaskTrace

Span = tuple[float, float]


class Part(enum.StrEnum):
    """Where time goes, in the order in which overlapping parts take precedence."""

    COMPUTE = "compute"
    BATCH = "batch"
    QUEUE = "queue"
    TRANSFER = "transfer"


ENGINE = "engine"
"""What is left of an invocation: matching, bookkeeping, and the front door."""


def spans(task: TaskTrace) -> list[tuple[Part, Span]]:
    """The parts of a task; empty ones left out. Times as in the trace."""
    end = task.sent or task.ended
    if not task.dispatched:  # it never ran
        return []
    batched = task.dispatched - min(task.batch_wait_s, task.dispatched - task.queued)
    started = task.started or end or task.dispatched
    parts = [
        (Part.QUEUE, (task.queued, batched)),
        (Part.BATCH, (batched, task.dispatched)),
        (Part.TRANSFER, (task.dispatched, started)),
        (Part.COMPUTE, (started, task.ended)),
        (Part.TRANSFER, (task.ended, task.sent)),
    ]
    return [(part, (a, b)) for part, (a, b) in parts if b > a > 0]


def of_task(task: TaskTrace) -> dict[Part, float]:
    """Seconds in each part."""
    found = dict.fromkeys(Part, 0.0)
    for part, (begin, end) in spans(task):
        found[part] += end - begin
    return found


def of_invocation(trace: InvocationTrace) -> dict[str, float]:
    """Seconds of an invocation in each part and in the engine; they add up to its time in the server."""
    if not trace.finished:
        return {}
    events: list[tuple[float, Part, int]] = []
    for task in trace.tasks:
        for part, (begin, end) in spans(task):
            first, last = max(begin, trace.arrived), min(end, trace.finished)
            if last > first:
                events += [(first, part, 1), (last, part, -1)]
    events.sort(key=lambda event: event[0])
    found: dict[str, float] = dict.fromkeys((*Part, ENGINE), 0.0)
    active = dict.fromkeys(Part, 0)
    at = trace.arrived
    for time, part, change in events:
        found[_present(active)] += time - at
        active[part] += change
        at = time
    found[ENGINE] += trace.finished - at
    return found


def _present(active: dict[Part, int]) -> str:
    return next((part for part in Part if active[part]), ENGINE)


def by_stage(traces: Iterable[InvocationTrace]) -> dict[str, list[TaskTrace]]:
    """All tasks, by stage, in the order in which stages first had something to do."""
    found: dict[str, list[TaskTrace]] = {}
    for trace in traces:
        for task in trace.tasks:
            found.setdefault(task.stage, []).append(task)
    return found


def latency_s(task: TaskTrace) -> float | None:
    """From its inputs being there to its outputs having arrived; None if it did not get so far."""
    return task.sent - task.queued if task.sent and not task.error else None
