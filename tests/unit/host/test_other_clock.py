"""How far another host's clock is ahead."""

from __future__ import annotations

import pytest

from dataflower.host.other_clock import DRIFT, STALE_S, OtherClock

AHEAD = 5000.0


def test_one_exchange_bounds_it_by_how_long_it_took() -> None:
    clock = OtherClock()
    clock.met(10.0, AHEAD + 10.1, 10.4)
    assert clock.most_ahead_s(10.4) == pytest.approx(AHEAD + 0.1)
    assert clock.ahead_s(10.4) == pytest.approx(AHEAD - 0.1)


def run(clock: OtherClock, task: int, at: float, there_s: float, back_s: float, ahead: float = AHEAD) -> None:
    """A task that leaves at `at`, takes a second, and is so long on its way in either direction."""
    clock.asked(task, at)
    now = at + there_s + 1.0 + back_s
    clock.answered(task, at + there_s + ahead, now - back_s + ahead, now)


@pytest.mark.parametrize("late_s", [(0.0001, 0.05), (0.05, 0.0001), (0.05, 0.05)])
def test_hosts_that_were_busy_when_they_met_learn_from_what_comes(late_s: tuple[float, float]) -> None:
    clock = OtherClock()
    clock.met(10.0, AHEAD + 10.0 + late_s[0], 10.0 + sum(late_s))
    for task, slow in enumerate((0.03, 0.0002, 0.01)):
        run(clock, task, 11.0 + 2 * task, slow, slow)
    assert clock.ahead_s(18.0) == pytest.approx(AHEAD, abs=5e-4 + 18 * DRIFT)
    assert clock.most_ahead_s(18.0) >= AHEAD


@pytest.mark.parametrize("drift", [-DRIFT / 2, 0.0, DRIFT / 2])
def test_clocks_may_drift_apart(drift: float) -> None:
    clock = OtherClock()
    clock.met(0.0, AHEAD + 0.0001, 0.0002)
    for second in range(0, 100_000, 5):
        ahead = AHEAD + second * drift
        run(clock, second, float(second), 0.0002, 0.0002, ahead)
        assert clock.ahead_s(second + 1.0) == pytest.approx(ahead, abs=0.002)
        assert clock.most_ahead_s(second + 1.0) >= ahead


def test_of_tasks_that_never_end_nothing_is_kept() -> None:
    clock = OtherClock()
    clock.met(0.0, AHEAD + 0.05, 0.0502)
    clock.asked(1, 1.0)
    run(clock, 2, 1.5, 0.0001, 0.0001)
    before = clock.most_ahead_s(20.0)
    run(clock, 3, 1.0 + STALE_S + 1.0, 0.0001, 0.0001)
    assert clock.most_ahead_s(20.0) < before


def test_nonsense_from_the_other_side_stays_within_the_bounds() -> None:
    clock = OtherClock()
    clock.met(10.0, AHEAD + 10.1, 10.4)
    for stamp in (0.0, AHEAD + 1e9, -1e9, float("inf"), float("nan")):
        clock.asked(1, 10.5)
        clock.answered(1, stamp, stamp, 11.0)
    assert clock.ahead_s(10.4) == pytest.approx(AHEAD - 0.1)
    assert clock.most_ahead_s(10.4) == pytest.approx(AHEAD + 0.1)


def test_a_later_meeting_that_contradicts_the_first_counts() -> None:
    clock = OtherClock()
    clock.met(10.0, AHEAD + 10.1, 10.2)
    clock.met(20.0, 20.1, 20.2)
    assert clock.ahead_s(20.2) == pytest.approx(0.0, abs=1e-9)
    clock.met(30.0, 30.001, 30.3)
    assert -0.1 <= clock.ahead_s(30.3) <= 0.001


def test_before_they_met_the_clocks_are_the_same() -> None:
    clock = OtherClock()
    clock.answered(1, 3.0, 5.0, 3.0)
    assert clock.ahead_s(4.0) == 0.0
