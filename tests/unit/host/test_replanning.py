"""How a host follows the traffic with its plans, on a clock that the test moves: it asks, plans, swaps and rests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from dataflower.core.plan import Replan
from dataflower.errors import InvalidArgument, Unavailable
from dataflower.host.api import ReplanOutcome
from dataflower.host.plans import Other, ReadPlan, read_plan, room_of
from dataflower.host.registry import Deployed
from dataflower.host.replan_child import Answer, Request, answer
from dataflower.host.replanning import Replanning
from dataflower.host.settings import HostConfig
from dataflower.planner import (
    Application,
    Arrivals,
    Billing,
    Device,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Question,
    document_of,
    plan,
)
from dataflower.planner.room import Room, needs_of, taken
from dataflower.planner.synthetic import workflow_of
from dataflower.spec.workflow import Resources, Workflow
from dataflower.testing.clock import FakeClock

LINE = Application("line", (Module("a", "m"), Module("b", "m")), (("a", "b"),))
PROFILES = Profiles(
    (Profile("m", "cpu", tuple(Point(b, 0.06 + 0.02 * b) for b in (1, 2, 4, 8))),), {"cpu": Device("cpu", 1.0)}
)
OPTIONS = Options(arrivals=Arrivals.POISSON, billing=Billing.INTEGER, pack=False)
WORKFLOW = workflow_of(LINE).workflow


def planned(mode: Replan, rate: float = 24.0) -> ReadPlan:
    found = plan(LINE, PROFILES, rate, 1.5, OPTIONS)
    assert isinstance(found, Plan)
    document = document_of(found, OPTIONS, question=Question(LINE, PROFILES, OPTIONS))
    return read_plan(json.dumps(document.model_copy(update={"replan": mode}).as_data()), "plan", WORKFLOW)


@dataclass
class Alarm:
    """What `call_later` gives."""

    due: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Rig:
    """A registry of one workflow, a clock, and timers; planning is done on the spot."""

    mode: Replan = Replan.ON
    config: HostConfig = field(default_factory=HostConfig)
    clock: FakeClock = field(default_factory=FakeClock)
    alarms: list[Alarm] = field(default_factory=list)
    swaps: list[ReadPlan] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    broken: str = ""
    workflow: Workflow = WORKFLOW
    others: tuple[Other, ...] = ()
    tempo: float = 1.0
    """What runs of stage `a` take over the profile; those of `b` take what it says."""

    def __post_init__(self) -> None:
        self.deployed = Deployed("line", 1, self.workflow, "", 0.0, {}, frozenset(), planned=planned(self.mode))
        self.replanning = Replanning(self, self.config, self.clock, later=self.later, planner=self.plan)
        self.replanning.watch(self.deployed)

    def later(self, seconds: float, call: Callable[[], None]) -> Alarm:
        self.alarms.append(Alarm(self.clock.monotonic() + seconds, call))
        return self.alarms[-1]

    def room(self, workflow: Workflow) -> Room:
        return room_of(self.config, workflow, self.others, 0, frozenset())

    def run_over_plan(self, deployed: Deployed) -> dict[str, float]:
        assert deployed.planned is not None
        assert deployed.planned.document.basis is not None
        return {"a": self.tempo / deployed.planned.document.basis.stages["a"].slowdown, "b": 1.0}

    async def swap(self, deployed: Deployed, former: ReadPlan, plan: ReadPlan) -> bool:
        if deployed.planned is not former:
            return False
        deployed.planned = plan
        self.swaps.append(plan)
        return True

    async def plan(self, request: Request) -> Answer:
        self.asked.append(request)
        if self.broken:
            raise Unavailable(self.broken)
        return answer(request)

    @property
    def pending(self) -> list[Alarm]:
        return [alarm for alarm in self.alarms if not alarm.cancelled]

    @property
    def outcome(self) -> ReplanOutcome:
        status = self.replanning.status(self.deployed)
        assert status is not None
        assert status.last is not None
        return status.last.outcome

    async def traffic(self, rate: float, seconds: int) -> None:
        """Evenly spaced; timers go off in between, and planning takes no time."""
        for n in range(int(seconds * max(rate, 1))):
            self.clock.advance(1 / max(rate, 1))
            if rate >= 1:
                assert self.deployed.watch is not None
                self.deployed.watch.arrived()
            while due := [a for a in self.pending if a.due <= self.clock.monotonic()]:
                self.alarms = [a for a in self.pending if a not in due]
                for alarm in due:
                    alarm.call()
                watch = self.deployed.watch
                if watch is not None and watch.task is not None:
                    await watch.task
            assert len(self.pending) <= 1, n


async def test_traffic_that_doubles_gets_a_larger_plan_once() -> None:
    rig = Rig()
    before = rig.deployed.planned
    assert before is not None
    await rig.traffic(22, 30)
    assert rig.asked == []
    await rig.traffic(44, 120)
    (after,) = rig.swaps
    assert rig.deployed.planned is after
    assert after.containers > before.containers
    assert 44 <= after.document.rate_per_s <= 44 * 1.3
    assert after.document.replan is Replan.ON
    assert read_plan(after.text, "plan", WORKFLOW) == after, "the file says the same"
    status = rig.replanning.status(rig.deployed)
    assert status is not None
    assert (status.dry_run, status.planned_per_s) == (False, after.document.rate_per_s)
    assert status.measured_per_s == pytest.approx(44, rel=0.05)
    assert status.last is not None
    assert (status.last.reason, status.last.outcome) == ("more than planned", ReplanOutcome.APPLIED)
    assert f"{before.containers} -> {after.containers} containers" in status.last.note


async def test_a_dry_run_plans_and_says_so_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(Replan.DRY_RUN)
    with caplog.at_level("INFO", logger="dataflower.host.replanning"):
        await rig.traffic(50, 120)
    assert len(rig.asked) == 1
    assert rig.swaps == []
    assert rig.outcome is ReplanOutcome.DRY_RUN
    (said,) = caplog.messages
    assert said.startswith("workflow 'line': more than planned (50/s): plan for ")
    assert "dry-run: 2 -> 4 containers" in said


async def test_a_machine_that_has_become_slower_gets_a_plan_for_that(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tempo=1.4)
    with caplog.at_level("INFO", logger="dataflower.host.replanning"):
        await rig.traffic(22, 120)
    (after,) = rig.swaps
    assert after.document.rate_per_s == 24.0
    assert after.document.basis is not None
    assert {name: stage.slowdown for name, stage in after.document.basis.stages.items()} == {
        "a": pytest.approx(1.1**4),
        "b": 1.0,
    }
    assert read_plan(after.text, "plan", WORKFLOW) == after, "the file says the same"
    (group,) = after.dispatch.stages[0].groups
    assert dict(group.points)[4] == pytest.approx(0.14 * 1.1**4)
    (said,) = caplog.messages
    assert "runs of stage 'a' take 1.40 times what is planned (22/s): plan for 24/s: applied" in said
    assert "with the run times of the profile at 'a' x1.46" in said
    rig.tempo = 1.0
    await rig.traffic(22, 250)
    assert len(rig.swaps) == 1, "it may become slow again"
    await rig.traffic(22, 100)
    last = rig.swaps[-1].document
    assert last.basis is not None
    assert last.basis.stages["a"].slowdown == 1.0


async def test_a_dry_run_says_what_slower_runs_would_lead_to() -> None:
    rig = Rig(Replan.DRY_RUN, tempo=1.4)
    await rig.traffic(22, 120)
    assert rig.swaps == []
    assert len(rig.asked) == 1
    status = rig.replanning.status(rig.deployed)
    assert status is not None
    assert status.last is not None
    assert "'a' x1.46" in status.last.note


async def test_a_little_slower_is_nothing() -> None:
    rig = Rig(tempo=1.1)
    await rig.traffic(22, 120)
    assert rig.asked == []


async def test_flapping_traffic_does_not_make_the_plan_flap() -> None:
    rig = Rig()
    for _ in range(6):
        await rig.traffic(20, 30)
        await rig.traffic(50, 30)
    (only,) = rig.swaps
    assert only.document.rate_per_s >= 50


async def test_a_plan_that_could_not_be_made_is_tried_again_but_not_without_end() -> None:
    rig = Rig(broken="no memory")
    await rig.traffic(50, 60)
    assert rig.outcome is ReplanOutcome.FAILED
    assert 1 <= len(rig.asked) <= 2, "twice a minute at most"
    rig.broken = ""
    await rig.traffic(50, 60)
    assert rig.outcome is ReplanOutcome.APPLIED
    assert len(rig.swaps) == 1


async def test_where_there_is_no_room_the_present_plan_is_kept_and_the_reason_shown() -> None:
    rig = Rig(config=HostConfig(max_containers=1))
    await rig.traffic(200, 60)
    assert rig.swaps == []
    assert rig.outcome is ReplanOutcome.REFUSED
    assert len(rig.asked) == 1, "nothing has changed since"
    status = rig.replanning.status(rig.deployed)
    assert status is not None
    assert status.last is not None
    assert "this host runs at most 1" in status.last.note


async def test_a_plan_grows_into_the_cores_that_other_workflows_leave() -> None:
    stages = {name: replace(stage, resources=Resources(cpu=1.5)) for name, stage in WORKFLOW.stages.items()}
    declared = replace(WORKFLOW, stages=stages)
    rates = []
    for others in ((), (Other(planned(Replan.OFF, 24.0), declared, frozenset()),)):
        rig = Rig(config=HostConfig(cpus=5, max_containers=20), workflow=declared, others=others)
        await rig.traffic(60, 120)
        (after,) = rig.swaps
        rates.append(after.document.rate_per_s)
        own, _ = taken(after.document, needs_of(declared))
        assert sum(own.values()) + rig.room(declared).kept_cpus <= 5.0
    alone, beside = rates
    assert alone >= 60 > beside > 24
    status = rig.replanning.status(rig.deployed)
    assert status is not None
    assert status.last is not None
    assert "other workflows' plans" in status.last.note


async def test_where_room_is_short_the_plan_grows_as_far_as_it_can() -> None:
    rig = Rig(config=HostConfig(max_containers=4))
    await rig.traffic(200, 60)
    (after,) = rig.swaps
    assert after.containers == 4
    assert 24 < after.document.rate_per_s < 200


async def test_a_plan_that_somebody_else_gave_meanwhile_goes_before() -> None:
    rig = Rig()

    async def slow(request: Request) -> Answer:
        rig.deployed.planned = planned(Replan.ON, 30.0)
        return answer(request)

    rig.replanning = Replanning(rig, rig.config, rig.clock, later=rig.later, planner=slow)
    rig.alarms.clear()
    rig.replanning.watch(rig.deployed)
    await rig.traffic(60, 40)
    assert rig.swaps == []
    assert rig.outcome is ReplanOutcome.REFUSED


async def test_nobody_asks_when_nothing_can_change() -> None:
    off = Rig(Replan.OFF)
    assert off.pending == []
    assert off.deployed.watch is None
    assert off.replanning.status(off.deployed) is None
    rig = Rig()
    await rig.traffic(20, 20)
    assert len(rig.pending) == 1
    await rig.traffic(0, 1000)
    assert rig.swaps, "a plan for hardly anything"
    assert rig.pending == [], "an idle host has no timer"
    await rig.traffic(20, 2)
    assert len(rig.pending) == 1, "the first arrival sets it"


async def test_what_is_forgotten_is_not_planned_any_more() -> None:
    rig = Rig()
    begun = asyncio.Event()

    async def never(_: Request) -> Answer:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    rig.replanning = Replanning(rig, rig.config, rig.clock, later=rig.later, planner=never)
    rig.alarms.clear()
    rig.replanning.watch(rig.deployed)
    for _ in range(3000):
        rig.clock.advance(0.02)
        assert rig.deployed.watch is not None
        rig.deployed.watch.arrived()
        for alarm in [a for a in rig.pending if a.due <= rig.clock.monotonic()]:
            rig.alarms.remove(alarm)
            alarm.call()
        await asyncio.sleep(0)
    await asyncio.wait_for(begun.wait(), 60)
    task = rig.deployed.watch.task if rig.deployed.watch else None
    assert task is not None
    rig.replanning.forget(rig.deployed)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.pending == []
    await rig.replanning.close()


@pytest.mark.parametrize(
    "wrong", [{"replan_headroom": 0.5}, {"replan_short_s": 0.0}, {"replan_long_s": 1.0}, {"replan_per_minute": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match="replan_"):
        HostConfig(**wrong)  # type: ignore[arg-type]
