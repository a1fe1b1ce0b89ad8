"""The simulator on cases whose numbers are known: the worked example of TC dispatch, fan-outs, overload."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from random import Random

import pytest

from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.errors import InvalidArgument
from dataflower.planner.application import Application, Module
from dataflower.planner.dispatch import dispatch_of, dispatch_plan
from dataflower.planner.document import document_of
from dataflower.planner.options import Arrivals, Billing, Options
from dataflower.planner.plan import Plan, plan
from dataflower.planner.profile import Device, Point, Profile, Profiles
from dataflower.planner.reading import DocumentInvalid
from dataflower.planner.replan import Replanner, ReplanPolicy
from dataflower.planner.simulate import Figures, Simulated, Simulation, planned, profiled, simulate
from dataflower.planner.synthetic import ITEMS, workflow_of
from dataflower.testing.story import stage, workflow

ONE_APPLICATION = Application("one", (Module("m", "m"),))
ONE = workflow_of(ONE_APPLICATION)


def paced(rate: float, count: int) -> list[float]:
    return [n / rate for n in range(count)]


def poisson(rate: float, count: int, seed: int) -> list[float]:
    random = Random(seed)
    return list(accumulate(random.expovariate(rate) for _ in range(count)))


def play(
    groups: list[tuple[int, int, float, float]],
    rate: float,
    *,
    bound: float = 1.0,
    ranked: bool = False,
    dummy: float = 0.0,
    eager: bool = False,
) -> Figures:
    """One stage with these (batch, replicas, seconds, rate), which promises `bound`."""
    own = tuple(GroupPlan(*group) for group in groups)
    given = DispatchPlan(
        bound, rate, (StageDispatch("m", own, bound, bound, ranked, dummy, eager=eager),), admission=False
    )
    return simulate(Simulated(ONE.workflow, planned(given), given), paced(rate, 2000))


@pytest.mark.parametrize(
    ("groups", "rate", "ranked", "bound"),
    [
        ([(32, 5, 0.8, 200.0)], 200.0, False, 0.8 + 31 / 200),
        ([(32, 5, 0.8, 198.0)], 198.0, False, 0.8 + 31 / 198),
        ([(8, 2, 0.25, 38.0)], 38.0, False, 0.25 + 7 / 38),
        ([(32, 4, 0.8, 160.0), (8, 2, 0.25, 38.0)], 198.0, False, 0.8 + 31 / 160 + 1 / 198),
        ([(32, 4, 0.8, 160.0), (8, 2, 0.25, 38.0)], 198.0, True, 1.0),
        ([(32, 4, 0.8, 160.0), (8, 1, 0.25, 32.0), (2, 1, 0.1, 6.0)], 198.0, True, 1.0),
    ],
)
def test_the_worked_example_keeps_its_bounds(
    groups: list[tuple[int, int, float, float]], rate: float, ranked: bool, bound: float
) -> None:
    figures = play(groups, rate, bound=bound, ranked=ranked)
    assert len(figures.latency_s) == 2000
    assert max(figures.latency_s) <= bound + 1e-5


def test_the_best_ranked_group_collects_first() -> None:
    figures = play([(32, 4, 0.8, 160.0), (8, 2, 0.25, 38.0)], 198.0, ranked=True)
    batches = figures.stages["w@1", "m"].batches
    assert batches[32] * 32 > 0.7 * 2000
    assert set(batches) <= {32, 8, *range(1, 32)}


def test_dummies_cut_batches_before_they_are_full() -> None:
    few = play([(32, 5, 0.8, 40.0)], 38.0, dummy=100.0)
    assert max(few.stages["w@1", "m"].batches) < 32
    many = play([(32, 5, 0.8, 200.0)], 198.0, dummy=2.0)
    assert max(many.stages["w@1", "m"].batches) == 32


@pytest.mark.parametrize("rate", [38.0, 60.0, 100.0, 138.0, 195.0])
def test_under_load_dummies_are_the_first_to_be_dropped(rate: float) -> None:
    """Planned are 38 a second and 100 dummies: whatever comes beyond the 38 takes the place of dummies."""
    (batch, containers, duration_s), total = (32, 5, 0.8), 138.0
    figures = play([(batch, containers, duration_s, total)], rate, bound=2.0, dummy=100.0)
    collected_s = (batch - 1) / total
    assert max(figures.latency_s[:-batch]) <= collected_s + duration_s + 1 / rate, "nobody comes behind the last ones"
    own = figures.stages["w@1", "m"]
    real = min(batch, 1 + math.floor(collected_s * rate))
    assert own.busy_s <= 1.05 * duration_s * 2000 / real


def test_nobody_waits_for_a_batch_that_is_not_needed() -> None:
    """A stage of milliseconds behind a slow one: waiting until its time has come would eat up what others need."""
    calm = play([(8, 1, 0.001, 50.0)], 50.0, bound=0.4, eager=True)
    assert max(calm.latency_s) == pytest.approx(0.001)
    assert set(calm.stages["w@1", "m"].batches) == {1}


def test_batches_are_as_large_as_calm_takes() -> None:
    """Of 46 a second in runs of 0.1 s, five a run keep two containers busy for just under half of the time."""
    figures = play([(8, 2, 0.1, 46.0)], 46.0, bound=0.3, eager=True)
    assert set(figures.stages["w@1", "m"].batches) == {5}
    assert max(figures.latency_s) <= 0.1 + 4 / 46 + 1e-5


def test_what_gathers_while_all_are_busy_leaves_together() -> None:
    only = StageDispatch("m", (GroupPlan(8, 1, 0.01, 10.0),), 9.0, 9.0, eager=True)
    given = DispatchPlan(9.0, 10.0, (only,), admission=False)
    figures = simulate(Simulated(ONE.workflow, lambda stage, batch, hardware: 1.0, given), [0.0, *[0.5] * 8])
    assert figures.stages["w@1", "m"].batches == {1: 1, 8: 1}


DEVICES = {"cheap": Device("cheap", 1.0), "fast": Device("fast", 4.0)}


def profiles() -> Profiles:
    def points(fixed: float, each: float) -> tuple[Point, ...]:
        return tuple(Point(b, fixed + each * b) for b in (1, 2, 4, 8, 16))

    return Profiles(
        tuple(
            Profile(model, device, points(fixed * slow, 0.002 * slow))
            for model, fixed in (("detect", 0.02), ("classify", 0.008))
            for device, slow in (("cheap", 3.0), ("fast", 1.0))
        ),
        DEVICES,
    )


def traffic(factor: float) -> Application:
    modules = (Module("a", "detect"), Module("b", "classify", factor), Module("c", "classify", factor))
    return Application("traffic", modules, (("a", "b"), ("b", "c")))


def planned_for(application: Application, rate: float, slo_s: float, options: Options) -> tuple[Plan, Simulated]:
    found = plan(application, profiles(), rate, slo_s, options)
    assert isinstance(found, Plan)
    synthetic = workflow_of(application)
    given = dispatch_of(
        document_of(found, options), synthetic.workflow, admission=options.arrivals is not Arrivals.PACED
    )
    return found, Simulated(synthetic.workflow, planned(given), given, synthetic.items)


PACED = Options(billing=Billing.INTEGER, pack=False)
RANDOM = Options(billing=Billing.INTEGER, pack=False, arrivals=Arrivals.POISSON)


@pytest.mark.parametrize("rate", [20.0, 100.0, 400.0])
def test_a_paced_plan_holds(rate: float) -> None:
    found, given = planned_for(traffic(1.0), rate, 0.4, PACED)
    figures = simulate(given, paced(rate, 600))
    assert figures.within(0.4) == 1.0
    for one in found.stages:
        assert figures.stages["w@1", one.stage].longest_s <= 0.4


def test_fan_outs_ask_for_as_many_tasks_as_their_factor_says() -> None:
    _, given = planned_for(traffic(2.4), 50.0, 0.6, RANDOM)
    figures = simulate(given, poisson(50.0, 500, 1))
    assert [figures.stages["w@1", name].tasks for name in ("a", "a" + ITEMS, "b", "c")] == [500, 500, 1200, 1200]
    assert figures.within(0.6) >= 0.99


def test_overload_is_refused_and_the_rest_kept_in_time() -> None:
    _, given = planned_for(traffic(1.0), 100.0, 0.5, RANDOM)
    figures = simulate(given, poisson(300.0, 3000, 2))
    assert figures.refused > 1000
    assert len(figures.latency_s) > 900
    assert figures.within(0.5) >= 0.97


def test_without_a_plan_a_hopeless_deadline_is_refused() -> None:
    given = Simulated(workflow([stage("s", {})], {}, inputs=[]), lambda *_: 0.1)
    simulation = Simulation({"w@1": given}, start_s=0.01, deadline_s=0.5, max_containers=2)
    figures = simulation.run((n * 0.001, "w@1") for n in range(400))
    assert figures.refused > 280
    assert figures.failed["DeadlineExceeded"] < 120


def test_the_same_arrivals_give_the_same_figures() -> None:
    def once() -> Figures:
        _, given = planned_for(traffic(1.7), 80.0, 0.5, RANDOM)
        return simulate(given, poisson(90.0, 300, 3), start_s=0.5)

    assert once() == once()


def test_planning_again_follows_a_load_that_trebles() -> None:
    application, known = traffic(1.0), profiles()
    synthetic = workflow_of(application)
    duration = profiled(known, {module.name: module.model for module in application.modules})

    def dispatch(rate: float) -> DispatchPlan:
        found = plan(application, known, rate, 0.5, RANDOM)
        assert isinstance(found, Plan)
        return dispatch_of(document_of(found, RANDOM), synthetic.workflow)

    def play(follow: bool) -> tuple[Figures, int]:
        simulation = Simulation({"w@1": Simulated(synthetic.workflow, duration, dispatch(23.0))}, start_s=1.0)
        replanner, changes = Replanner(ReplanPolicy(), 23.0, simulation.now), 0

        def look() -> None:
            nonlocal changes
            decision = replanner.decide(simulation.now)
            if decision is not None and follow:
                changes += 1
                simulation.change_plan("w@1", dispatch(decision.rate))

        def watched() -> Iterator[tuple[float, str]]:
            for time in [*poisson(20.0, 600, 4), *(30 + time for time in poisson(60.0, 2400, 5))]:
                replanner.arrived(1.0 + time)
                yield time, "w@1"

        simulation.every(1.0, look)
        return simulation.run(watched()), changes

    (with_plans, changes), (without, _) = play(True), play(False)
    assert 1 <= changes <= 3
    assert with_plans.within(0.5) >= 0.97
    assert with_plans.refused < without.refused / 2


def test_a_change_of_plan_forgets_nothing_of_what_was_accepted() -> None:
    """Two bursts, and a change of plan in between, when the first one has not reached the slow stage yet."""
    pipe = workflow_of(Application("pipe", (Module("a", "a"), Module("b", "b")), (("a", "b"),)))
    stages = (
        StageDispatch("a", (GroupPlan(1, 20, 0.05, 400.0),), 0.1, 0.1),
        StageDispatch("b", (GroupPlan(1, 1, 0.1, 10.0),), 1.0, 0.2),
    )
    given = DispatchPlan(1.0, 10.0, stages)

    def accepted(changing: bool) -> tuple[int, float]:
        simulation = Simulation({"w@1": Simulated(pipe.workflow, planned(given), given)})
        if changing:
            simulation.every(0.01, lambda: simulation.change_plan("w@1", given))
        figures = simulation.run([(n * 1e-4, "w@1") for n in range(20)] + [(0.02 + n * 1e-4, "w@1") for n in range(20)])
        return len(figures.latency_s), figures.within(1.0)

    count, within = accepted(changing=False)
    assert (count, within) == (8, 1.0)
    assert accepted(changing=True) == (count, within)


def test_containers_that_are_still_starting_serve_nobody() -> None:
    _, few = planned_for(traffic(1.0), 20.0, 0.5, RANDOM)
    _, many = planned_for(traffic(1.0), 200.0, 0.5, RANDOM)
    simulation = Simulation({"w@1": replace(few, duration=many.duration)}, start_s=5.0)
    simulation.every(1.0, lambda: simulation.change_plan("w@1", many.plan))
    figures = simulation.run((time, "w@1") for time in poisson(180.0, 2700, 5))
    assert figures.within(0.5) >= 0.97
    assert figures.refused > 80, "until the new containers are there"
    assert len(figures.latency_s) > 1200


def test_profiles_are_service_times() -> None:
    duration = profiled(profiles(), {"s": "classify"})
    assert duration("s", 3, "fast") == pytest.approx(0.014)


def test_a_crowd_of_workflows_shares_the_host() -> None:
    _, given = planned_for(traffic(1.0), 50.0, 0.5, PACED)
    simulation = Simulation({f"w{n}@1": given for n in range(5)})
    arrivals = sorted((n / 50.0, f"w{k}@1") for n in range(100) for k in range(5))
    figures = simulation.run(arrivals)
    assert len(figures.latency_s) == 500
    assert max(figures.latency_s) <= 0.5


def test_what_can_not_be_run_is_refused() -> None:
    found, _ = planned_for(traffic(1.0), 100.0, 0.5, PACED)
    document = document_of(found, PACED)
    single = workflow([stage("a", {"x": "inputs.x"}), stage("b", {"x": "a.out"}), stage("c", {"x": "b.out"})], {})
    with pytest.raises(DocumentInvalid, match="the plan is for workflow 'traffic', not 'w'"):
        dispatch_plan(document, single)
    if any(group.batch > 1 for one in document.stages.values() for group in one.groups):
        with pytest.raises(DocumentInvalid, match="its function takes one task at a time"):
            dispatch_plan(document.model_copy(update={"workflow": "w"}), single)
    with pytest.raises(InvalidArgument, match="its factor must be 1"):
        workflow_of(Application("odd", (Module("a", "m", 2.0),)))
    factors = {"a": 1.0, "b": 8.0, "c": 1.0, "d": 4.0, "e": 8.0, "f": 1.0}
    edges = (("a", "b"), ("b", "c"), ("b", "d"), ("b", "e"), ("c", "f"), ("d", "f"), ("e", "f"))
    with pytest.raises(InvalidArgument, match=r"'apart' can't be simulated: .* come from different fan-outs"):
        workflow_of(Application("apart", tuple(Module(name, "m", own) for name, own in factors.items()), edges))


def test_stages_start_early_as_far_as_the_plan_leaves_time_for_it() -> None:
    calm, _ = planned_for(traffic(1.0), 20.0, 3.0, PACED)
    tight, _ = planned_for(traffic(1.0), 20.0, calm.worst_s * 1.02, PACED)
    chain = workflow_of(traffic(1.0)).workflow

    def eager(found: Plan) -> set[str]:
        return {stage.stage for stage in dispatch_of(document_of(found, PACED), chain).stages if stage.eager}

    assert eager(calm) == {"a", "b", "c"}
    assert len(eager(tight)) < 3


def test_fewer_requests_may_keep_a_machine_busier() -> None:
    """Cost by use is not monotone in the rate: the second request of a batch comes a moment too late for the first."""
    table = Profiles((Profile("m", "x", (Point(1, 0.4), Point(2, 0.5))),), {"x": Device("x", 1.0)})
    busy = {}
    for rate in (2.4, 2.5):
        found = plan(ONE_APPLICATION, table, rate, 0.9, Options())
        assert isinstance(found, Plan)
        given = dispatch_of(document_of(found, Options()), ONE.workflow, admission=False)
        for played in (2.4, rate):
            figures = simulate(
                Simulated(ONE.workflow, profiled(table, {"m": "m"}), given), paced(played, round(200 * played))
            )
            assert max(figures.latency_s) <= 0.9 + 1e-5
            busy[rate, played] = figures.stages["w@1", "m"].busy_s / 200
        assert math.isclose(busy[rate, rate], found.cost, rel_tol=0.02)
    assert math.isclose(busy[2.5, 2.5], 0.625, rel_tol=0.02)
    # the cheaper plan of the higher rate is no way out: at the lower rate it keeps the machine as busy
    assert math.isclose(busy[2.4, 2.4], 0.96, rel_tol=0.02)
    assert math.isclose(busy[2.5, 2.4], 0.96, rel_tol=0.02)
