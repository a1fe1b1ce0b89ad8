"""The rehearsal of a start leaves nothing behind."""

from __future__ import annotations

import sys

from dataflower.container.rehearsal import Sample, rehearse, sample


def test_it_runs_anew_and_leaves_no_module_behind() -> None:
    known = set(sys.modules)
    rehearse()
    rehearse()
    assert set(sys.modules) == known


def test_its_sample_is_a_function_like_any_other() -> None:
    assert list(sample(7, count=2)) == [(0, 7), (1, 7)]
    twice = Sample()
    twice.setup(2.0)
    assert twice(3.0) == 6.0
