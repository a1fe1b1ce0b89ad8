"""Measured over planned run times: what is learned of a stage, and what it leads to."""

from __future__ import annotations

import pytest

from dataflower.core.commands import StagePace
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.core.slowdown import MOST, SOON, Slowdown
from dataflower.planner.simulate import Simulated, Simulation
from dataflower.planner.tempo import drift, steady, step
from dataflower.spec.workflow import Batch
from dataflower.testing.story import stage, workflow

GROUP = GroupPlan(4, 1, 0.4, 10.0, "cpu", ((1, 0.1), (2, 0.2), (4, 0.4)))


def told(*quotients: float, group: GroupPlan = GROUP, tasks: int = 4) -> Slowdown:
    found = Slowdown((group,))
    for quotient in quotients:
        found.ran(group, tasks, quotient * group.duration_s * tasks / group.batch)
    return found


def test_batches_of_all_sizes_tell_how_slow_the_machine_is() -> None:
    assert [GROUP.expected_s(n) for n in (1, 2, 3, 4, 5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    for tasks in (1, 2, 3, 4):
        assert told(*[1.4] * SOON, tasks=tasks).factor == pytest.approx(1.4)


def test_without_a_profile_only_full_batches_tell() -> None:
    bare = GroupPlan(4, 1, 0.4, 10.0)
    assert bare.expected_s(3) is None
    assert told(*[0.5] * 9, group=bare, tasks=2).factor is None
    assert told(*[0.5] * 9, group=bare).factor == pytest.approx(0.5)
    late = Slowdown((bare,))
    for _ in range(30):
        late.ran(bare, 2, 0.6)  # two take longer than four should
    assert late.factor == pytest.approx(1.5)


def test_one_long_run_is_no_slow_machine() -> None:
    found = told(*[1.0] * 20, 50.0)
    assert found.counted == pytest.approx(1.1)
    assert not told(*[1.0] * 20, 50.0, *[1.0] * 5).is_slow
    assert told(1000.0).counted == MOST


def test_answers_are_long_or_short_and_only_their_average_tells() -> None:
    group = GroupPlan(16, 1, 2.0, 4.0)

    def after(*seconds: float) -> Slowdown:
        found = Slowdown((group,), answers=True)
        for each in seconds:
            found.ran(group, 1, each)
        return found

    early = after(9.0, 8.0)
    assert (early.counted, early.high, early.factor, early.is_slow) == (1.0, 1.0, None, False)
    usual = after(*[0.2, 0.8, 6.0, 1.0] * 30)
    assert usual.factor == pytest.approx(1.0, abs=0.1)
    assert not usual.is_slow
    slow = after(*[0.4, 1.6, 12.0, 2.0] * 30)
    assert slow.factor == pytest.approx(2.0, abs=0.2)
    assert slow.is_slow
    assert slow.high == slow.counted == slow.factor  # that one answer is longer than others is no surprise


def test_a_faster_machine_and_scatter_change_nothing() -> None:
    for found in (told(*[0.6] * 9), told(*[1.04, 1.03] * 9), Slowdown((GROUP,))):
        assert (found.counted, found.is_slow) == (1.0, False)
    assert told(*[0.6] * 9).high == 1.0


def test_single_runs_may_take_longer_than_the_average() -> None:
    found = told(*[1.2, 1.6] * 20)
    assert found.counted == pytest.approx(1.4, abs=0.1)
    assert 1.6 < found.high < 2.0


def test_slow_is_said_with_hysteresis() -> None:
    found = told(*[1.3] * SOON)
    assert found.is_slow
    found.ran(GROUP, 4, 1.0 * 0.4)
    found.ran(GROUP, 4, 1.0 * 0.4)
    assert 1.05 < found.counted < 1.2
    assert found.is_slow, "it has not recovered yet"
    for _ in range(20):
        found.ran(GROUP, 4, 1.0 * 0.4)
    assert not found.is_slow
    assert not told(*[1.3] * (SOON - 1)).is_slow, "too few runs"


def test_another_plan_starts_from_what_is_known() -> None:
    scaled = GroupPlan(8, 1, 1.12, 10.0, "cpu", ((1, 0.14), (4, 0.56), (8, 1.12)))
    found = Slowdown((scaled,))
    found.take_over(told(*[1.4] * 9))
    assert found.factor == pytest.approx(1.0)
    assert not found.is_slow
    fresh = Slowdown((GROUP,))
    fresh.take_over(Slowdown((GROUP,)))
    assert fresh.factor is None


def test_people_are_told_once_and_when_it_is_over() -> None:
    plan = DispatchPlan(1.0, 5.0, (StageDispatch("s", (GroupPlan(1, 1, 0.1, 5.0),), 0.3, 0.3),))
    simulation = Simulation(
        {"w@1": Simulated(workflow([stage("s", {})], {}, inputs=[]), lambda *_: 0.1, plan)}, tempo=step(1.5, 5.0, 10.0)
    )
    core, said = simulation.core, []
    seen = [core.stages("w@1")[0]]
    handle = core.handle
    simulation.core = Listening(handle, said, lambda: seen.append(core.stages("w@1")[0]))  # type: ignore[assignment]
    figures = simulation.run((n * 0.2, "w@1") for n in range(100))
    assert [(pace.stage, pace.is_slow) for pace in said] == [("s", True), ("s", False)]
    assert said[0].factor > 1.1
    assert (seen[0].run_over_plan, seen[0].is_slow) == (None, False)
    assert {row.is_slow for row in seen} == {True, False}
    assert not figures.refused


class Listening:
    """A core, and what it says of the pace of stages."""

    def __init__(self, handle: object, said: list[StagePace], after: object) -> None:
        self._handle, self._said, self._after = handle, said, after

    def handle(self, event: object, now: float) -> list[object]:
        answer = self._handle(event, now)  # type: ignore[operator]
        self._said += [command for command in answer if isinstance(command, StagePace)]
        self._after()  # type: ignore[operator]
        return answer  # type: ignore[no-any-return]


def test_the_first_of_a_quiet_time_is_let_in_to_see_how_things_are() -> None:
    """At three times the planned run times nothing can be in time; when the machine is well again, that is noticed."""
    plan = DispatchPlan(0.3, 5.0, (StageDispatch("s", (GroupPlan(1, 1, 0.1, 5.0),), 0.2, 0.2),))
    given = Simulated(workflow([stage("s", {})], {}, inputs=[]), lambda *_: 0.1, plan)
    simulation = Simulation({"w@1": given}, tempo=step(4.0, 2.0, 10.0))
    figures = simulation.run((n * 0.11, "w@1") for n in range(400))
    during = [at for at in figures.arrived_s if 4.0 <= at < 10.0]
    after = [at for at in figures.arrived_s if at > 15.0]
    assert 10 <= len(during) <= 20, "one after the other"
    assert len(after) >= 0.9 * (44 - 15) / 0.11
    assert figures.refused > 20


def test_a_batch_that_waits_for_others_waits_less_where_runs_take_longer() -> None:
    """It is to be done when the plan says: what a run takes longer is not added to the time-out."""
    plan = DispatchPlan(1.0, 1.0, (StageDispatch("s", (GroupPlan(4, 1, 0.2, 1.0),), 0.8, 0.8),), admission=False)
    graph = workflow([stage("s", {}, batch=Batch(4))], {}, inputs=[])
    simulation = Simulation({"w@1": Simulated(graph, lambda *_: 0.2, plan)}, tempo=step(2.0, 20.0))
    figures = simulation.run((2.0 * n, "w@1") for n in range(60))
    assert figures.latency_s[:5] == pytest.approx([0.8] * 5, abs=1e-3)
    assert max(figures.latency_s) < 1.01, "the first slow run"
    assert figures.latency_s[-20:] == pytest.approx([0.8] * 20, abs=5e-3)


def test_tempo() -> None:
    assert [steady(1.4)(t) for t in (0, 9)] == [1.4, 1.4]
    assert [step(1.4, 2, 3)(t) for t in (1.9, 2, 3)] == [1.0, 1.4, 1.0]
    assert [drift(2.0, 1, 3)(t) for t in (0, 1, 2, 3, 9)] == [1.0, 1.0, 1.5, 2.0, 2.0]
