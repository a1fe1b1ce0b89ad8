"""Re-planning follows the traffic, with hysteresis, and never too often."""

from __future__ import annotations

from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.errors import InvalidArgument
from dataflower.planner.replan import Decision, Replanner, ReplanPolicy


def watch(replanner: Replanner, rates: list[float], begin: float = 0.0) -> list[Decision]:
    """A second of each rate, evenly spaced, asked every second."""
    found = []
    for second, rate in enumerate(rates):
        at = begin + second
        for n in range(round(rate)):
            replanner.arrived(at + n / rate)
        decision = replanner.decide(at + 1.0)
        if decision is not None:
            found.append(decision)
    return found


def test_steady_traffic_changes_nothing() -> None:
    assert watch(Replanner(ReplanPolicy(), 100.0, 0.0), [90.0] * 600) == []


def test_a_rise_is_followed_within_the_short_window() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    (first,) = watch(replanner, [80.0] * 60 + [200.0] * 120)
    assert 60 < first.at <= 75
    assert first.reason == "more than planned"
    assert first.apply
    assert 200 <= replanner.rate <= 200 * 1.15 * 1.1 * 1.01


def test_a_rise_within_a_plan_that_has_room_for_it_is_nothing() -> None:
    assert watch(Replanner(ReplanPolicy(), 100.0, 0.0), [50.0] * 60 + [99.0] * 300) == []


def test_a_burst_is_nothing() -> None:
    assert watch(Replanner(ReplanPolicy(), 100.0, 0.0), ([90.0] * 60 + [200.0] * 4) * 4) == []


def test_traffic_at_the_planned_rate_is_not_more_than_planned_whatever_chance_brings() -> None:
    random = Random(1)
    arrivals = list(accumulate(random.expovariate(20.0) for _ in range(20 * 1800)))
    replanner, changes = Replanner(ReplanPolicy(), 20.0, 0.0), 0
    for second in range(1, 1700):
        while arrivals and arrivals[0] < second:
            replanner.arrived(arrivals.pop(0))
        changes += replanner.decide(float(second)) is not None
    assert changes <= 1


def test_flapping_traffic_is_followed_up_once_and_never_down() -> None:
    (only,) = watch(Replanner(ReplanPolicy(), 100.0, 0.0), ([80.0] * 40 + [160.0] * 40) * 20)
    assert only.reason == "more than planned"
    assert 160 <= only.rate <= 160 * 1.15 * 1.1 * 1.01


def test_what_is_measured_is_what_came_lately() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    assert replanner.measured(3.0) is None
    watch(replanner, [40.0] * 30)
    assert replanner.measured(30.0) == pytest.approx(40.0, rel=0.03)
    watch(replanner, [80.0] * 30, begin=30.0)
    assert replanner.measured(60.0) == pytest.approx(80.0, rel=0.03)


def test_nobody_need_ask_once_traffic_has_gone_and_the_plan_is_the_least() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    assert not replanner.is_settled(1.0), "the plan is for more than comes"
    found = watch(replanner, [90.0] * 60 + [0.0] * 600)
    assert found
    assert found[-1].rate == pytest.approx(replanner.rate)
    assert replanner.is_settled(660.0)
    replanner.arrived(661.0)
    assert not replanner.is_settled(661.0)


def test_a_fall_is_followed_late_and_once() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    (only,) = watch(replanner, [90.0] * 130 + [20.0] * 600)
    assert 130 + 300 < only.at <= 130 + 335
    assert only.reason == "less than planned"
    assert 20 <= replanner.rate <= 30


def test_a_short_dip_is_nothing() -> None:
    assert watch(Replanner(ReplanPolicy(), 100.0, 0.0), ([90.0] * 200 + [10.0] * 60) * 3) == []


def test_a_dry_run_only_says_what_it_would_do() -> None:
    (first, *_) = watch(Replanner(ReplanPolicy(dry_run=True), 100.0, 0.0), [300.0] * 30)
    assert not first.apply


@given(st.lists(st.floats(0.0, 400.0), min_size=10, max_size=300), st.integers(1, 4))
def test_plans_are_never_more_than_allowed(rates: list[float], per_minute: int) -> None:
    found = watch(Replanner(ReplanPolicy(per_minute=per_minute, long_s=30.0), 50.0, 0.0), rates)
    for decision in found:
        assert sum(decision.at - 60.0 < other.at <= decision.at for other in found) <= per_minute


@pytest.mark.parametrize(
    "wrong", [{"headroom": 0.9}, {"step": 1.0}, {"fall": 1.0}, {"short_s": 0.0}, {"long_s": 1.0}, {"per_minute": 0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        ReplanPolicy(**wrong)  # type: ignore[arg-type]


def asked(replanner: Replanner, slowdowns: list[float], begin: float = 0.0) -> list[Decision]:
    """Steady traffic at the planned rate, and these run times over the profile's, second by second."""
    found = []
    for second, slowdown in enumerate(slowdowns):
        at = begin + second
        replanner.arrived(at + 0.5, 95)
        decision = replanner.decide(at + 1.0, {"s": slowdown, "t": 0.7})
        if decision is not None:
            found.append(decision)
    return found


def test_longer_runs_are_followed_soon_and_shorter_ones_late() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    slow, quick = asked(replanner, [1.0] * 60 + [1.4] * 120 + [0.9] * 400)
    assert 60 < slow.at <= 70
    assert slow.rate == 100.0
    assert slow.slowdown == {"s": pytest.approx(1.1**4)}
    assert slow.reason == "runs of stage 's' take 1.40 times what is planned"
    assert 180 + 300 <= quick.at <= 180 + 310
    assert (quick.rate, quick.slowdown) == (100.0, {})


def test_runs_that_scatter_change_nothing() -> None:
    assert asked(Replanner(ReplanPolicy(), 100.0, 0.0), [0.9, 1.1, 1.3, 1.05] * 100) == []
    known = Replanner(ReplanPolicy(), 100.0, 0.0, {"s": 1.331})
    assert asked(known, [1.2, 1.35, 1.5, 1.25] * 150) == []


def test_run_times_are_counted_up_to_a_limit_and_plans_are_few() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    found = asked(replanner, [1 + 0.1 * n for n in range(100)])
    assert max(decision.slowdown["s"] for decision in found) == 4.0
    for decision in found:
        assert sum(decision.at - 60 < other.at <= decision.at for other in found) <= 2


def test_a_plan_for_another_rate_counts_run_times_as_they_are() -> None:
    replanner = Replanner(ReplanPolicy(), 50.0, 0.0)
    (first,) = asked(replanner, [1.0] * 10 + [1.12] * 60)
    assert first.reason == "more than planned"
    assert first.slowdown == {"s": pytest.approx(1.1)}
    replanner.failed(50.0, {})
    assert (replanner.rate, replanner.slowdown) == (50.0, {})
