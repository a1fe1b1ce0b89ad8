"""Plans for a percentile: bounds against replays, Poisson and recorded arrivals, bursts, whole applications."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from dataflower.errors import InvalidArgument
from dataflower.planner import (
    Application,
    Arrivals,
    Billing,
    Configuration,
    Device,
    Infeasible,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Scheduler,
    Splitter,
    Trace,
    document_of,
    plan,
)
from dataflower.planner.options import Dispatch
from dataflower.planner.rehearse import keeps, rehearse
from dataflower.planner.stochastic import Demand, curve, late_share, latencies, quantile, turn_s
from dataflower.planner.traced import closing, percentile_of, replay, spread, starting
from tests import planner_simulation as simulation

POISSON = Options(arrivals=Arrivals.POISSON, billing=Billing.INTEGER)
TRACED = replace(POISSON, arrivals=Arrivals.TRACED)
DEVICES = {"fast": Device("fast", 3.0), "cheap": Device("cheap", 0.6)}
PROFILES = Profiles(
    tuple(
        Profile(model, hardware, tuple(Point(b, slower * (0.008 + each * b)) for b in (1, 2, 4, 8, 16)))
        for model, each in (("small", 0.001), ("large", 0.004))
        for hardware, slower in (("fast", 1.0), ("cheap", 4.0))
    ),
    DEVICES,
)
PIPELINE = Application("pipe", (Module("a", "large"), Module("b", "small", 3.0)), (("a", "b"),))
DIAMOND = Application(
    "diamond",
    (Module("a", "small"), Module("b", "large"), Module("c", "small", 2.5, 5), Module("d", "small")),
    (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")),
)


def poisson(rate: float, invocations: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, invocations))


@pytest.mark.parametrize(
    ("batch", "duration_s", "rate", "machines", "burst"),
    [
        (1, 0.1, 8.0, 1, 1),
        (1, 0.1, 8.0, 2, 1),
        (4, 0.2, 30.0, 2, 1),
        (8, 0.25, 38.0, 2, 1),
        (32, 0.8, 198.0, 6, 1),
        (32, 0.8, 20.0, 1, 1),
        (1, 0.02, 100.0, 3, 5),
        (2, 0.02, 100.0, 2, 5),
        (4, 0.1, 60.0, 2, 3),
        (8, 0.1, 200.0, 4, 12),
    ],
)
def test_the_bound_holds_and_is_not_far_off(
    batch: int, duration_s: float, rate: float, machines: int, burst: int
) -> None:
    c, late = Configuration(batch, duration_s, "gpu", 1.0), 0.01
    demand = Demand(rate, float(burst), burst, late)
    promised = float(latencies([c], [machines], demand)[0])
    arrivals = poisson(rate / burst, 60_000, seed=1)
    seen = replay(arrivals, np.full(len(arrivals), burst), c, machines, promised - duration_s)
    assert float((seen > promised * (1 + 1e-9)).mean()) <= late * 1.15  # of 60,000, which depend on each other
    assert promised <= 1.6 * float(np.quantile(seen, 1 - late))


def test_the_bound_of_full_batches_is_the_exact_exponent() -> None:
    """M/D/1 at 80 % load: the tail falls as exp(-q x) in service times, q the root of exp(q) = 1 + q/0.8."""
    root = 0.4308
    assert math.exp(root) == pytest.approx(1 + root / 0.8, rel=1e-4)
    one = Configuration(1, 1.0, "gpu", 1.0)
    ratio = [float(latencies([one], [1], Demand(0.8, late=late))[0]) - 1.0 for late in (0.01, 0.0001)]
    assert (ratio[1] - ratio[0]) * root == pytest.approx(math.log(100), rel=1e-3)


def test_more_machines_are_never_slower_and_machines_that_can_not_keep_up_promise_nothing() -> None:
    c = Configuration(8, 0.25, "gpu", 1.0)
    counts = list(range(1, 12))
    for burst in (1, 4):
        found = latencies([c] * len(counts), counts, Demand(38.0, float(burst), burst, 0.01))
        assert math.isinf(found[0])  # 1.19 machines are busy
        assert np.isfinite(found[2:]).all()
        assert (np.diff(found[2:]) <= 1e-9).all()


def test_the_staircase_falls_and_larger_bursts_cost_more() -> None:
    configurations = PROFILES.configurations("large")
    stairs = {burst: curve(configurations, Demand(60.0, float(burst), burst, 0.005)) for burst in (1, 3, 10)}
    for steps in stairs.values():
        assert [s.latency_s for s in steps] == sorted(s.latency_s for s in steps)
        assert [s.cost for s in steps] == sorted((s.cost for s in steps), reverse=True)
    cheapest = [min(s.cost for s in steps if s.latency_s <= 0.25) for steps in stairs.values()]
    assert cheapest == sorted(cheapest)


def test_parts_that_may_be_late_add_up_to_the_percentile() -> None:
    assert late_share(99.0, 4) == pytest.approx(0.0025)


def test_a_quantile_for_a_given_time_out_is_the_promise_where_that_is_the_time_out() -> None:
    c, demand = Configuration(8, 0.25, "gpu", 1.0), Demand(38.0, late=0.01)
    promised = float(latencies([c], [2], demand)[0])
    assert quantile(c, 2, demand, promised) == pytest.approx(promised, rel=1e-3)
    assert quantile(c, 2, replace(demand, late=0.1), promised) <= promised
    one = Configuration(1, 0.05, "gpu", 1.0)
    assert quantile(one, 2, replace(demand, late=0.1), 1.0) < quantile(one, 2, demand, 1.0)


def planned(app: Application, rate: float, slo_s: float, options: Options, trace: Trace | None = None) -> Plan:
    found = plan(app, PROFILES, rate, slo_s, options, trace=trace)
    assert isinstance(found, Plan)
    return found


@pytest.mark.parametrize("hold", [True, False], ids=["held", "work-conserving"])
@pytest.mark.parametrize("app", [PIPELINE, DIAMOND], ids=lambda app: app.name)
@pytest.mark.parametrize(("rate", "slo_s"), [(5.0, 0.3), (40.0, 0.25), (120.0, 0.6)])
def test_poisson_plans_keep_their_percentile(app: Application, rate: float, slo_s: float, hold: bool) -> None:
    """What the bounds vouch for holds under their own rule too; what was rehearsed, when nothing is held back."""
    found = planned(app, rate, slo_s, replace(POISSON, tighten=not hold, pack=False))
    assert found.percentile == 99.0
    arrivals = poisson(rate, 6_000, seed=3)
    counts = {m.name: spread(len(arrivals), m.factor, m.burst).tolist() for m in app.modules}
    rng = np.random.default_rng(5)
    for values in counts.values():
        rng.shuffle(values)
    latency = simulation.latencies(app, document_of(found, POISSON), arrivals.tolist(), counts, hold=hold)
    assert simulation.late_share(found, latency) <= 0.01


def test_what_is_rehearsed_is_cheaper_and_keeps_the_percentile_with_room_to_spare() -> None:
    tightened = replace(POISSON, pack=False, tighten=True)
    safe, tight = (planned(PIPELINE, 40.0, 0.25, replace(tightened, tighten=t)) for t in (False, True))
    assert tight.cost < safe.cost
    assert (safe.risk, tight.risk > 1, tight.exact) == (1.0, True, False)
    assert keeps(PIPELINE, tight, POISSON)
    assert tight == planned(PIPELINE, 40.0, 0.25, tightened)  # made up, but always the same


def test_a_rehearsal_is_what_the_naive_replay_says() -> None:
    """Batches of one have no time-outs, so both replays must agree to the last digit."""
    found = planned(DIAMOND, 40.0, 0.3, replace(POISSON, batching=False, pack=False))
    arrivals = poisson(40.0, 2_000, seed=9)
    counts = {m.name: spread(len(arrivals), m.factor, m.burst) for m in DIAMOND.modules}
    seen = rehearse(DIAMOND, found, arrivals, counts)
    requests = {name: values.tolist() for name, values in counts.items()}
    naive = simulation.latencies(DIAMOND, document_of(found, POISSON), arrivals.tolist(), requests)
    assert seen == pytest.approx(np.array(naive), abs=1e-9)


@pytest.mark.parametrize(("batch", "rate", "burst"), [(1, 2.0, 1), (4, 6.0, 1), (4, 6.0, 3), (1, 1.0, 4)])
def test_the_bound_of_a_machine_that_comes_round_holds(batch: int, rate: float, burst: int) -> None:
    """The slowest that its discipline allows: every round takes the whole cycle, whoever waits."""
    c, cycle_s, late = Configuration(batch, 0.05, "gpu", 1.0), 0.25, 0.01
    promised = turn_s(c, cycle_s, Demand(rate, float(burst), burst, late))
    rng = np.random.default_rng(11)
    arrivals = np.cumsum(rng.exponential(burst / rate, 20_000))
    waiting: deque[int] = deque()
    done = np.zeros(len(arrivals))
    turn, i = 0.0, 0
    while i < len(arrivals) or waiting:
        while i < len(arrivals) and arrivals[i] <= turn:
            waiting.extend([i] * burst)
            i += 1
        for _ in range(min(batch, len(waiting))):
            done[waiting.popleft()] = turn + c.duration_s
        turn += cycle_s
    seen = done - arrivals
    assert float((seen > promised).mean()) <= late
    assert promised <= 4 * float(np.quantile(seen, 1 - late))


def test_stages_with_little_to_do_share_machines_under_random_arrivals() -> None:
    apart, together = (planned(DIAMOND, 0.5, 2.0, replace(POISSON, pack=pack)) for pack in (False, True))
    assert together.cost < apart.cost
    shared = {s.stage for m in together.shared for s in m.shares}
    assert len(shared) >= 2
    assert together.worst_s <= 2.0 * (1 + 1e-9)
    for stage in together.stages:
        assert stage.worst_s <= stage.budget_s * (1 + 1e-9)
    document = document_of(together, POISSON)
    assert {name for name, s in document.stages.items() if s.groups[0].replicas == 0} == shared
    busy = planned(DIAMOND, 40.0, 0.3, POISSON)
    assert busy.cost <= planned(DIAMOND, 40.0, 0.3, replace(POISSON, pack=False)).cost


def test_a_paced_plan_does_not_keep_it() -> None:
    """What the percentile costs is not given away: the plan for evenly spaced arrivals breaks under random ones."""
    paced = Options(billing=Billing.INTEGER, pack=False)
    found = planned(PIPELINE, 120.0, 0.25, paced)
    assert found.cost < planned(PIPELINE, 120.0, 0.25, POISSON).cost
    arrivals = poisson(120.0, 4_000, seed=3)
    counts = {"a": [1] * 4_000, "b": [3] * 4_000}
    document = document_of(found, paced)
    if all(len(stage.groups) == 1 for stage in document.stages.values()):
        latency = simulation.latencies(PIPELINE, document, arrivals.tolist(), counts)
        assert simulation.late_share(found, latency) > 0.01


def test_a_higher_percentile_never_costs_less() -> None:
    costs = [planned(DIAMOND, 40.0, 0.3, replace(POISSON, percentile=p)).cost for p in (50.0, 90.0, 99.0, 99.9)]
    assert costs == sorted(costs)


def test_batches_close_when_they_are_full_or_their_time_is_up() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.9, 1.0, 3.0])
    first, closes = closing(times, 2, 0.5)
    assert first.tolist() == [0, 2, 3, 5]
    assert closes.tolist() == pytest.approx([0.1, 0.7, 1.0, 3.5])
    assert starting(closes, 1.0, 1).tolist() == pytest.approx([0.1, 1.1, 2.1, 3.5])
    assert starting(closes, 1.0, 2).tolist() == pytest.approx([0.1, 0.7, 1.1, 3.5])


def test_requests_are_spread_in_bursts_that_keep_the_average() -> None:
    assert spread(4, 2.5, 0).tolist() == [0, 3, 3, 3] or sum(spread(400, 2.5, 0)) == pytest.approx(1000, abs=3)
    assert spread(6, 0.5, 1).tolist() == [0, 1, 0, 1, 0, 1]
    assert set(spread(100, 2.0, 8).tolist()) == {0, 8}


def test_a_percentile_counts_those_who_asked_for_nothing() -> None:
    latency = np.array([1.0, 2.0, 3.0, 4.0])
    assert percentile_of(latency, 4, 0.25) == 3.0
    assert percentile_of(latency, 400, 0.0025) == 3.0
    assert percentile_of(latency, 4, 0.0) == 4.0


def test_a_plan_for_a_recording_holds_for_it() -> None:
    """Bursty arrivals: a plan for Poisson arrivals of the same rate is not enough, one for the recording is."""
    rng = np.random.default_rng(7)
    gaps = rng.gamma(0.15, 1 / 0.15, 3000)
    trace = Trace.of(np.cumsum(gaps).tolist())
    found = planned(PIPELINE, 40.0, 0.5, TRACED, trace)
    arrivals = trace.at(40.0)
    assert len(arrivals) / arrivals[-1] == pytest.approx(40.0, rel=0.01)
    counts = {"a": [1] * len(arrivals), "b": [3] * len(arrivals)}
    latency = simulation.latencies(PIPELINE, document_of(found, TRACED), arrivals.tolist(), counts, hold=True)
    assert simulation.late_share(found, latency) <= 0.01
    smooth = planned(PIPELINE, 40.0, 0.5, POISSON)
    assert smooth.cost < found.cost
    latency = simulation.latencies(PIPELINE, document_of(smooth, POISSON), arrivals.tolist(), counts, hold=True)
    assert simulation.late_share(smooth, latency) > 0.01


@pytest.mark.parametrize("options", [POISSON, TRACED])
def test_what_is_called_nearest_is_feasible(options: Options) -> None:
    trace = Trace.of(poisson(1.0, 100, seed=2).tolist()) if options is TRACED else None
    app = Application("one", (Module("a", "large", 2.0),))
    found = plan(app, PROFILES, 40.0, 0.01, options, trace=trace)
    assert isinstance(found, Infeasible)
    assert found.nearest_slo_s is not None
    again = plan(app, PROFILES, 40.0, found.nearest_slo_s, options, trace=trace)
    assert isinstance(again, Plan)
    tighter = plan(app, PROFILES, 40.0, found.nearest_slo_s * 0.99, options, trace=trace, explain=False)
    assert isinstance(tighter, Infeasible)


@pytest.mark.parametrize("times", [[1.0], [1.0, 1.0], [0.0, float("nan")]])
def test_a_recording_without_a_rate_is_refused(times: list[float]) -> None:
    with pytest.raises(InvalidArgument):
        Trace.of(times)


def test_switches_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="GROUP scheduler and INTEGER billing"):
        Options(arrivals=Arrivals.POISSON)
    with pytest.raises(ValueError, match="GROUP scheduler and INTEGER billing"):
        Options(
            arrivals=Arrivals.POISSON,
            billing=Billing.INTEGER,
            dispatch=Dispatch.TC,
            scheduler=Scheduler.GREEDY,
            splitter=Splitter.EXACT,
        )
    with pytest.raises(ValueError, match="percentile"):
        replace(POISSON, percentile=100.0)
    with pytest.raises(InvalidArgument, match="go together"):
        plan(PIPELINE, PROFILES, 1.0, 1.0, TRACED)
