"""How many tasks a container gets ahead."""

from __future__ import annotations

import pytest

from dataflower.core.ahead import MOST, SLACK, WITHIN_S, depth


@pytest.mark.parametrize(
    ("present", "run_s", "expected"),
    [
        (0, 0.0, 0),  # nobody knows
        (0, 0.00001, MOST),
        (0, WITHIN_S / 4, 4),
        (0, WITHIN_S, 1),
        (0, WITHIN_S * 1.1, 0),
        (8, WITHIN_S / 8 * 1.4, 8),  # a little slower than before changes nothing
        (8, WITHIN_S / 4 * SLACK, 4),
        (1, WITHIN_S * 1.4, 1),
        (1, WITHIN_S * 1.6, 0),
        (MOST, 1.0, 0),
    ],
)
def test_depth(present: int, run_s: float, expected: int) -> None:
    assert depth(present, run_s) == expected


def test_a_run_time_that_varies_a_little_leaves_the_depth_alone() -> None:
    found = depth(0, WITHIN_S / 6)
    for run_s in (WITHIN_S / 5, WITHIN_S / 4.5, WITHIN_S / 6, WITHIN_S / 5.5):
        assert depth(found, run_s) == found
