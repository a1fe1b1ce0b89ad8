"""From a plan file to what containers do: time-outs are those of the file, fractions of machines are containers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataflower.planner import Application, Arrivals, Billing, Device, Module, Options, Plan, Point, Profile, Profiles
from dataflower.planner.baselines import HARPAGON
from dataflower.planner.dispatch import LAG_S, dispatch_of
from dataflower.planner.document import PlanDocument, document_of
from dataflower.planner.plan import plan
from dataflower.planner.simulate import Figures, Simulated, planned, simulate
from dataflower.planner.synthetic import workflow_of

ONE = Application("one", (Module("m", "m"),))
PIPE = Application("pipe", (Module("a", "m"), Module("b", "m"), Module("c", "m")), (("a", "b"), ("b", "c")))
WORKED = Profiles((Profile("m", "d", (Point(2, 0.1), Point(8, 0.25), Point(32, 0.8))),), {"d": Device("d", 1.0)})
SMALL = Profiles((Profile("m", "d", tuple(Point(b, 0.01 + 0.004 * b) for b in (1, 2, 4, 8))),), {"d": Device("d", 1.0)})
OURS = Options(billing=Billing.INTEGER, pack=False)
POISSON = replace(OURS, arrivals=Arrivals.POISSON)


def found(application: Application, profiles: Profiles, rate: float, slo_s: float, options: Options) -> PlanDocument:
    made = plan(application, profiles, rate, slo_s, options)
    assert isinstance(made, Plan)
    return document_of(made, options)


def play(application: Application, document: PlanDocument, arrivals: list[float]) -> Figures:
    synthetic = workflow_of(application)
    given = dispatch_of(document, synthetic.workflow, admission=False)
    return simulate(Simulated(synthetic.workflow, planned(given), given, synthetic.items), arrivals)


@pytest.mark.parametrize("options", [OURS, POISSON, HARPAGON])
@pytest.mark.parametrize("rate", [20.0, 90.0])
def test_stages_are_to_be_done_when_the_time_outs_and_run_times_of_the_file_are_over(
    options: Options, rate: float
) -> None:
    document = found(PIPE, SMALL, rate, 0.4, options)
    stages = dispatch_of(document, workflow_of(PIPE).workflow).stages
    for before, stage in zip((0.0, *(s.until_s for s in stages)), stages, strict=False):
        for group in document.stages[stage.stage].groups:
            assert stage.until_s - before == pytest.approx((group.timeout_ms + group.duration_ms) / 1000 + LAG_S)
            assert group.worst_ms <= (group.timeout_ms + group.duration_ms) * (1 + 1e-6)
    assert stages[-1].until_s <= 0.4 * (1 + 1e-6) + 3 * LAG_S


@pytest.mark.parametrize("options", [OURS, POISSON])
def test_a_lone_request_leaves_at_the_time_out_of_the_file(options: Options) -> None:
    document = found(ONE, SMALL, 200.0, 0.15, options)
    (group,) = document.stages["m"].groups
    assert group.batch > 1
    (latency,) = play(ONE, document, [0.0]).latency_s
    assert latency == pytest.approx((group.timeout_ms + group.duration_ms) / 1000, abs=1e-5)


def test_of_groups_that_were_given_other_time_outs_the_soonest_counts() -> None:
    document = found(ONE, WORKED, 198.0, 1.0, replace(HARPAGON, dummy=False))
    stage = document.stages["m"]
    edited = [stage.groups[0], stage.groups[1].model_copy(update={"timeout_ms": 400.0}), stage.groups[2]]
    document = document.model_copy(update={"stages": {"m": stage.model_copy(update={"groups": edited})}})
    (given,) = dispatch_of(document, workflow_of(ONE).workflow).stages
    assert given.until_s == pytest.approx(0.65 + LAG_S)


def test_a_fraction_of_a_machine_is_a_container_that_takes_what_better_ones_have_no_room_for() -> None:
    """The worked example: 4 machines of batch 32, one of batch 8, 0.3 of a machine of batch 2."""
    document = found(ONE, WORKED, 198.0, 1.0, replace(HARPAGON, dummy=False))
    groups = document.stages["m"].groups
    assert [(g.batch, round(g.machines, 3), g.replicas) for g in groups] == [(32, 4.0, 4), (8, 1.0, 1), (2, 0.3, 1)]
    figures = play(ONE, document, [n / 198.0 for n in range(4000)])
    assert len(figures.latency_s) == 4000
    assert figures.within(1.0) == 1.0
    ran = figures.stages["w@1", "m"]
    tasks = {size: size * count for size, count in ran.batches.items()}
    assert tasks[32] > tasks[8] > tasks[2] > 0
    # busier than its fraction, as it helps out whenever the others are busy; all together hardly more than is billed
    assert ran.busy_s / figures.ended_s <= 1.03 * sum(g.machines for g in groups)


def test_the_fraction_stands_idle_while_a_better_ranked_container_is_free() -> None:
    document = found(ONE, WORKED, 198.0, 1.0, replace(HARPAGON, dummy=False))
    figures = play(ONE, document, [0.0, 0.0])
    best = document.stages["m"].groups[0]
    # two tasks would fill the fraction's batch at once; they wait for company in a batch of the best group
    assert figures.stages["w@1", "m"].batches == {2: 1}
    assert min(figures.latency_s) > best.timeout_ms / 1000


def test_a_stage_knows_that_tasks_overtake_each_other_just_before_it() -> None:
    document = found(PIPE, SMALL, 90.0, 0.4, OURS)
    first = document.stages["a"]
    two = first.model_copy(update={"groups": [first.groups[0], first.groups[0]]})
    document = document.model_copy(update={"stages": {**document.stages, "a": two}})
    a, b, c = dispatch_of(document, workflow_of(PIPE).workflow).stages
    assert (a.behind, b.behind, c.behind) == ((), ("a",), ())
    assert b.from_s == a.until_s


def test_what_takes_no_time_in_between_is_looked_through() -> None:
    fanned = Application("fanned", (Module("a", "m"), Module("b", "m", 2.0)), (("a", "b"),))
    document = found(fanned, SMALL, 90.0, 0.4, OURS)
    first = document.stages["a"]
    two = first.model_copy(update={"groups": [first.groups[0], first.groups[0]]})
    document = document.model_copy(update={"stages": {**document.stages, "a": two}})
    assert "a-items" in workflow_of(fanned).workflow.stages
    a, b = dispatch_of(document, workflow_of(fanned).workflow).stages
    assert (b.behind, b.from_s) == (("a", "a-items"), a.until_s)
