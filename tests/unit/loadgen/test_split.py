"""Where the time of a task and of an invocation went."""

from __future__ import annotations

import pytest

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.loadgen import split
from dataflower.loadgen.split import ENGINE, Part


def task(stage: str, queued: float, dispatched: float, started: float, ended: float, sent: float) -> TaskTrace:
    return TaskTrace(stage, (), 1, queued, 1, dispatched, started, started, 0.0, ended, sent)


def test_a_task_falls_into_its_parts() -> None:
    found = split.of_task(task("a", 1.0, 1.5, 1.75, 2.75, 3.0))
    assert found == {Part.QUEUE: 0.5, Part.BATCH: 0.0, Part.TRANSFER: 0.5, Part.COMPUTE: 1.0}


def test_a_task_that_never_ran_has_none() -> None:
    assert split.spans(TaskTrace("a", (), 1, 5.0)) == []
    assert split.latency_s(TaskTrace("a", (), 1, 5.0)) is None


def test_parts_of_an_invocation_add_up_to_its_time() -> None:
    tasks = [task("a", 0.1, 0.2, 0.3, 1.0, 1.1), task("b", 1.2, 1.9, 2.0, 2.5, 2.6)]
    found = split.of_invocation(InvocationTrace("i", "w@1", 0.0, 3.0, tasks=tasks))
    assert sum(found.values()) == pytest.approx(3.0)
    assert found[Part.COMPUTE] == pytest.approx(1.2)
    assert found[Part.QUEUE] == pytest.approx(0.8)
    assert found[Part.TRANSFER] == pytest.approx(0.4)
    assert found[ENGINE] == pytest.approx(0.6)  # before the first, between them, after the last


def test_what_overlaps_counts_once_and_computing_before_waiting() -> None:
    tasks = [task("a", 0.0, 0.0, 0.0, 2.0, 2.0), task("b", 0.0, 1.5, 1.5, 3.0, 3.0)]
    tasks[0].dispatched = tasks[0].started = tasks[0].queued = 1e-9
    tasks[1].queued = 1e-9
    found = split.of_invocation(InvocationTrace("i", "w@1", 0.0, 3.0, tasks=tasks))
    assert found[Part.COMPUTE] == pytest.approx(3.0, abs=1e-6)
    assert found[Part.QUEUE] == pytest.approx(0.0, abs=1e-6)


def test_an_invocation_that_still_runs_has_no_parts() -> None:
    assert split.of_invocation(InvocationTrace("i", "w@1", 1.0)) == {}


def test_stages_keep_their_order() -> None:
    tasks = [task("b", 1, 1, 1, 1, 1), task("a", 2, 2, 2, 2, 2), task("b", 3, 3, 3, 3, 3)]
    found = split.by_stage([InvocationTrace("i", "w@1", 0.5, 4.0, tasks=tasks)])
    assert [(stage, len(these)) for stage, these in found.items()] == [("b", 2), ("a", 1)]
