"""Bounds of our dispatch hold in simulation of paced arrivals, whatever the stage and the plan."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataflower.planner.application import Application, Module
from dataflower.planner.dispatch import dispatch_of
from dataflower.planner.document import document_of
from dataflower.planner.options import Billing, Options
from dataflower.planner.plan import Plan, plan
from dataflower.planner.profile import Device, Point, Profile, Profiles
from dataflower.planner.simulate import Simulated, planned, simulate
from dataflower.planner.synthetic import workflow_of

DEVICES = {"x": Device("x", 1.0), "y": Device("y", 2.7)}
OPTIONS = Options(billing=Billing.INTEGER, pack=False)


@st.composite
def profiles(draw: st.DrawFn) -> Profiles:
    """Two devices with batches that save something."""
    made = []
    for model in ("m0", "m1"):
        for hardware in DEVICES:
            fixed, each = draw(st.floats(0.001, 0.2)), draw(st.floats(0.0005, 0.05))
            made.append(Profile(model, hardware, tuple(Point(b, fixed + each * b) for b in (1, 2, 3, 8, 20))))
    return Profiles(tuple(made), DEVICES)


SHAPES = {
    "one": ((), 1),
    "chain": ((("s0", "s1"), ("s1", "s2")), 3),
    "diamond": ((("s0", "s1"), ("s0", "s2"), ("s1", "s3"), ("s2", "s3")), 4),
}


@settings(deadline=None)
@given(profiles(), st.sampled_from(sorted(SHAPES)), st.floats(3.0, 300.0), st.floats(1.1, 6.0))
def test_the_bound_of_a_plan_is_never_exceeded(known: Profiles, shape: str, rate: float, multiple: float) -> None:
    edges, count = SHAPES[shape]
    application = Application(shape, tuple(Module(f"s{n}", f"m{n % 2}") for n in range(count)), edges)
    least = {m.name: min(c.duration_s for c in known.configurations(m.model)) for m in application.modules}
    found = plan(application, known, rate, multiple * application.longest(least), OPTIONS, explain=False)
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
