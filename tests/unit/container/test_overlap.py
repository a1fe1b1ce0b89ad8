"""When outputs are copied beside the next task."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from dataflower.container.overlap import BLOCK, FIRST, KEPT, RARELY, Overlap

LEARNED = FIRST + (BLOCK + 1) * 2 * (KEPT + 1)


@dataclass
class Machine:
    """Functions and copies that take so long alone, and so many times as long beside each other. Seconds."""

    work: float
    copy: float
    slower: float
    faults: float = 0.0
    """Seconds more of the first tasks' copies."""
    speed: Callable[[float], float] = lambda now: 1.0
    now: float = field(default=100.0, kw_only=True)
    beside: bool = field(default=False, kw_only=True)
    """Whether the outputs of the task before are copied at the same time."""

    def run(self, overlap: Overlap, tasks: int, *, wanted: bool = True) -> list[bool]:
        """So many tasks, with another waiting at all times. How the outputs of each are copied."""
        ways = []
        for number in range(tasks):
            received, takes = self.now, self.work
            if self.beside:
                takes = max(self.work, self.copy) * self.slower
            self.beside = overlap.ran(received, wanted=wanted)
            if not self.beside:
                takes += self.copy
            self.now += (takes + (self.faults if number < FIRST else 0.0)) / self.speed(self.now)
            ways.append(self.beside)
        return ways


def usual(ways: list[bool]) -> bool:
    """What was done with most of them."""
    return 2 * sum(ways) > len(ways)


MACHINES = [
    pytest.param(Machine(0.004, 0.004, 1.0), True, id="neither is in the way of the other"),
    pytest.param(Machine(0.004, 0.004, 2.6), False, id="both only write"),
    pytest.param(Machine(0.009, 0.004, 1.1), True, id="the function computes longer than it writes"),
    pytest.param(Machine(0.05, 0.004, 1.01), True, id="the copy hardly matters"),
    pytest.param(Machine(0.004, 0.004, 2.7, faults=0.1), False, id="the first copies made the pages"),
    pytest.param(Machine(0.02, 0.015, 1.6), True, id="a little is won"),
]


@pytest.mark.parametrize(("machine", "pays"), MACHINES)
def test_outputs_are_copied_in_the_way_that_takes_less(machine: Machine, pays: bool) -> None:
    overlap = Overlap()
    machine.run(overlap, LEARNED)
    assert usual(machine.run(overlap, 200)) is pays


@pytest.mark.parametrize(("work", "pays"), [(0.004, False), (0.012, True)])
def test_a_machine_that_changes_its_speed_misleads_nobody(work: float, pays: bool) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        speeds = [rng.choice((1.0, 1.8)) for _ in range(1000)]
        machine = Machine(work, 0.004, 2.6 if work == 0.004 else 1.05, speed=lambda now, of=speeds: of[int(now)])
        overlap = Overlap()
        machine.run(overlap, LEARNED)
        assert usual(machine.run(overlap, 1000)) is pays, seed


def test_the_other_way_is_tried_less_and_less_often() -> None:
    overlap, machine = Overlap(), Machine(0.004, 0.004, 2.6)
    machine.run(overlap, 1000)
    ways = machine.run(overlap, 10 * RARELY * (BLOCK + 1))
    assert 8 * (BLOCK + 1) <= sum(ways) <= 10 * (BLOCK + 1)


def test_a_function_that_changes_is_treated_otherwise() -> None:
    overlap = Overlap()
    writes, computes = Machine(0.004, 0.004, 2.6), Machine(0.02, 0.004, 1.1)
    noticed = 4 * RARELY * (BLOCK + 1)
    now = 100.0
    for machine, pays in ((writes, False), (computes, True), (writes, False)):
        machine.now = now
        machine.run(overlap, noticed)
        assert usual(machine.run(overlap, 100)) is pays
        now = machine.now


def test_beside_comes_first() -> None:
    ways = Machine(0.004, 0.004, 2.6).run(Overlap(), FIRST + BLOCK + 1)
    assert ways == [True] * len(ways)


def test_while_nobody_waits_nothing_is_copied_beside_or_measured() -> None:
    overlap, machine = Overlap(), Machine(0.004, 0.004, 2.6)
    machine.run(overlap, LEARNED)
    for _ in range(100):
        assert not any(machine.run(overlap, 3, wanted=False))
        machine.now += 5.0
    assert not usual(machine.run(overlap, 200))
