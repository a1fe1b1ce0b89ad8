"""The SLO verdict on one invocation."""

from __future__ import annotations

import pytest

from dataflower.core.verdict import judge, percentile
from dataflower.spec.workflow import Slo


def test_no_slo_no_verdict() -> None:
    assert judge(None, 0.0, 1.0, {}) == ()


def test_end_to_end() -> None:
    (verdict,) = judge(Slo(e2e_ms=500), 1.0, 1.75, {})
    assert not verdict.met
    assert str(verdict) == "e2e: 750.0 ms of 500 ms, MISSED by 250.0 ms"


def test_met_tells_what_is_left() -> None:
    (verdict,) = judge(Slo(e2e_ms=1000), 1.0, 1.75, {})
    assert verdict.met
    assert "met, 250.0 ms to spare" in str(verdict)


def test_first_item_of_any_stream_counts_for_ttft() -> None:
    (verdict,) = judge(Slo(ttft_ms=100), 1.0, 3.0, {"a": [1.5, 2.0], "b": [1.25]})
    assert verdict.measured_ms == 250.0


def test_without_a_stream_the_end_is_the_first_output() -> None:
    (verdict,) = judge(Slo(ttft_ms=100), 1.0, 3.0, {})
    assert verdict.measured_ms == 2000.0


def test_gaps_of_the_worst_stream_count() -> None:
    itl, tpot = judge(Slo(itl_ms=100, tpot_ms=100), 0.0, 9.0, {"a": [1, 1.25, 1.5], "b": [1, 3, 3.5]})
    assert itl.measured_ms == 2000.0
    assert tpot.measured_ms == 1250.0


def test_a_single_item_has_no_gap_and_breaks_nothing() -> None:
    (verdict,) = judge(Slo(itl_ms=100), 0.0, 9.0, {"a": [1.0]})
    assert verdict.met
    assert verdict.as_data() == {"metric": "itl_ms", "limit_ms": 100, "measured_ms": None, "met": True}


@pytest.mark.parametrize(("share", "expected"), [(50, 2), (75, 3), (99, 4), (100, 4), (1, 1)])
def test_nearest_rank_percentile(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected
