"""Splitting the SLO, packing partial machines, applications, and plans that can't be."""

from itertools import pairwise

import pytest

from dataflower.errors import InvalidArgument
from dataflower.planner import (
    Application,
    Billing,
    Configuration,
    Device,
    Dispatch,
    Infeasible,
    Kinds,
    Module,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Scheduler,
    Splitter,
    from_workflow,
    plan,
)
from dataflower.planner.baselines import BASELINES, HARPAGON, OPTIMAL, OURS
from dataflower.planner.exact import compose
from dataflower.planner.network import network
from dataflower.planner.optimal import enumerate_choices
from dataflower.planner.pack import Machine, Share, pack
from dataflower.planner.schedule import Allotment, Schedule
from dataflower.planner.split import Problem, split
from dataflower.planner.staircase import Stair, staircase
from dataflower.spec.function import Port
from dataflower.spec.workflow import Case, CaseRef, Edge, Fanout, Input, PortRef, Stage, Workflow


def chain(*names: str) -> Application:
    return Application("chain", tuple(Module(n, n) for n in names), tuple(pairwise(names)))


def steps(*points: tuple[float, float]) -> tuple[Stair, ...]:
    return staircase(Stair(t, c, Schedule(())) for t, c in points)


@pytest.mark.parametrize(
    ("fanout", "budgets", "throughput"), [(0.1, (60, 40), 272.7), (1.0, (50, 50), 153.8), (10.0, (40, 60), 40.0)]
)
def test_the_split_example_of_nexus(fanout: float, budgets: tuple[int, int], throughput: float) -> None:
    x = steps(*((t, 1 / r) for t, r in ((40, 200), (50, 250), (60, 300))))
    y = steps(*((t, fanout / r) for t, r in ((40, 300), (50, 400), (60, 500))))
    found = compose(chain("x", "y"), {"x": x, "y": y}, 100)
    assert found is not None
    assert (found.stairs["x"].latency_s, found.stairs["y"].latency_s) == budgets
    assert 1 / found.cost == pytest.approx(throughput, abs=0.05)
    assert found.exact


def test_the_duty_cycle_example_of_nexus() -> None:
    """A (64/s, 200 ms) in batches of 8 and B (32/s, 250 ms) in batches of 4 share a machine; C does not fit in."""
    a = Share("a", 0, 8, 0.075, 64.0, 0.2)
    b = Share("b", 0, 4, 0.05, 32.0, 0.25)
    c = Share("c", 0, 4, 0.06, 32.0, 0.25)
    both = Machine("gpu", 1.0, (a, b))
    assert both.cycle_s == pytest.approx(0.125)
    assert both.holds
    assert both.worst_s(a) == pytest.approx(0.2)
    assert not Machine("gpu", 1.0, (a, c)).holds
    assert not Machine("gpu", 1.0, (a, b, c)).holds


def test_packing_puts_partial_machines_of_different_stages_together() -> None:
    half = Configuration(4, 0.05, "gpu", 2.0)
    tuples = {
        ("w", "a", 0): Allotment(half, 0.4, 32.0, 0.15),
        ("w", "b", 0): Allotment(half, 0.4, 32.0, 0.15),
        ("w", "c", 0): Allotment(Configuration(4, 0.05, "cpu", 1.0), 0.4, 32.0, 0.15),
        ("w", "d", 0): Allotment(half, 2.0, 160.0, 0.15),
    }
    machines, worst = pack(tuples, lambda worst: max(worst.values()) <= 0.2)
    assert [(m.hardware, [s.stage for s in m.shares]) for m in machines] == [("gpu", ["a", "b"]), ("cpu", ["c"])]
    assert all(len(m.shares) == 1 for m in pack(tuples, lambda worst: worst["w", "a"] <= 0.14)[0])
    assert worst == pytest.approx({("w", n): 0.15 for n in "abcd"})


DEVICES = {"fast": Device("fast", 3.0), "cheap": Device("cheap", 0.6)}


def table(*models: str, slower: float = 4.0) -> Profiles:
    found = []
    for i, model in enumerate(models):
        for hardware, by in (("fast", 1.0), ("cheap", slower)):
            points = tuple(Point(b, by * (0.01 + 0.002 * (i + 1) * b)) for b in (1, 2, 4, 8, 16))
            found.append(Profile(model, hardware, points))
    return Profiles(tuple(found), DEVICES)


