"""Bounds of our dispatch hold in simulation of paced arrivals, whatever the stage and the plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.planner import bounds
from dataflower.planner.application import Application, Module
from dataflower.planner.dispatch import LAG_S, dispatch_of
from dataflower.planner.document import document_of
from dataflower.planner.options import Billing, Options
from dataflower.planner.plan import Plan, plan
from dataflower.planner.profile import Configuration, Device, Point, Profile, Profiles
from dataflower.planner.simulate import Simulated, planned, simulate
from dataflower.planner.synthetic import workflow_of

DEVICES = {"x": Device("x", 1.0), "y": Device("y", 2.7)}
OPTIONS = Options(billing=Billing.INTEGER, pack=False)


@st.composite
def profiles(draw: st.DrawFn) -> Profiles:
    """Two devices with batches that save something."""
    return known(*((draw(st.floats(0.001, 0.2)), draw(st.floats(0.0005, 0.05))) for _ in range(4)))


def known(*costs: tuple[float, float]) -> Profiles:
    """Of two models on two devices: what a batch takes, and what each request takes besides."""
    names = [(model, hardware) for model in ("m0", "m1") for hardware in DEVICES]
    return Profiles(
        tuple(
            Profile(model, hardware, tuple(Point(b, fixed + each * b) for b in (1, 2, 3, 8, 20)))
            for (model, hardware), (fixed, each) in zip(names, costs, strict=True)
        ),
        DEVICES,
    )


SHAPES = {
    "one": ((), 1),
    "chain": ((("s0", "s1"), ("s1", "s2")), 3),
    "diamond": ((("s0", "s1"), ("s0", "s2"), ("s1", "s3"), ("s2", "s3")), 4),
}


OVERTAKEN = known((0.1632, 0.0047), (0.0018, 0.0109), (0.0013, 0.022), (0.0254, 0.007))
CHAINED = known((0.00127, 0.006168), (0.027, 0.02577), (0.0719, 0.0126), (0.0147, 0.009))
"""Plans with a stage of two groups, whose tasks overtake each other: they were 2 % late behind it."""


@settings(deadline=None)
@example(OVERTAKEN, "diamond", 112.07, 4.62)
@example(CHAINED, "chain", 197.63, 4.331)
@given(profiles(), st.sampled_from(sorted(SHAPES)), st.floats(3.0, 300.0), st.floats(1.1, 6.0))
def test_the_bound_of_a_plan_is_never_exceeded(given_: Profiles, shape: str, rate: float, multiple: float) -> None:
    edges, count = SHAPES[shape]
    application = Application(shape, tuple(Module(f"s{n}", f"m{n % 2}") for n in range(count)), edges)
    least = {m.name: min(c.duration_s for c in given_.configurations(m.model)) for m in application.modules}
    found = plan(application, given_, rate, multiple * application.longest(least), OPTIONS, explain=False)
    if not isinstance(found, Plan):
        return
    synthetic = workflow_of(application)
    dispatch = dispatch_of(document_of(found, OPTIONS), synthetic.workflow, admission=False)
    figures = simulate(
        Simulated(synthetic.workflow, planned(dispatch), dispatch, synthetic.items), (n / rate for n in range(150))
    )
    assert len(figures.latency_s) == 150
    assert max(figures.latency_s) <= found.slo_s * (1 + 1e-6) + 1e-5
    if count == 1:
        (own,) = found.stages
        halfway = own.worst_s + 0.5 * (own.budget_s - own.worst_s)
        assert max(figures.latency_s) <= halfway * (1 + 1e-6) + 1e-5


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    return Configuration(draw(st.integers(1, 8)), draw(st.floats(0.01, 0.3)), "x", 1.0)


@settings(deadline=None)
@example(Configuration(7, 0.02417, "x", 1.0), 1, Configuration(8, 0.2, "x", 1.0), 2, 0.52, 2, 4, 0.96)
@example(Configuration(7, 0.06605, "x", 1.0), 2, Configuration(7, 0.155, "x", 1.0), 2, 0.65286, 5, 4, 0.96)
@example(Configuration(2, 0.01, "x", 1.0), 1, Configuration(2, 0.28, "x", 1.0), 1, 0.9, 3, 2, 0.86644)
@given(
    configurations(),
    st.integers(1, 3),
    configurations(),
    st.integers(1, 2),
    st.floats(0.3, 1.0),
    st.integers(1, 6),
    st.integers(1, 5),
    st.floats(0.85, 1.0),
)
def test_a_busy_stage_keeps_its_bound_behind_one_where_tasks_overtake(
    first: Configuration,
    count: int,
    second: Configuration,
    others: int,
    part: float,
    batch: int,
    machines: int,
    busy: float,
) -> None:
    """Two groups of different durations, and behind them a stage whose machines hardly ever rest."""
    assume(abs(first.duration_s - second.duration_s) > 1e-3)
    shares = (count * first.throughput, part * others * second.throughput)
    rate = sum(shares)
    mixing = max(bounds.group(c, own, split_rate=rate) for c, own in zip((first, second), shares, strict=True))
    last = Configuration(batch, busy * machines * batch / rate, "x", 1.0)
    own_s = bounds.group(last, rate)
    groups = tuple(
        GroupPlan(c.batch, n, c.duration_s, own, hardware)
        for c, n, own, hardware in zip((first, second), (count, others), shares, DEVICES, strict=True)
    )
    until = (mixing + LAG_S, mixing + own_s + 2 * LAG_S)
    tail = (GroupPlan(batch, machines, last.duration_s, rate),)
    stages = (
        StageDispatch("s0", groups, until[0], mixing),
        StageDispatch("s1", tail, until[1], own_s, behind=("s0",), from_s=until[0]),
    )
    given_ = DispatchPlan(mixing + own_s, rate, stages, admission=False)
    synthetic = workflow_of(Application("two", (Module("s0", "m0"), Module("s1", "m1")), (("s0", "s1"),)))
    figures = simulate(Simulated(synthetic.workflow, planned(given_), given_), (n / rate for n in range(150)))
    assert len(figures.latency_s) == 150
    assert max(figures.latency_s) <= given_.slo_s * (1 + 1e-6) + 1e-5
    event(f"overtaken {figures.arrived_s != sorted(figures.arrived_s)}")


FACTORS = st.sampled_from((0.3, 1.0, 2.0, 4.0, 9.0)) | st.floats(0.2, 12.0)


@settings(deadline=None)
@example(known((0.02, 0.004), (0.01, 0.002), (0.03, 0.02), (0.01, 0.009)), 2.466, 2.466, 10.0, 2.0, Billing.INTEGER)
@given(profiles(), FACTORS, FACTORS, st.floats(3.0, 100.0), st.floats(1.1, 8.0), st.sampled_from(Billing))
def test_the_bound_holds_where_the_requests_of_an_invocation_come_at_once(
    given_: Profiles, first: float, second: float, rate: float, multiple: float, billing: Billing
) -> None:
    """A stage that fans out, one behind it that fans out again (or in), and one more of that."""
    assume(second != 1.0 or first <= 1.0 or first.is_integer())  # a gather, for which the simulated stages are no match
    factors = {"s0": 1.0, "s1": first, "s2": second, "s3": second}
    modules = tuple(Module(name, f"m{n % 2}", factor) for n, (name, factor) in enumerate(factors.items()))
    application = Application("fan", modules, tuple(pairwise(factors)))
    least = {m.name: min(c.duration_s for c in given_.configurations(m.model)) for m in application.modules}
    options = replace(OPTIONS, billing=billing)
    found = plan(application, given_, rate, multiple * application.longest(least), options, explain=False)
    if not isinstance(found, Plan):
        return
    synthetic = workflow_of(application)
    dispatch = dispatch_of(document_of(found, options), synthetic.workflow, admission=False)
    figures = simulate(
        Simulated(synthetic.workflow, planned(dispatch), dispatch, synthetic.items), (n / rate for n in range(80))
    )
    assert len(figures.latency_s) == 80
    assert max(figures.latency_s) <= found.slo_s * (1 + 1e-6) + 2e-5
    event(f"tuples {max(len(stage.tuples) for stage in found.stages)}")
