"""The search for the highest rate, against servers with a known limit."""

from __future__ import annotations

import pytest

from dataflower.errors import InvalidArgument
from dataflower.loadgen.report import Outcome
from dataflower.loadgen.sweep import MAX_STEPS, Sweep


def search(sweep: Sweep, limit: float) -> list[float]:
    tried = []
    while (rate := sweep.next_rate()) is not None:
        tried.append(rate)
        sweep.record(rate, [Outcome.MET if rate <= limit else Outcome.MISSED] * sweep.repeats)
    return tried


@pytest.mark.parametrize("limit", [0.3, 7.0, 10.0, 640.0, 1234.5])
def test_it_closes_in_on_the_limit(limit: float) -> None:
    sweep = Sweep(10.0)
    tried = search(sweep, limit)
    assert sweep.met is not None
    assert sweep.missed is not None
    assert sweep.met <= limit < sweep.missed <= sweep.met * 1.05
    assert len(tried) < 20


def test_one_bad_repeat_is_a_miss() -> None:
    sweep = Sweep(10.0, repeats=2)
    sweep.record(10.0, [Outcome.MET, Outcome.MISSED])
    assert (sweep.met, sweep.missed) == (None, 10.0)


def test_what_is_unproven_is_not_met() -> None:
    sweep = Sweep(10.0, repeats=1)
    sweep.record(10.0, [Outcome.UNPROVEN])
    assert sweep.missed == 10.0


def test_a_server_that_never_meets_it_ends_at_the_floor() -> None:
    sweep = Sweep(8.0, floor=1.0)
    assert search(sweep, 0.0) == [8.0, 4.0, 2.0, 1.0]
    assert sweep.met is None


def test_a_server_that_always_meets_it_ends_at_the_ceiling() -> None:
    sweep = Sweep(8.0, ceiling=20.0)
    assert search(sweep, 1e9) == [8.0, 16.0]
    assert sweep.missed is None


def test_a_contradicting_server_does_not_keep_it_forever() -> None:
    """Met at a rate above one that was missed: bisection can't close, the steps run out."""
    sweep = Sweep(10.0, tolerance=1e-9)
    assert len(search(sweep, 11.0)) <= MAX_STEPS


def test_it_says_its_rule() -> None:
    assert "each of its 3 runs" in Sweep(10.0, repeats=3).rule


@pytest.mark.parametrize("bad", [{"start": 0.0}, {"start": 1.0, "repeats": 0}, {"start": 1.0, "tolerance": 0.0}])
def test_nonsense_sweeps_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Sweep(**bad)  # type: ignore[arg-type]