def planned(app: Application, profiles: Profiles, rate: float, slo: float, options: Options = OURS) -> Plan:
    found = plan(app, profiles, rate, slo, options)
    assert isinstance(found, Plan)
    return found


DIAMOND = Application(
    "diamond",
    tuple(Module(n, n) for n in "abcd"),
    (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "d")),
)
BRIDGE = Application(
    "bridge",
    tuple(Module(n, n) for n in "abcde"),
    (("a", "c"), ("a", "d"), ("b", "d"), ("c", "e"), ("d", "e"), ("a", "e")),
)


def test_shortcuts_take_no_part_in_the_network() -> None:
    assert len(network(DIAMOND).arcs) == 4
    assert network(DIAMOND).moments == 4


@pytest.mark.parametrize("slo", [1.0, 1.3, 1.7, 2.2, 3.0])
def test_a_graph_that_is_not_series_parallel_is_composed_exactly(slo: float) -> None:
    curves = {
        name: steps(*((0.2 + 0.1 * j * (1 + i % 3), 10 / (1 + j) + i) for j in range(6)))
        for i, name in enumerate("abcde")
    }
    found, truth = compose(BRIDGE, curves, slo), enumerate_choices(BRIDGE, curves, slo)
    assert found is not None
    assert truth is not None
    assert found.exact
    assert found.cost == pytest.approx(truth[0])


def test_methods_rank_as_they_should() -> None:
    profiles = table("a", "b", "c", "d")
    cost = {name: planned(DIAMOND, profiles, 150.0, 0.35, o).cost for name, o in BASELINES.items()}
    ours, oracle = planned(DIAMOND, profiles, 150.0, 0.35), planned(DIAMOND, profiles, 150.0, 0.35, OPTIMAL)
    assert ours.exact
    assert ours.cost <= oracle.cost <= cost["harpagon"] * (1 + 1e-9)
    assert all(ours.cost <= other * (1 + 1e-9) for other in cost.values())


def test_a_plan_tells_its_path_its_slack_and_its_price() -> None:
    found = planned(DIAMOND, table("a", "b", "c", "d"), 100.0, 0.4)
    assert found.path[0] == "a"
    assert found.path[-1] == "d"
    assert found.headroom_s == pytest.approx(0.4 - found.worst_s)
    assert found.cost_per_1000 == pytest.approx(found.cost / 360)
    assert {s.stage for s in found.stages} == set("abcd")
    assert all(0 < s.utilisation <= 1 for s in found.stages)


def test_even_shares_follow_the_longest_chain() -> None:
    problem = Problem(DIAMOND, dict.fromkeys("abcd", 10.0), {}, 0.9)
    assert split(problem, OURS, Splitter.EVEN) == pytest.approx(dict.fromkeys("abcd", 0.3))


def test_merged_modules_share_a_budget() -> None:
    profiles = table("a", "b", "c", "d")
    configurations = {n: profiles.configurations(n) for n in "abcd"}
    problem = Problem(DIAMOND, dict.fromkeys("abcd", 100.0), configurations, 0.4)
    budgets = split(problem, HARPAGON, Splitter.LATENCY_COST)
    assert budgets is not None
    assert budgets["b"] == budgets["c"]
    assert DIAMOND.longest(budgets) <= 0.4 * (1 + 1e-9)


def test_one_kind_of_device_is_one_kind_of_device() -> None:
    for kinds in (Kinds.ONE, Kinds.CHEAPEST, Kinds.FASTEST):
        found = planned(DIAMOND, table("a", "b", "c", "d"), 100.0, 0.8, Options(kinds=kinds))
        assert len({t.configuration.hardware for s in found.stages for t in s.tuples}) == 1


def test_whole_machines_cost_no_less_and_packing_helps() -> None:
    profiles = table("a", "b", "c", "d")
    by_use = planned(DIAMOND, profiles, 4.0, 1.5)
    apart = planned(DIAMOND, profiles, 4.0, 1.5, Options(billing=Billing.INTEGER, pack=False))
    packed = planned(DIAMOND, profiles, 4.0, 1.5, Options(billing=Billing.INTEGER))
    assert by_use.cost <= packed.cost < apart.cost
    assert packed.shared
    assert packed.worst_s <= 1.5


