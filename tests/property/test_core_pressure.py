"""Whatever is sent how fast: no formula loses a task or waits for ever, and ours makes nothing slower."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataflower.core.config import CoreConfig
from dataflower.core.pressure import ALPHA, Outflow, Pressure, hold
from dataflower.planner.simulate import Figures, Simulated, Simulation
from dataflower.spec.workflow import Resources, Scaling
from dataflower.testing.story import stage, workflow

MB = 1_000_000
BYTES = st.integers(0, 1 << 40)
RATES = st.floats(0, 1e10)
RESOURCES = st.builds(Resources, cpu=st.floats(0.1, 64), bandwidth=st.none() | st.floats(1e3, 1e10))


@example(Pressure.MEASURED, 0, 1 << 20, 5e-324, Resources(), 0.0)
@given(st.sampled_from(Pressure), BYTES, BYTES, RATES, RESOURCES, st.floats(0, 1e4))
def test_a_place_is_never_held_longer_than_all_that_it_is_held_for_takes(
    rule: Pressure, fresh: int, waiting: int, rate: float, resources: Resources, run_s: float
) -> None:
    found = hold(rule, Outflow(fresh, waiting, rate), resources, run_s)
    assert 0 <= found.seconds < math.inf
    if rule is Pressure.MEASURED and found.seconds:
        slowest = min(r for r in (rate, resources.bandwidth) if r)
        assert found.seconds * slowest <= waiting * (1 + 1e-9)
    if rule is Pressure.PAPER and found.seconds and resources.bandwidth:
        assert (found.seconds + run_s) * resources.bandwidth <= ALPHA * fresh * (1 + 1e-9)
    more = hold(rule, Outflow(fresh * 2, waiting * 2, rate), resources, run_s)
    assert more.seconds >= found.seconds, "more bytes hold it for longer"
    assert hold(rule, Outflow(fresh, waiting, rate), resources, run_s * 2).seconds <= found.seconds


@dataclass(frozen=True)
class Case:
    """One stage on another host. `gap_s`: between calls; `bandwidth` of a container, `line` of all together."""

    run_s: float
    nbytes: int
    bandwidth: float | None
    line: float
    replicas: int
    gap_s: float
    start_s: float
    count: int = 40
    concurrency: int = 1

    def play(self, rule: Pressure) -> tuple[Figures, Simulation]:
        scaling = Scaling(max_replicas=self.replicas, concurrency=self.concurrency)
        far = stage("far", {}, resources=Resources(bandwidth=self.bandwidth), scaling=scaling)
        given = Simulated(
            workflow([far], {"y": "far.out"}, inputs=[]), lambda *_: self.run_s, sends={"far": self.nbytes}
        )
        simulation = Simulation(
            {"w@1": given}, start_s=self.start_s, config=CoreConfig(pressure=rule), line_bytes_per_s=self.line
        )
        figures = simulation.run((n * self.gap_s, "w@1") for n in range(self.count))
        simulation.core.check_integrity()
        return figures, simulation


CASES = st.builds(
    Case,
    run_s=st.floats(0.001, 0.5),
    nbytes=st.integers(1, 50 * MB),
    bandwidth=st.none() | st.floats(1e6, 1e8),
    line=st.floats(1e6, 1e9),
    replicas=st.integers(1, 6),
    gap_s=st.floats(0.0, 0.5),
    start_s=st.floats(0.0, 0.3),
    concurrency=st.integers(1, 3),
)


@settings(deadline=None, max_examples=60)
@given(CASES, st.sampled_from(Pressure))
def test_every_call_is_answered_whatever_the_formula(case: Case, rule: Pressure) -> None:
    figures, simulation = case.play(rule)
    assert len(figures.latency_s) == case.count
    books = simulation.core.statistics()
    assert (books.tasks, books.queued, books.invocations) == (0, 0, 0)


@settings(deadline=None, max_examples=60)
@given(CASES)
@example(Case(0.013, 17_600_000, 10e6, 1e9, 4, 0.5, 0.03))
def test_ours_is_never_much_later_than_a_container_that_goes_on_regardless(case: Case) -> None:
    """The same last answer at most: a place is free just when the next outputs find the way free."""
    without, _ = case.play(Pressure.OFF)
    measured, _ = case.play(Pressure.MEASURED)
    allowance = case.start_s + case.run_s + case.nbytes / min(case.bandwidth or math.inf, case.line)
    assert measured.ended_s <= without.ended_s + allowance


def test_a_stage_grows_when_its_data_unit_is_what_is_slow() -> None:
    """Functions of 50 ms whose outputs take 100 ms: one container computes fast enough, and can't send them."""
    case = Case(0.05, MB, 10e6, 1e9, 4, 0.06, 0.03, count=100)
    without, measured, paper = (case.play(rule)[0] for rule in (Pressure.OFF, Pressure.MEASURED, Pressure.PAPER))
    assert max(without.latency_s) > 3.0, "bytes pile up behind one container"
    assert max(measured.latency_s) < 0.5
    assert max(paper.latency_s) < 0.5


def test_a_stage_does_not_grow_when_the_line_is_what_is_slow() -> None:
    """The formula of the paper starts containers that can't send either."""
    case = Case(0.05, 4 * MB, 10e6, 5e6, 8, 0.06, 0.03, count=100)
    measured, paper = (case.play(rule)[0] for rule in (Pressure.MEASURED, Pressure.PAPER))
    assert measured.ended_s <= paper.ended_s * 1.02
    assert 2 * measured.stages["w@1", "far"].containers < paper.stages["w@1", "far"].containers
