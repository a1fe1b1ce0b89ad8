"""Plans on random applications: within the SLO, never dearer than the published optimum, and really the cheapest."""

import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dataflower.errors import ResourceExhausted
from dataflower.planner import (
    Application,
    Billing,
    Device,
    Infeasible,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Splitter,
    plan,
)
from dataflower.planner.baselines import BASELINES, OPTIMAL, OURS
from dataflower.planner.exact import compose
from dataflower.planner.optimal import enumerate_choices, solve_milp
from dataflower.planner.schedule import Schedule
from dataflower.planner.staircase import Curves, Stair, staircase

DEVICES = {"fast": Device("fast", 3.0), "cheap": Device("cheap", 0.7)}


@st.composite
def applications(draw: st.DrawFn, most: int = 6) -> Application:
    count = draw(st.integers(1, most))
    modules = tuple(Module(f"m{i}", f"m{i}", draw(st.sampled_from([0.5, 1.0, 2.5]))) for i in range(count))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = tuple((f"m{a}", f"m{b}") for a, b in pairs if draw(st.booleans()))
    return Application("app", modules, edges)


@st.composite
def profiles(draw: st.DrawFn, application: Application) -> Profiles:
    found = []
    for module in application.modules:
        for hardware in ("fast", "cheap"):
            duration, points = draw(st.integers(2, 40)) / 1000, []
            for batch in (1, 2, 4, 8):
                points.append(Point(batch, duration))
                duration *= draw(st.sampled_from([1.0, 1.2, 1.5, 1.9, 2.0]))
            found.append(Profile(module.name, hardware, tuple(points)))
    return Profiles(tuple(found), DEVICES)


@st.composite
def questions(draw: st.DrawFn, most: int = 5, fastest: float = 2011.0) -> tuple[Application, Profiles, float, float]:
    application = draw(applications(most))
    table = draw(profiles(application))
    least = application.longest(
        {m.name: min(c.duration_s for c in table.configurations(m.model)) for m in application.modules}
    )
    rate = draw(st.sampled_from([r for r in (3.0, 20.0, 97.0, 400.0, 2011.0) if r <= fastest]))
    return application, table, rate, least * draw(st.sampled_from([1.05, 1.5, 2.2, 3.0, 6.0]))


@st.composite
def curves_of(draw: st.DrawFn, application: Application) -> Curves:
    found = {}
    for module in application.modules:
        points = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 90)), min_size=1, max_size=7))
        found[module.name] = staircase(Stair(t / 100, float(c), Schedule(())) for t, c in points)
    return found


@given(st.data())
def test_composition_is_the_cheapest_choice(data: st.DataObject) -> None:
    application = data.draw(applications(7))
    curves = data.draw(curves_of(application))
    slo = data.draw(st.integers(5, 250)) / 100
    found, truth = compose(application, curves, slo), enumerate_choices(application, curves, slo)
    assert (found is None) == (truth is None)
    if found is not None and truth is not None:
        assert found.exact
        assert math.isclose(found.cost, truth[0], rel_tol=1e-9)
        assert application.longest({n: s.latency_s for n, s in found.stairs.items()}) <= slo * (1 + 1e-8)


@given(st.data())
@settings(max_examples=15)
def test_highs_agrees(data: st.DataObject) -> None:
    """On graphs of any shape, of as many stages as are composed exactly for sure."""
    application = data.draw(applications(12))
    curves = data.draw(curves_of(application))
    slo = data.draw(st.integers(5, 250)) / 100
    found, truth = compose(application, curves, slo), solve_milp(application, curves, slo)
    assert (found is None) == (truth is None)
    if found is not None and truth is not None:
        assert found.exact
        assert math.isclose(found.cost, truth[0], rel_tol=1e-6)


def paths(application: Application, name: str) -> list[tuple[str, ...]]:
    below = [path for child in application.children[name] for path in paths(application, child)]
    return [(name, *path) for path in below] or [(name,)]


@given(questions(), st.sampled_from([*BASELINES.values(), OURS, Options(billing=Billing.INTEGER)]))
def test_every_path_of_every_plan_is_within_the_slo(
    question: tuple[Application, Profiles, float, float], options: Options
) -> None:
    application, table, rate, slo = question
    found = plan(application, table, rate, slo, options, explain=False)
    assume(isinstance(found, Plan))
    assert isinstance(found, Plan)
    worst = {s.stage: s.worst_s for s in found.stages}
    budget = {s.stage: s.budget_s for s in found.stages}
    for root in (name for name in application.order if not application.parents[name]):
        for path in paths(application, root):
            assert sum(worst[n] for n in path) <= slo * (1 + 1e-8)
            assert sum(budget[n] for n in path) <= slo * (1 + 1e-8)
    for stage in found.stages:
        assert stage.worst_s <= stage.budget_s * (1 + 1e-8)
        assert math.isclose(sum(t.rate for t in stage.tuples), stage.rate + stage.dummy_rate, rel_tol=1e-8)
        for t in stage.tuples:
            assert t.rate <= t.machines * t.configuration.throughput * (1 + 1e-8)