def test_rare_requests_run_in_batches_cut_before_they_are_full() -> None:
    profiles = Profiles((Profile("a", "fast", (Point(1, 0.1), Point(4, 0.11))),), DEVICES)
    found = planned(chain("a"), profiles, 10.0, 0.25)
    (only,) = found.stages[0].tuples
    assert (only.configuration.batch, only.configuration.duration_s) == (2, 0.11)
    assert only.worst_s == pytest.approx(0.21)


def test_an_infeasible_slo_names_the_stage_the_path_and_what_would_do() -> None:
    profiles = table("a", "b", "c", "d")
    found = plan(DIAMOND, profiles, 100.0, 0.02)
    assert isinstance(found, Infeasible)
    assert (found.stage, found.path) == ("d", ("a", "c", "d"))
    assert found.least_s == pytest.approx(0.012 + 0.016 + 0.018)
    assert found.nearest_slo_s == pytest.approx(found.least_s, rel=2e-3)
    assert found.nearest_rate is None  # no rate makes one request faster
    assert isinstance(plan(DIAMOND, profiles, 100.0, found.nearest_slo_s or 0), Plan)
    assert "stage d binds on a -> c -> d (46 ms at the quickest)" in str(found)


def test_a_rate_at_which_batches_fill_in_time_is_found() -> None:
    found = plan(chain("a"), table("a"), 5.0, 0.03, Options(dispatch=Dispatch.DT, scheduler=Scheduler.GREEDY))
    if isinstance(found, Plan):
        found = plan(chain("a"), table("a"), 5.0, 0.0125, Options(dispatch=Dispatch.DT, scheduler=Scheduler.GREEDY))
    assert isinstance(found, Infeasible)
    assert found.nearest_rate is None or found.nearest_rate > 5.0


@pytest.mark.parametrize(("rate", "slo"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_rates_and_slos_must_be_positive(rate: float, slo: float) -> None:
    with pytest.raises(InvalidArgument, match="greater than 0"):
        plan(chain("a"), table("a"), rate, slo)


@pytest.mark.parametrize(
    ("modules", "edges", "what"),
    [
        ((), (), "no modules"),
        ((Module("a", "a"), Module("a", "b")), (), "two modules"),
        ((Module("a", "a", 0.0),), (), "not positive"),
        ((Module("a", "a"),), (("a", "z"),), "no module 'z'"),
        ((Module("a", "a"), Module("b", "b")), (("a", "b"), ("b", "a")), "waits for itself"),
    ],
)
def test_applications_that_are_none(modules: tuple[Module, ...], edges: tuple[tuple[str, str], ...], what: str) -> None:
    with pytest.raises(InvalidArgument, match=what):
        Application("app", modules, edges)


def edge(source: str, fanout: Fanout = Fanout.ALL) -> tuple[Input, ...]:
    return (Input("x", (Edge(PortRef(*source.split(".")), fanout),)),)


STAGES = (
    Stage("decode", "f:decode", inputs=edge("inputs.video"), outputs=(Port("frames", stream=True),)),
    Stage("detect", "f:detect", inputs=edge("decode.frames", Fanout.EACH), outputs=(Port("out"),)),
    Stage("route", cases=(Case("some", "size(x) > 0"), Case("none", None)), inputs=edge("detect.out")),
    Stage("name", "f:name", inputs=edge("detect.out"), outputs=(Port("out"),), when=(CaseRef("route", "some"),)),
    Stage("report", "f:report", inputs=edge("name.out", Fanout.GATHER), outputs=(Port("out"),)),
)
WORKFLOW = Workflow("faces", {stage.name: stage for stage in STAGES}, (Port("video"),))


def test_a_workflow_becomes_an_application() -> None:
    app = from_workflow(WORKFLOW, models={"detect": "yolo"}, items={"decode": 30}, shares={"route.some": 0.5})
    assert {m.name: (m.model, m.factor) for m in app.modules} == {
        "decode": ("decode", 1.0),
        "detect": ("yolo", 30.0),
        "name": ("name", 15.0),
        "report": ("report", 1.0),
    }
    assert app.edges == (("decode", "detect"), ("detect", "name"), ("name", "report"))


def test_a_fan_out_without_its_number_of_items_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'detect' runs for each item of 'decode'"):
        from_workflow(WORKFLOW)
