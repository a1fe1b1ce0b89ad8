"""A share of the SLO that stages don't get, and durations that were measured while the machine was busy."""

from __future__ import annotations

import pytest

from dataflower.planner import Arrivals, Billing, Infeasible, Options, Plan, document_of, plan
from dataflower.planner.application import Application, Module
from dataflower.planner.measured import ProfileDocument, profiles_of
from dataflower.planner.profile import Device, Point, Profile, Profiles
from dataflower.planner.question import Question
from dataflower.planner.reasons import reasons

CHAIN = Application("chain", (Module("a", "m"), Module("b", "m")), (("a", "b"),))
POINTS = tuple(Point(b, 0.01 + 0.005 * b) for b in (1, 2, 4, 8))
KNOWN = Profiles((Profile("m", "x", POINTS),), {"x": Device("x", 1.0)})


@pytest.mark.parametrize("arrivals", [Arrivals.PACED, Arrivals.POISSON])
def test_stages_share_what_the_margin_leaves(arrivals: Arrivals) -> None:
    options = Options(billing=Billing.INTEGER, pack=False, arrivals=arrivals, margin=0.2)
    found = plan(CHAIN, KNOWN, 50.0, 0.2, options)
    assert isinstance(found, Plan)
    assert found.slo_s == pytest.approx(0.2)
    assert sum(stage.budget_s for stage in found.stages) == pytest.approx(0.16)
    assert found.worst_s <= 0.16 * (1 + 1e-9)
    assert document_of(found, options).slo_ms == pytest.approx(200.0)
    same = plan(CHAIN, KNOWN, 50.0, 0.16, Options(billing=Billing.INTEGER, pack=False, arrivals=arrivals))
    assert isinstance(same, Plan)
    assert (same.cost, same.worst_s) == (found.cost, found.worst_s)
    assert len(reasons(Question(CHAIN, KNOWN, options), found)) == 2


def test_what_is_named_as_feasible_is_so_with_the_margin() -> None:
    options = Options(margin=0.25)
    found = plan(CHAIN, KNOWN, 50.0, 0.035, options)
    assert isinstance(found, Infeasible)
    assert found.slo_s == pytest.approx(0.035)
    assert found.nearest_slo_s is not None
    assert found.nearest_slo_s >= 0.03 / 0.75
    assert isinstance(plan(CHAIN, KNOWN, 50.0, found.nearest_slo_s, options), Plan)


@pytest.mark.parametrize("margin", [-0.1, 1.0])
def test_a_margin_that_leaves_nothing_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        Options(margin=margin)


def test_durations_of_a_busy_machine_count_where_they_are_known() -> None:
    document = ProfileDocument.model_validate(
        {
            "workflow": "w",
            "device": "cpu",
            "stages": {
                "a": {
                    "points": [
                        {"batch": 1, "duration_ms": 10.0, "high_ms": 12.0, "busy_ms": 13.0, "busy_high_ms": 17.0},
                        {"batch": 2, "duration_ms": 15.0, "high_ms": 20.0},
                    ]
                }
            },
        }
    )

    def counted(*, high: bool, busy: bool) -> list[float]:
        (found,), _ = profiles_of([document], {"cpu": Device("cpu", 1.0)}, high=high, busy=busy)
        return [round(p.duration_s * 1000, 6) for p in found.points]

    assert counted(high=False, busy=False) == [10.0, 15.0]
    assert counted(high=True, busy=False) == [12.0, 20.0]
    assert counted(high=False, busy=True) == [13.0, 15.0]
    assert counted(high=True, busy=True) == [17.0, 20.0]
