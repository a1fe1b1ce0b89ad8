"""When outputs are copied beside the next task."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dataflower.container.overlap import FIRST, KEPT, TRIED_EVERY, Overlap

LEARNED = FIRST + 2 * KEPT + 2


@dataclass
class Machine:
    """Functions and copies that take so long alone, and so many times as long beside each other."""

    work: float
    copy: float
    slower: float
    faults: float = 0.0
    """Seconds more of the first tasks' copies."""

    def run(self, overlap: Overlap, tasks: int) -> list[bool]:
        """So many tasks, with another waiting at all times. How the outputs of each are copied."""
        ways, beside = [], False
        for number in range(tasks):
            factor = self.slower if beside else 1.0
            beside = overlap.ran(self.work * factor)
            overlap.goes(beside=beside)
            late = self.faults if number < FIRST else 0.0
            overlap.copied(self.copy * (self.slower if beside else 1.0) + late, beside=beside)
            ways.append(beside)
        return ways


def usual(ways: list[bool]) -> bool:
    """What was done with most of them."""
    return 2 * sum(ways) > len(ways)


@pytest.mark.parametrize(
    ("machine", "pays"),
    [
        pytest.param(Machine(0.004, 0.004, 1.0), True, id="neither is in the way of the other"),
        pytest.param(Machine(0.004, 0.004, 2.6), False, id="both only write"),
        pytest.param(Machine(0.009, 0.004, 1.1), True, id="the function computes longer than it writes"),
        pytest.param(Machine(0.05, 0.004, 1.01), True, id="the copy hardly matters"),
        pytest.param(Machine(0.004, 0.004, 2.7, faults=0.1), False, id="the first copies made the pages"),
        pytest.param(Machine(0.02, 0.02, 2.0), True, id="it is all the same"),
    ],
)
def test_outputs_are_copied_in_the_way_that_takes_less(machine: Machine, pays: bool) -> None:
    overlap = Overlap()
    machine.run(overlap, LEARNED)
    assert usual(machine.run(overlap, 100)) is pays


def test_the_other_way_is_tried_now_and_then() -> None:
    overlap = Overlap()
    machine = Machine(0.004, 0.004, 2.6)
    machine.run(overlap, LEARNED)
    ways = machine.run(overlap, 10 * TRIED_EVERY)
    assert sum(ways) == 10


def test_a_function_that_changes_is_soon_treated_otherwise() -> None:
    overlap = Overlap()
    Machine(0.004, 0.004, 2.6).run(overlap, 50)
    Machine(0.02, 0.004, 1.1).run(overlap, KEPT * TRIED_EVERY)
    assert usual(Machine(0.02, 0.004, 1.1).run(overlap, 50))
    Machine(0.004, 0.004, 2.6).run(overlap, KEPT * TRIED_EVERY)
    assert not usual(Machine(0.004, 0.004, 2.6).run(overlap, 50))


def test_until_both_ways_were_measured_they_take_turns_and_beside_comes_first() -> None:
    overlap = Overlap()
    assert Machine(0.004, 0.004, 2.6).run(overlap, FIRST + KEPT) == [True] * (FIRST + KEPT)


def test_where_copies_can_not_be_made_beside_nothing_goes_wrong() -> None:
    overlap = Overlap()
    for _ in range(100):
        overlap.ran(0.004)
        overlap.copied(0.004, beside=False)
        overlap.goes(beside=False)
    assert usual(Machine(0.02, 0.004, 1.1).run(overlap, 50))