@given(questions(3, fastest=97.0))
@settings(max_examples=25)
def test_ours_is_never_dearer_than_the_published_optimum_or_any_baseline(
    question: tuple[Application, Profiles, float, float],
) -> None:
    application, table, rate, slo = question
    ours = plan(application, table, rate, slo, OURS, explain=False)
    oracle = Options(dispatch=OPTIMAL.dispatch, scheduler=OPTIMAL.scheduler, splitter=Splitter.EXACT, quanta=25)
    for options in (oracle, *BASELINES.values()):
        try:
            other = plan(application, table, rate, slo, options, explain=False)
        except ResourceExhausted:  # the oracle gives up where combinations are too many
            continue
        if isinstance(other, Plan):
            assert isinstance(ours, Plan)
            assert ours.cost <= other.cost * (1 + 1e-8)


@given(questions(), st.sampled_from([1.1, 1.5, 4.0]), st.sampled_from(list(Billing)))
def test_more_time_never_costs_more(
    question: tuple[Application, Profiles, float, float], factor: float, billing: Billing
) -> None:
    application, table, rate, slo = question
    options = Options(billing=billing, pack=False)
    tight, loose = (plan(application, table, rate, s, options, explain=False) for s in (slo, slo * factor))
    if isinstance(tight, Plan):
        assert isinstance(loose, Plan)
        assert loose.cost <= tight.cost * (1 + 1e-8)


@given(questions(), st.integers(2, 5))
def test_a_multiple_of_the_rate_never_costs_less(
    question: tuple[Application, Profiles, float, float], times: int
) -> None:
    application, table, rate, slo = question
    few, many = (plan(application, table, r, slo, OURS, explain=False) for r in (rate, rate * times))
    assert isinstance(few, Plan) == isinstance(many, Plan)
    if isinstance(few, Plan) and isinstance(many, Plan):
        assert many.cost >= few.cost * (1 - 1e-8)


@given(questions(), st.floats(0.05, 1.0))
def test_a_lower_rate_never_costs_twice_as_much(
    question: tuple[Application, Profiles, float, float], share: float
) -> None:
    # not "no more": fewer requests come while a batch can wait (docs/planner.md; test_simulation.py shows it)
    application, table, rate, slo = question
    few, many = (plan(application, table, r, slo, OURS, explain=False) for r in (rate * share, rate))
    assert isinstance(few, Plan) == isinstance(many, Plan)
    if isinstance(few, Plan) and isinstance(many, Plan):
        assert few.cost < 2 * many.cost


@given(questions(3, fastest=97.0), st.floats(0.05, 1.0))
@settings(max_examples=25)
def test_the_published_optimum_is_monotone_in_the_rate(
    question: tuple[Application, Profiles, float, float], share: float
) -> None:
    application, table, rate, slo = question
    oracle = Options(dispatch=OPTIMAL.dispatch, scheduler=OPTIMAL.scheduler, splitter=Splitter.EXACT, quanta=25)
    try:
        few, many = (plan(application, table, r, slo, oracle, explain=False) for r in (rate * share, rate))
    except ResourceExhausted:  # it gives up where combinations are too many
        return
    if isinstance(many, Plan):
        assert isinstance(few, Plan)
        assert few.cost <= many.cost * (1 + 1e-8)


@given(questions(4), st.sampled_from([*BASELINES.values(), OURS]))
@settings(max_examples=25)
def test_planning_is_deterministic_and_does_not_depend_on_the_order_of_profiles(
    question: tuple[Application, Profiles, float, float], options: Options
) -> None:
    application, table, rate, slo = question
    shuffled = Profiles(table.profiles[::-1], dict(reversed(table.devices.items())))
    first = plan(application, table, rate, slo, options, explain=False)
    assert first == plan(application, table, rate, slo, options, explain=False)
    assert first == plan(application, shuffled, rate, slo, options, explain=False)


@given(questions(3))
@settings(max_examples=25)
def test_what_is_called_nearest_is_feasible(question: tuple[Application, Profiles, float, float]) -> None:
    application, table, rate, slo = question
    for options in (OURS, BASELINES["harpagon"]):
        found = plan(application, table, rate, slo / 3, options)
        if isinstance(found, Infeasible):
            assert found.stage in found.path
            assert found.nearest_slo_s is not None
            assert found.nearest_slo_s > slo / 3
            assert isinstance(plan(application, table, rate, found.nearest_slo_s, options), Plan)
            if found.nearest_rate is not None:
                assert isinstance(plan(application, table, found.nearest_rate, slo / 3, options), Plan)
