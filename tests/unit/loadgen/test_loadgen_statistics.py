"""Percentiles, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataflower.loadgen.statistics import bootstrap_difference, distribution, percentile


def mean(values: Any) -> Any:
    return values.mean(axis=-1)


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = list(range(1, 101))
    assert [percentile(values, q) for q in (0, 50, 99, 99.5, 100)] == [1, 50, 99, 100, 100]


def test_distribution() -> None:
    found = distribution([4.0, 1.0, 2.0, 3.0])
    assert found is not None
    assert (found.n, found.avg, found.min, found.p50, found.p99, found.max) == (4, 2.5, 1.0, 2.0, 4.0, 4.0)
    assert distribution([]) is None


def test_bootstrap_finds_a_real_difference() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(100, 10, 400), random.normal(110, 10, 400)
    found = bootstrap_difference(a, b, mean, seed=0)
    assert found.low < 10 < found.high
    assert found.is_clear
    assert found.high - found.low == pytest.approx(4 * 10 * (2 / 400) ** 0.5, rel=0.35)  # about +-1.96 standard errors


def test_bootstrap_sees_no_difference_where_there_is_none() -> None:
    random = np.random.default_rng(2)
    assert not bootstrap_difference(random.normal(0, 1, 300), random.normal(0, 1, 300), mean, seed=0).is_clear


def test_bootstrap_is_wider_where_neighbours_are_alike() -> None:
    """A slow stretch is one event, not a hundred: blocks keep it together."""
    random = np.random.default_rng(3)
    wave = np.repeat(random.normal(0, 1, 40), 25)
    alone = random.permutation(wave)
    other = np.zeros(1000)
    joined = bootstrap_difference(other, wave, mean, seed=0)
    shuffled = bootstrap_difference(other, alone, mean, seed=0)
    assert joined.high - joined.low > 1.8 * (shuffled.high - shuffled.low)


def test_bootstrap_is_seeded() -> None:
    values = np.arange(50.0)
    assert bootstrap_difference(values, values * 2, mean, seed=4) == bootstrap_difference(
        values, values * 2, mean, seed=4
    )
