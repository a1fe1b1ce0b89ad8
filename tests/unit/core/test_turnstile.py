"""Where a stage lets tasks overtake each other, the next one lets them in by turn, and nobody waits for ever."""

from __future__ import annotations

from dataflower.core.batching import Waiting
from dataflower.core.instance import Instance
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.core.turnstile import Turnstile, Underway
from dataflower.planner.application import Application, Module
from dataflower.planner.simulate import Figures, Simulated, Simulation
from dataflower.planner.synthetic import ITEMS, workflow_of
from dataflower.spec.workflow import Batch
from dataflower.testing.story import some_task, stage, workflow

PIPE = Application("pipe", (Module("a", "a"), Module("b", "b")), (("a", "b"),))
TWO = workflow_of(PIPE)
MIXED = StageDispatch(
    "a", (GroupPlan(1, 1, 1.0, 1.0, "slow"), GroupPlan(1, 1, 0.1, 1.0, "fast")), until_s=1.2, worst_s=1.2
)
"""Odd invocations overtake even ones."""


def duration(name: str, batch: int, hardware: str) -> float:
    if name.endswith(ITEMS):
        return 0.0
    if name == "b":
        return 0.5
    return 1.0 if hardware == "slow" else 0.1


def plan_of(*, behind: tuple[str, ...] = ("a",), from_s: float = 1.2) -> DispatchPlan:
    last = StageDispatch("b", (GroupPlan(1, 1, 0.5, 2.0),), from_s + 0.5, 0.5, behind=behind, from_s=from_s)
    return DispatchPlan(2.0, 2.0, (MIXED, last), admission=False)


def play(plan: DispatchPlan, arrivals: list[float]) -> Figures:
    simulation = Simulation({"w@1": Simulated(TWO.workflow, duration, plan)})
    figures = simulation.run((time, "w@1") for time in arrivals)
    simulation.core.check_integrity()
    return figures


def test_who_came_first_is_served_first() -> None:
    figures = play(plan_of(), [0.0, 0.75])
    assert figures.arrived_s == [0.0, 0.75]
    assert [round(seconds, 6) for seconds in figures.latency_s] == [1.5, 1.25]


def test_without_it_the_early_one_holds_the_other_up() -> None:
    figures = play(plan_of(behind=()), [0.0, 0.75])
    assert figures.arrived_s == [0.75, 0.0]
    assert [round(seconds, 6) for seconds in figures.latency_s] == [0.6, 1.85]


def test_nobody_waits_who_has_nobody_before_him() -> None:
    figures = play(plan_of(), [0.0, 2.0, 4.0])
    assert [round(seconds, 6) for seconds in figures.latency_s] == [1.5, 0.6, 1.5]


def test_a_task_is_let_in_when_it_was_to_come_at_the_latest() -> None:
    """The older one is later than the plan thought: 0.2 s are all that anybody waits for it."""
    figures = play(plan_of(from_s=0.2), [0.0, 0.01])
    assert figures.arrived_s == [0.01, 0.0]
    assert round(figures.latency_s[0], 4) == 0.7


def test_a_new_plan_lets_in_whoever_waits() -> None:
    simulation = Simulation({"w@1": Simulated(TWO.workflow, duration, plan_of())})
    changed: list[float] = []

    def change() -> None:
        if not changed and simulation.now > 0.4:
            simulation.change_plan("w@1", plan_of(behind=()))
            simulation.core.check_integrity()
            changed.append(simulation.now)

    simulation.every(0.25, change)
    figures = simulation.run((time, "w@1") for time in (0.0, 0.01))
    assert changed == [0.5]
    assert figures.arrived_s == [0.01, 0.0]
    assert round(figures.latency_s[0], 6) == 0.99


def test_items_of_one_invocation_are_all_let_in_before_the_next_one() -> None:
    """The stage in between takes no time, but hands its items on one after the other."""
    fanned = workflow_of(Application("fanned", (Module("a", "a"), Module("b", "b", 2.0)), (("a", "b"),)))
    last = StageDispatch("b", (GroupPlan(3, 2, 0.5, 4.0),), 1.7, 0.5, behind=("a", "a-items"), from_s=1.2)
    plan = DispatchPlan(2.0, 2.0, (MIXED, last), admission=False)
    simulation = Simulation({"w@1": Simulated(fanned.workflow, duration, plan, fanned.items)})
    figures = simulation.run((time, "w@1") for time in (0.0, 0.75))
    assert figures.arrived_s == [0.0, 0.75], "three of the four items at once, among them both of the first"
    assert [round(seconds, 4) for seconds in figures.latency_s] == [1.5, 1.7]


def test_whoever_waits_is_let_in_as_soon_as_nobody_is_before_him() -> None:
    """Behind a function that takes one task at a time, and whose last task goes elsewhere."""
    graph = workflow([stage("a", {}), stage("b", {"x": "a.out"}, batch=Batch(4))], {"out": "b.out"}, inputs=[])
    simulation = Simulation({"w@1": Simulated(graph, duration, plan_of())})
    figures = simulation.run([(0.0, "w@1"), (0.05, "w@1")])
    assert figures.arrived_s == [0.0, 0.05]
    assert figures.latency_s[0] < 1.0


def entry() -> Waiting:
    return Waiting(some_task(), 0.0, 0.0, 0.0, 1.0)


def test_what_is_over_is_forgotten() -> None:
    here: set[Instance] = set()
    underway = Underway(here.__contains__)
    kept = [entry().instance for _ in range(3)]
    here.update(kept)
    for number, instance in enumerate(kept):
        underway.add(instance, 10.0 + number)
    for number in range(1000):
        underway.add(entry().instance, float(number))
    assert len(underway) < 200
    assert underway.oldest() == 10.0
    here.discard(kept[0])
    assert underway.oldest() == 11.0
    here.clear()
    assert underway.oldest() == float("inf")


def test_a_task_is_known_that_comes_when_what_is_over_is_cleared_away() -> None:
    """The stage holds it only after it was told of; it was forgotten then, and a younger one was let in before it."""
    here: set[Instance] = set()
    underway = Underway(here.__contains__)
    for number in range(1000):
        own = entry().instance
        underway.add(own, -float(number))
        here.add(own)
        assert underway.oldest() == -number
        here.remove(own)


def test_all_stages_before_must_have_let_go() -> None:
    first, second = {entry().instance: 5.0}, {entry().instance: 3.0}
    both = []
    for own in (first, second):
        underway = Underway(own.__contains__)
        for instance, arrived in own.items():
            underway.add(instance, arrived)
        both.append(underway)
    turnstile = Turnstile(both, from_s=100.0)
    entries = [entry() for _ in range(3)]
    for number, each in zip((4.0, 2.0, 6.0), entries, strict=True):
        turnstile.add(each, number)
    assert list(turnstile.let_in(50.0)) == [entries[1]]
    second.clear()
    assert list(turnstile.let_in(50.0)) == [entries[0]]
    assert turnstile.next_at == 106.0
    assert list(turnstile.let_in(106.0)) == [entries[2]]
    assert turnstile.next_at == float("inf")
