"""The storms' counts: each of them tells of what it is there for, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.cancelstorm import Counts
from bench.footprint import Footprint
from bench.storm_flows import FLOWS, Flow, Tally, number
from bench.storm_functions import NOTE, numbered_array
from dataflower.core.trace import InvocationTrace, TaskTrace

FAN = next(flow for flow in FLOWS if flow.name == "fan")


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_what_came_as_it_must_is_neither_lost_nor_doubled(flow: Flow) -> None:
    tally = Tally()
    tally.add(flow, 3, {port: list(numbers) for port, numbers in flow.expected(3).items()})
    assert (tally.lost, tally.doubled, tally.words) == (0, 0, [])
    assert tally.items > 0


@pytest.mark.parametrize(
    ("came", "lost", "doubled"),
    [([0, 2], 1, 0), ([0, 1, 1, 2], 0, 1), ([0, 2, 1], 1, 0), ([0, -1, 2], 1, 0), ([], 3, 0), ([0, 1, 2, 0, 1], 0, 2)],
    ids=["lacks one", "one twice", "out of order", "torn", "nothing", "two twice"],
)
def test_what_is_lost_or_twice_is_counted_and_named(came: list[int], lost: int, doubled: int) -> None:
    tally = Tally()
    tally.add(FAN, 3, {"all": came, "made": [0, 1, 2]})
    assert (tally.lost, tally.doubled) == (lost, doubled)
    assert len(tally.words) == 1


def test_a_call_that_failed_has_lost_what_did_not_come() -> None:
    tally = Tally()
    tally.add(FAN, 4, {"made": [0, 1]}, "InvocationFailed: on purpose")
    assert tally.lost == 4 + 2


def test_an_array_that_is_not_whole_has_no_number() -> None:
    array = numbered_array(300, 1000)
    assert number(array, 1000) == 300
    assert number(array, 1001) == -1
    array[999] ^= 1
    assert number(array, 1000) == -1
    assert number("no array", 1000) == -1
    assert number(np.zeros(1000, np.uint8), 1000) == 0


def test_only_what_there_is_more_of_is_left_behind() -> None:
    before = Footprint(bytes=4096, descriptors=20, processes=3)
    assert Footprint(0, 20, 2).beyond(before) == {}
    assert Footprint(8192, 21, 5).beyond(before) == {"bytes": 4096, "descriptors": 1, "processes": 2}


def test_functions_that_began_after_the_cancellation_have_run_and_others_were_reached(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    rows = [
        (1, 0, 0.5, 5.002),  # found running, ended 2 ms later
        (1, 1, 5.005, 5.006),  # was on its way
        (1, 2, 5.06, 5.07),  # should not have been
        (1, 0, 1.0, 2.0),  # over before
        (2, 0, 1.0, 9.0),  # never cancelled
    ]
    both = [
        note for call, place, begun, ended in rows for note in ((call, place, begun, 0.0), (call, place, begun, ended))
    ]
    notes.write_bytes(b"".join(NOTE.pack(*note) for note in both))
    counts = Counts(at={1: 5.0})
    counts.read(notes, {1: "chain", 2: "fan"})
    assert (counts.ran, counts.raced) == (1, 1)
    assert counts.reach_s == pytest.approx([0.002])
    assert list(counts.met) == [("chain", 0)]


def test_a_later_stage_that_was_killed_has_noted_that_it_began(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(NOTE.pack(1, 2, 5.06, 0.0))
    counts = Counts(at={1: 5.0})
    counts.read(tmp_path / "notes", {1: "chain"})
    assert (counts.ran, counts.later, counts.reach_s) == (1, 1, [])


def test_a_later_stage_that_left_no_note_counts_by_what_its_container_reported(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(NOTE.pack(1, 0, 1.0, 0.0))
    tasks = [
        TaskTrace("first", (), 1, 0.9, dispatched=0.95, started=1.0),
        TaskTrace("second", (), 1, 4.8, dispatched=4.9, started=5.005),  # it was on its way
        TaskTrace("third", (), 1, 4.8, dispatched=4.9, started=5.02),
        TaskTrace("third", (), 2, 4.8),  # never given out
    ]
    counts = Counts(at={1: 5.0})
    counts.read(tmp_path / "notes", {1: "chain"})
    counts.hear(1, InvocationTrace("i", "k", 0.0, tasks=tasks))
    assert (counts.given_out, counts.ran, counts.reported, counts.unnoted, counts.later) == (0, 0, 1, 2, 1)
    counts.hear(1, InvocationTrace("i", "k", 0.0, tasks=[TaskTrace("second", (), 1, 4.8, dispatched=5.001)]))
    assert (counts.given_out, counts.later) == (1, 2)
