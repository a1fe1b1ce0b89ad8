"""How long batches take, learned: lines are found, guesses are careful, prompts that differ cost a margin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.core.device.pace import Pace
from dataflower.core.device.window import Latency, window


def test_nothing_is_known_before_something_ran() -> None:
    assert Pace().latency() is None


def test_line_is_found_from_batches_of_several_sizes() -> None:
    pace = Pace()
    for size in (1, 4, 2, 8, 3, 1, 8) * 6:
        pace.note(size, 0.4 + 0.05 * (size - 1))
    found = pace.latency()
    assert found is not None
    assert found.first_s == pytest.approx(0.4, rel=0.02)
    assert found.more_s == pytest.approx(0.05, rel=0.02)


def test_batches_of_one_size_promise_no_gain() -> None:
    pace = Pace()
    pace.note(4, 0.8)
    assert pace.latency() == Latency(0.2, 0.2)


def test_newer_batches_count_more() -> None:
    pace = Pace()
    for seconds in [0.1] * 40 + [0.5] * 40:
        pace.note(1, seconds)
    found = pace.latency()
    assert found is not None
    assert 0.45 < found.first_s < 0.6


def test_what_prompts_take_beyond_the_line_is_reckoned_with() -> None:
    pace = Pace()
    for seconds in [0.1, 0.3] * 30:
        pace.note(1, seconds)
    found = pace.latency()
    assert found is not None
    assert found.first_s > 0.25


@given(
    st.lists(st.tuples(st.integers(1, 32), st.floats(1e-4, 100)), min_size=1, max_size=40),
    st.floats(1e-3, 100),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_windows_of_what_was_learned_stay_within_objective_and_caps(
    seen: list[tuple[int, float]], slo_s: float, most: int, fitting: int
) -> None:
    pace = Pace()
    for size, seconds in seen:
        pace.note(size, seconds)
    found = pace.latency()
    assert found is not None
    assert found.first_s > 0
    assert found.more_s >= 0
    made = window(slo_s, found, most=most, fitting=fitting)
    assert 1 <= made.size <= min(most, fitting)
    assert 0 <= made.wait_s <= slo_s
    if made.wait_s > 0:  # waiting for all of that leaves time for the whole batch, and the largest batch is no larger
        assert made.wait_s + found.of(made.size) <= slo_s * (1 + 1e-9) + 1e-9
    if made.size > 1 and found.more_s > 0:
        assert found.of(made.size) <= slo_s * (1 + 1e-6) + 1e-6
