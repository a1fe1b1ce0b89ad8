"""Arrival processes: their statistics with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from dataflower.errors import InvalidArgument
from dataflower.loadgen.arrivals import Arrivals, Shape, gaps_of


def test_constant_is_even_from_zero_on() -> None:
    times = Arrivals(Shape.CONSTANT, 4.0, cv=0.0).times(2.0, seed=1)
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_poisson_has_its_rate_and_exponential_gaps() -> None:
    times = Arrivals(Shape.POISSON, 50.0).times(400.0, seed=7)
    rate, cv = gaps_of(times)
    assert rate == pytest.approx(50, rel=0.03)
    assert cv == pytest.approx(1, abs=0.03)
    gaps = np.sort(np.diff(times))
    expected = 1 - np.exp(-50 * gaps)
    assert np.abs(expected - np.arange(1, len(gaps) + 1) / len(gaps)).max() < 0.015  # Kolmogorov-Smirnov distance


@pytest.mark.parametrize("cv", [0.5, 2.0, 4.0])
def test_gamma_has_the_asked_for_spread(cv: float) -> None:
    rate, found = gaps_of(Arrivals(Shape.GAMMA, 100.0, cv=cv).times(600.0, seed=3))
    assert rate == pytest.approx(100, rel=0.06)
    assert found == pytest.approx(cv, rel=0.06)


def test_ramp_follows_its_line() -> None:
    times = Arrivals(Shape.RAMP, 10.0, rate_to=30.0, cv=0.0).times(100.0, seed=1)
    assert len(times) == 2000  # (10 + 30) / 2 a second
    assert (times < 50).sum() == pytest.approx(750, abs=2)  # 10 to 20 a second


def test_ramp_may_fall() -> None:
    times = Arrivals(Shape.RAMP, 30.0, rate_to=10.0, cv=0.0).times(100.0, seed=1)
    assert (times < 50).sum() == pytest.approx(1250, abs=2)


def test_bursts_come_at_the_end_of_each_period() -> None:
    times = Arrivals(Shape.BURST, 2.0, rate_to=50.0, burst_s=1.0, every_s=5.0, cv=0.0).times(20.0, seed=1)
    within = times[(times % 5) >= 4]
    assert len(within) == pytest.approx(200, abs=4)
    assert len(times) - len(within) == pytest.approx(32, abs=4)


def test_the_same_seed_gives_the_same_times() -> None:
    process = Arrivals(Shape.POISSON, 20.0)
    assert process.times(10, 5).tolist() == process.times(10, 5).tolist()
    assert process.times(10, 5).tolist() != process.times(10, 6).tolist()


def test_at_rate_scales_everything() -> None:
    ramp = Arrivals(Shape.RAMP, 10.0, rate_to=30.0).at_rate(20.0)
    assert (ramp.rate, ramp.rate_to, ramp.peak) == (20.0, 60.0, 60.0)


@pytest.mark.parametrize(
    ("process", "duration_s", "said"),
    [
        (Arrivals(rate=0.0), 10.0, "the rate must be greater than 0"),
        (Arrivals(rate=float("inf")), 10.0, "the rate must be greater than 0"),
        (Arrivals(), 0.0, "the duration must be greater than 0"),
        (Arrivals(Shape.GAMMA, cv=-1.0), 10.0, "variation must not be negative"),
        (Arrivals(Shape.RAMP), 10.0, "the rate to reach"),
        (Arrivals(Shape.BURST, rate_to=5.0, burst_s=10.0, every_s=10.0), 10.0, "don't fit"),
        (Arrivals(rate=1e9), 10.0, "lower the rate"),
    ],
)
def test_nonsense_is_refused(process: Arrivals, duration_s: float, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        process.times(duration_s, 0)


def test_it_says_what_it_is() -> None:
    assert str(Arrivals(Shape.POISSON, 5.0)) == "5/s, Poisson"
    assert str(Arrivals(Shape.CONSTANT, 5.0, cv=0.0)) == "5/s, evenly spaced"
    assert "ramp from 5/s to 9/s" in str(Arrivals(Shape.RAMP, 5.0, rate_to=9.0))
    assert "bursts of 9/s for 1 s every 10 s" in str(Arrivals(Shape.BURST, 5.0, rate_to=9.0))
