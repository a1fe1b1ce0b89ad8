"""Which way bytes go from one lender to another, and which outputs need not come to the owner at all."""

from __future__ import annotations

import pytest

from dataflower.core.lineage import staying
from dataflower.core.lines import FIRST_PAUSE_S, LONGEST_PAUSE_S, Line
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Retry
from dataflower.testing.story import stage, workflow

AGAIN = Retry(max_attempts=2, interval_s=0.0, jitter="none")


def test_a_line_is_tried_at_once_and_again_after_pauses_that_grow() -> None:
    line, now = Line(), 100.0
    pauses = []
    for _ in range(9):
        assert line.may_try(now, is_clean=True)
        line.tried()
        assert line.is_up
        assert not line.may_try(now, is_clean=True), "it is under way"
        pauses.append(line.broke(now))
        assert not line.is_up
        assert not line.may_try(now + pauses[-1] - 0.1, is_clean=True)
        now += pauses[-1]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_line_that_was_there_starts_over_with_a_short_pause() -> None:
    line = Line()
    for _ in range(3):
        line.tried()
        line.broke(0.0)
    line.tried()
    line.met()
    assert line.broke(0.0) == FIRST_PAUSE_S


def test_a_line_waits_until_nothing_older_can_come_by_the_other_way() -> None:
    line = Line()
    assert not line.may_try(0.0, is_clean=False)
    assert line.may_try(0.0, is_clean=True)


@pytest.mark.parametrize(
    ("places", "lines", "stays"),
    [
        ({"a": "b", "r": "b"}, True, True),
        ({"a": "b", "r": "c"}, True, True),
        ({"a": "b", "r": "c"}, False, False),
        ({"a": "b", "r": "b"}, False, True),
        ({"a": "b"}, True, False),
        ({"r": "c"}, True, False),
    ],
)
def test_outputs_stay_away_from_the_owner_if_all_their_readers_do(
    places: dict[str, str], lines: bool, stays: bool
) -> None:
    stages = [stage("a", {"x": "inputs.x"}, retry=AGAIN), stage("r", {"x": "a.out"})]
    program = compile_program(workflow(stages, {"y": "r.out"}))
    assert bool(staying(program, places, lines=lines)) is stays


@pytest.mark.parametrize("retry", [None, AGAIN])
def test_who_reads_items_from_another_host_must_be_able_to_run_again(retry: Retry | None) -> None:
    """It may have begun when the rest of them is lost."""
    stages = [
        stage("a", {"x": "inputs.x"}, ("out*",), retry=AGAIN),
        stage("r", {"x*": "a.out"}, retry=retry),
    ]
    program = compile_program(workflow(stages, {"y": "r.out"}))
    assert bool(staying(program, {"a": "b", "r": "c"})) is (retry is not None)
    assert staying(program, {"a": "b", "r": "b"}), "on one host both are lost together"


def test_what_may_not_be_made_again_comes_to_the_owner() -> None:
    program = compile_program(workflow([stage("a", {"x": "inputs.x"}), stage("r", {"x": "a.out"})], {"y": "r.out"}))
    assert not staying(program, {"a": "b", "r": "c"})
