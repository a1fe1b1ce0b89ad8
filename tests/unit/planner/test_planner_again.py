"""Plans carry what they were made from, and are planned again for another rate as if at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from random import Random

import pytest

from dataflower.core.plan import Replan
from dataflower.errors import InvalidArgument
from dataflower.planner import (
    Application,
    Arrivals,
    Billing,
    Device,
    DocumentInvalid,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Question,
    Trace,
    document_of,
    parse_plan,
    plan,
)
from dataflower.planner.again import plan_again
from dataflower.planner.baselines import HARPAGON
from dataflower.planner.basis import basis_of, question_of
from dataflower.planner.dispatch import dispatch_of
from dataflower.planner.document import PlanDocument
from dataflower.planner.replan import Replanner, ReplanPolicy
from dataflower.planner.simulate import Figures, Simulated, Simulation, profiled
from dataflower.planner.synthetic import workflow_of
from dataflower.planner.tempo import Tempo, drift

APP = Application("app", (Module("a", "m"), Module("b", "n", 2.5, 4), Module("c", "m")), (("a", "b"), ("b", "c")))
PROFILES = Profiles(
    tuple(
        Profile(model, device, tuple(Point(b, slow * (0.01 + 0.004 * b), 0.0003 * b, 1 << 20) for b in (1, 2, 4, 8)))
        for model in ("m", "n", "unused")
        for device, slow in (("cpu", 2.0), ("gpu", 1.0))
    ),
    {"cpu": Device("cpu", 0.5), "gpu": Device("gpu", 2.0, 1 << 30)},
)
PACED = Options(billing=Billing.INTEGER, pack=False)
POISSON = replace(PACED, arrivals=Arrivals.POISSON, percentile=95.0)
SLO_S = 0.6


def asked(options: Options, batches: dict[str, tuple[int, ...]] | None = None) -> Question:
    return Question(APP, PROFILES, options, batches or {})


def made(question: Question, rate: float) -> PlanDocument:
    found = plan(APP, PROFILES, rate, SLO_S, question.options, batches=question.batches)
    assert isinstance(found, Plan)
    return document_of(found, question.options, question=question)


def anything(_: PlanDocument) -> str:
    return ""


@pytest.mark.parametrize("options", [PACED, POISSON, HARPAGON, replace(PACED, batching=False)])
@pytest.mark.parametrize("batches", [None, {"n": (3, 6)}])
def test_planning_again_gives_what_planning_gives(options: Options, batches: dict[str, tuple[int, ...]] | None) -> None:
    question = asked(options, batches)
    present = parse_plan(json.dumps(made(question, 20.0).as_data()), "plan.json")
    assert present == made(question, 20.0)
    again = plan_again(present, 55.0, anything)
    assert (again.document, again.note) == (made(question, 55.0), "")


def test_the_mode_goes_along() -> None:
    present = made(asked(PACED), 20.0).model_copy(update={"replan": Replan.DRY_RUN})
    found = plan_again(present, 30.0, anything).document
    assert found is not None
    assert parse_plan(json.dumps(found.as_data()), "p").replan is Replan.DRY_RUN


def test_devices_that_are_not_there_are_not_planned_with() -> None:
    present = made(asked(PACED), 20.0)
    found = plan_again(present, 90.0, anything, lambda stage, device: device == "cpu").document
    assert found is not None
    assert {g.device for s in found.stages.values() for g in s.groups} == {"cpu"}
    with pytest.raises(InvalidArgument, match="stage 'a' has a profile on cpu, gpu only"):
        plan_again(present, 90.0, anything, lambda stage, device: stage != "a")


def at_most(containers: int) -> Callable[[PlanDocument], str]:
    def refusal(document: PlanDocument) -> str:
        total = sum(g.replicas for s in document.stages.values() for g in s.groups)
        return f"{total} containers are too many" if total > containers else ""

    return refusal


def test_where_room_is_short_the_plan_is_as_large_as_there_is_room_for() -> None:
    present = made(asked(PACED), 20.0)
    count = sum(g.replicas for s in present.stages.values() for g in s.groups)
    again = plan_again(present, 400.0, at_most(2 * count))
    assert again.document is not None
    assert "containers are too many" in again.note
    assert 20.0 < again.document.rate_per_s < 400.0
    assert not at_most(2 * count)(again.document)
    assert at_most(2 * count)(made(asked(PACED), again.document.rate_per_s * 1.5))


def test_what_can_not_be_planned_leaves_the_plan_and_says_why() -> None:
    present = made(asked(POISSON), 20.0)
    hopeless = present.model_copy(update={"slo_ms": 20.0})
    again = plan_again(hopeless, 10.0, anything)
    assert again.document is None
    assert again.note.startswith("no plan keeps 20 ms at 10/s: stage ")


def test_run_times_that_were_measured_go_into_the_plan_and_the_profile_is_kept() -> None:
    present = made(asked(PACED), 20.0)
    again = plan_again(present, 20.0, anything, slowdown={"a": 1.5}).document
    assert again is not None
    assert again.basis is not None
    kept = parse_plan(json.dumps(again.as_data()), "p")
    assert kept == again
    assert kept.basis is not None
    assert kept.basis.stages["a"].points == present.basis.stages["a"].points  # type: ignore[union-attr]
    assert kept.cost_per_hour >= present.cost_per_hour
    slow = question_of(kept.basis, "app").profiles
    assert slow.find("a", "cpu").points[0].duration_s == pytest.approx(
        1.5 * PROFILES.find("m", "cpu").points[0].duration_s
    )
    assert slow.find("c", "cpu").points[0].duration_s == pytest.approx(PROFILES.find("m", "cpu").points[0].duration_s)
    assert plan_again(kept, 20.0, anything, slowdown={}).document == present


def test_on_a_machine_that_is_too_slow_for_the_rate_the_plan_is_for_less() -> None:
    present = made(asked(PACED), 60.0)
    count = sum(g.replicas for s in present.stages.values() for g in s.groups)
    again = plan_again(present, 60.0, at_most(count), slowdown={"a": 2.0, "b": 2.0, "c": 2.0})
    assert again.document is not None
    assert 60 / 8 <= again.document.rate_per_s < 60.0
    assert "containers are too many" in again.note
    assert plan_again(present, 60.0, at_most(count), slowdown={"b": 50.0}).document is None


def test_recorded_arrivals_have_no_room_in_a_plan_file() -> None:
    traced = replace(POISSON, arrivals=Arrivals.TRACED)
    question = Question(APP, PROFILES, traced, trace=Trace.of([n / 20 for n in range(200)]))
    assert basis_of(question) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d.pop("basis"), d.update(replan="on")), "does not say what it was made from"),
        (lambda d: d.update(replan="maybe"), "replan: input should be 'off', 'dry-run' or 'on'"),
        (lambda d: d["basis"]["stages"].pop("a"), "other stages than the plan"),
        (lambda d: d["basis"]["devices"].pop("gpu"), "a profile on 'gpu', which is not among the devices"),
        (lambda d: d["basis"]["stages"]["b"].update(after=["zebra"]), "no module 'zebra'"),
        (lambda d: d["basis"]["stages"]["a"].update(after=["c"]), "waits for itself"),
        (lambda d: d["basis"]["stages"]["a"]["points"]["cpu"].reverse(), "do not rise"),
        (lambda d: d["basis"]["options"].update(pace=1), "no option 'pace'"),
        (lambda d: d["basis"]["options"].update(arrivals="monthly"), "'monthly' is not a valid Arrivals"),
        (lambda d: d["basis"]["options"].update(quanta=0), "quanta must be at least 1"),
    ],
)
def test_a_basis_that_does_not_hold_together_is_refused(change: Callable[[dict], object], message: str) -> None:
    data = made(asked(PACED), 20.0).as_data()
    change(data)
    with pytest.raises(DocumentInvalid, match=message):
        parse_plan(json.dumps(data, indent=1), "plan.json")


def test_the_question_is_the_same_one() -> None:
    question = question_of(made(asked(POISSON), 20.0).basis, "app")  # type: ignore[arg-type]
    assert question.options == POISSON
    assert question.application.order == ("a", "b", "c")
    assert question.application.module("b").burst == 4
    assert [p.duration_s for p in question.profiles.find("b", "gpu").points] == pytest.approx(
        [p.duration_s for p in PROFILES.find("n", "gpu").points]
    )
    assert question.profiles.devices == PROFILES.devices


# --- the story: traffic changes, and the plan that the core runs by follows it ---

LINE = Application("line", (Module("a", "m"), Module("b", "n")), (("a", "b"),))
SLOW = Profiles(
    tuple(Profile(model, "cpu", tuple(Point(b, 0.06 + 0.02 * b) for b in (1, 2, 4, 8))) for model in ("m", "n")),
    {"cpu": Device("cpu", 1.0)},
)
LONG_S = 1.5


def poisson(rate: float, begin: float, end: float, random: Random) -> Iterator[float]:
    return (
        at
        for at in accumulate((random.expovariate(rate) for _ in range(int((end - begin) * rate * 2))), initial=begin)
        if at < end
    )


def follow(
    pieces: list[tuple[float, float]], tempo: Tempo | None = None
) -> tuple[Figures, list[PlanDocument], Simulation]:
    """Poisson traffic of each rate for so many seconds; the plans that were made on the way, the first one included."""
    question = Question(LINE, SLOW, POISSON)
    found = plan(LINE, SLOW, 24.0, LONG_S, POISSON)
    assert isinstance(found, Plan)
    plans = [document_of(found, POISSON, question=question)]
    synthetic = workflow_of(LINE)
    given = Simulated(
        synthetic.workflow,
        profiled(SLOW, {"a": "m", "b": "n"}),
        dispatch_of(plans[0], synthetic.workflow),
        synthetic.items,
    )
    simulation = Simulation({"w@1": given}, start_s=1.0, tempo=tempo)
    replanner = Replanner(ReplanPolicy(), 24.0, simulation.now)

    def look() -> None:
        basis = plans[-1].basis
        assert basis is not None
        rows = simulation.core.stages("w@1")
        measured = {r.stage: r.run_over_plan * basis.stages[r.stage].slowdown for r in rows if r.run_over_plan}
        decision = replanner.decide(simulation.now, measured)
        if decision is not None:
            again = plan_again(plans[-1], decision.rate, anything, slowdown=decision.slowdown)
            assert again.document is not None
            plans.append(again.document)
            simulation.change_plan("w@1", dispatch_of(again.document, synthetic.workflow))

    def arrivals() -> Iterator[tuple[float, str]]:
        random, begin = Random(7), 0.0
        for rate, seconds in pieces:
            for at in poisson(rate, begin, begin + seconds, random):
                replanner.arrived(1.0 + at)
                yield at, "w@1"
            begin += seconds

    simulation.every(1.0, look)
    return simulation.run(arrivals()), plans, simulation


def replicas(document: PlanDocument) -> int:
    return sum(g.replicas for s in document.stages.values() for g in s.groups)


def test_traffic_that_doubles_makes_the_plan_grow_once() -> None:
    figures, plans, simulation = follow([(20.0, 60.0), (40.0, 90.0)])
    first, second = plans
    assert replicas(second) > replicas(first)
    assert 40.0 <= second.rate_per_s <= 56.0
    assert {name: stage.containers for (_, name), stage in figures.stages.items()} == {
        name: sum(g.replicas for g in stage.groups) for name, stage in second.stages.items()
    }
    assert not figures.failed
    assert figures.within(LONG_S) >= 0.95
    simulation.core.check_integrity()


def test_a_machine_that_becomes_slower_gets_a_plan_that_holds() -> None:
    figures, plans, _ = follow([(20.0, 120.0)], drift(1.6, 20.0, 40.0))
    assert 2 <= len(plans) <= 4
    assert replicas(plans[-1]) > replicas(plans[0])
    assert plans[-1].basis is not None
    assert all(1.5 < stage.slowdown < 1.8 for stage in plans[-1].basis.stages.values())
    assert not figures.failed
    assert figures.within(LONG_S) >= 0.97
    assert figures.refused < 0.05 * 120 * 20


def test_traffic_that_flaps_changes_the_plan_no_more_than_it_may() -> None:
    figures, plans, _ = follow([(20.0, 25.0), (45.0, 25.0)] * 6)
    assert 2 <= len(plans) <= 3
    rates = [document.rate_per_s for document in plans]
    assert rates == sorted(rates), "a lull of seconds is no reason to go back"
    assert not figures.failed
