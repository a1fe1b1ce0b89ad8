"""Which stage gets the next container where a host has no room for all."""

from __future__ import annotations

from dataflower.core.config import CoreConfig
from dataflower.core.pool import Pool
from dataflower.core.priority import join, ranked, remaining_s
from dataflower.spec.workflow import Case, CaseRef, Workflow
from dataflower.testing.story import Story, some_task, stage, workflow


def pools_of(flow: Workflow, **seconds: float) -> dict[str, Pool]:
    pools = {name: Pool("w@1", flow.stages[name], 2) for name, own in flow.stages.items() if not own.cases}
    for name, took in seconds.items():
        pools[name].ran(took)
    join(flow, pools)
    return pools


def queue(pool: Pool, deadline: float) -> None:
    pool.enqueue(some_task(), deadline)


DIAMOND = workflow(
    [
        stage("a", {"x": "inputs.x"}),
        stage("short", {"x": "a.out"}),
        stage("long", {"x": "a.out"}),
        stage("end", {"x": "short.out", "y": "long.out"}),
    ],
    {"r": "end.out"},
)


def test_the_longest_way_counts() -> None:
    pools = pools_of(DIAMOND, a=1.0, short=0.5, long=2.0, end=4.0)
    assert [remaining_s(pools[name], {}) for name in ("a", "short", "long", "end")] == [7.0, 4.5, 6.0, 4.0]


def test_a_switch_is_looked_through() -> None:
    stages = [
        stage("a", {"x": "inputs.x"}),
        stage("route", {"x": "a.out"}, cases=(Case("big", "x > 1"),)),
        stage("b", {"x": "inputs.x"}, when=(CaseRef("route", "big"),)),
    ]
    pools = pools_of(workflow(stages, {"r": "b.out"}), a=1.0, b=2.0)
    assert pools["a"].followers == (pools["b"],)
    assert remaining_s(pools["a"], {}) == 3.0


def test_what_must_begin_first_comes_first() -> None:
    pools = pools_of(DIAMOND, short=0.5, long=2.0)
    short, long = pools["short"], pools["long"]
    queue(short, 10.0)
    queue(long, 11.0)  # later, but it must have begun by 9
    assert ranked([short, long]) == [long, short]


def test_without_deadlines_nobody_is_left_out_and_the_critical_path_goes_first() -> None:
    pools = pools_of(DIAMOND, short=0.5, long=2.0)
    short, long = pools["short"], pools["long"]
    assert ranked([short, long]) == [long, short]
    long.size = 1
    assert ranked([short, long]) == [short, long]


def one(name: str) -> Workflow:
    return workflow([stage(name, {"x": "inputs.x"})], {"r": f"{name}.out"})


def test_a_starved_stage_with_an_earlier_deadline_gets_the_room() -> None:
    story = Story(one("a"), one("b"), one("c"), config=CoreConfig(max_containers=1))
    now = story.clock.monotonic()
    story.invoke("first", x=1)
    story.invoke("late", key="w1@1", deadline=now + 100.0, x=1)
    story.invoke("soon", key="w2@1", deadline=now + 50.0, x=1)
    story.done("a", out=1)
    story.leave()
    assert story.is_running("c")
    assert not story.is_running("b")
    story.done("c", out=1)
    story.leave()
    story.done("b", out=1)
    assert story.finished == {"first": None, "late": None, "soon": None}
