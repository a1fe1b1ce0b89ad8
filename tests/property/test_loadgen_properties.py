"""What holds of every load, every search and every split of time."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.core.verdict import percentile as judged
from dataflower.loadgen import split
from dataflower.loadgen.arrivals import Arrivals, Shape
from dataflower.loadgen.messages import Door
from dataflower.loadgen.plot import Axis
from dataflower.loadgen.report import Outcome
from dataflower.loadgen.schedule import Schedule, dealt
from dataflower.loadgen.statistics import distribution, percentile
from dataflower.loadgen.sweep import Sweep

rates = st.floats(0.5, 200)
latencies = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=300)


@st.composite
def processes(draw: st.DrawFn) -> Arrivals:
    shape = draw(st.sampled_from([Shape.CONSTANT, Shape.POISSON, Shape.GAMMA, Shape.RAMP, Shape.BURST]))
    every_s = draw(st.floats(0.5, 20))
    return Arrivals(
        shape,
        draw(rates),
        cv=draw(st.sampled_from([0.0, 0.3, 1.0, 3.0])),
        rate_to=draw(rates),
        burst_s=every_s * draw(st.floats(0.05, 0.9)),
        every_s=every_s,
    )


@given(processes(), st.floats(0.1, 30), st.integers(0, 2**31))
def test_starts_rise_and_lie_within_the_run(process: Arrivals, duration_s: float, seed: int) -> None:
    times = process.times(duration_s, seed)
    assert (np.diff(times) >= 0).all()
    assert not len(times) or (times[0] >= 0 and times[-1] < duration_s)
    assert times.tolist() == process.times(duration_s, seed).tolist()


def test_starts_that_are_closer_than_rounding_rise_too() -> None:
    ramp = Arrivals(Shape.RAMP, 30.0, cv=3.0, rate_to=190.0)
    assert all((np.diff(ramp.times(20.0, seed)) >= 0).all() for seed in range(200))


@given(processes(), st.floats(1, 30))
def test_even_spacing_keeps_the_expected_count(process: Arrivals, duration_s: float) -> None:
    import dataclasses

    even = dataclasses.replace(process, cv=0.0)
    ends, at = even._pieces(duration_s)
    starts = np.concatenate(([0.0], ends[:-1]))
    expected = float(((ends - starts) * at.sum(axis=1) / 2).sum())
    assert abs(len(even.times(duration_s, 0)) - expected) <= 1.001


@given(latencies, st.floats(0, 100))
def test_percentiles_are_numpys_nearest_rank_and_the_verdicts(values: list[float], q: float) -> None:
    found = percentile(values, q)
    assert found in values
    assert found == float(np.quantile(np.array(values), q / 100, method="inverted_cdf"))
    assert sum(v <= found for v in values) >= q / 100 * len(values) - 1e-6
    if q in (50.0, 90.0, 95.0, 99.0):
        assert found == judged(values, q)


@given(latencies)
def test_a_distribution_is_in_order(values: list[float]) -> None:
    found = distribution(values)
    assert found is not None
    assert found.min <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max
    assert found.min - 1e-6 <= found.avg <= found.max + 1e-6


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(0.01, 0.5))
def test_a_sweep_closes_in_on_any_limit(start: float, limit: float, tolerance: float) -> None:
    sweep = Sweep(start, tolerance=tolerance)
    while (rate := sweep.next_rate()) is not None:
        sweep.record(rate, [Outcome.MET if rate <= limit else Outcome.MISSED] * 2)
    assert sweep.met is not None
    assert sweep.missed is not None
    assert sweep.met <= limit < sweep.missed <= sweep.met * (1 + tolerance) * (1 + 1e-9)


@given(st.integers(0, 200), st.integers(1, 7), st.integers(1, 5))
def test_every_request_is_dealt_once(requests: int, generators: int, sets: int) -> None:
    schedule = Schedule(np.arange(requests) / 10, dealt(requests, sets, seed=0, shuffled=False), [b""] * sets, 0, 100)
    jobs = schedule.jobs(Door("a", "w"), "run", generators, deadline_s=None, drain_s=1.0)
    assert sorted(number for job in jobs for number in job.numbers) == list(range(requests))
    assert all(job.picks == [number % sets for number in job.numbers] for job in jobs)
    assert all(job.times == sorted(job.times) for job in jobs)


@st.composite
def traces(draw: st.DrawFn) -> InvocationTrace:
    tasks = []
    for i in range(draw(st.integers(0, 6))):
        points = sorted(draw(st.lists(st.floats(1, 100), min_size=5, max_size=5)))
        tasks.append(
            TaskTrace(f"s{i % 3}", (), 1, points[0], 1, points[1], points[2], points[2], 0, points[3], points[4])
        )
        tasks[-1].batch_wait_s = draw(st.floats(0, 5))
    return InvocationTrace("i", "w@1", draw(st.floats(0.5, 50)), draw(st.floats(50, 120)), tasks=tasks)


@given(traces())
def test_no_moment_is_lost_or_counted_twice(trace: InvocationTrace) -> None:
    found = split.of_invocation(trace)
    assert math.isclose(sum(found.values()), trace.finished - trace.arrived, abs_tol=1e-6)
    assert all(seconds >= 0 for seconds in found.values())
    for task in trace.tasks:
        assert math.isclose(sum(split.of_task(task).values()), task.sent - task.queued, abs_tol=1e-6)


@given(st.floats(0.001, 1e6), st.floats(1.01, 1e4), st.booleans())
def test_ticks_lie_on_the_axis(low: float, ratio: float, log: bool) -> None:
    axis = Axis(low if log else 0.0, low * ratio, 60, 1000, log)
    ticks = axis.ticks()
    assert len(ticks) <= 40
    assert all(60 - 1e-6 <= axis.at(tick) <= 1000 + 1e-6 for tick in ticks)
