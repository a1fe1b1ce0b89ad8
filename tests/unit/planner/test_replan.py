"""Re-planning follows the traffic, with hysteresis, and never too often."""

from __future__ import annotations

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
    (first, *rest) = watch(replanner, [80.0] * 60 + [200.0] * 120)
    assert 60 < first.at <= 75
    assert first.reason == "more than planned"
    assert first.apply
    assert 200 <= replanner.rate <= 200 * 1.15 * 1.1 * 1.01
    assert len(rest) <= 2


def test_a_fall_is_followed_late_and_once() -> None:
    replanner = Replanner(ReplanPolicy(), 100.0, 0.0)
    (only,) = watch(replanner, [90.0] * 130 + [20.0] * 600)
    assert only.at > 130 + 120
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
