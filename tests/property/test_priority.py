"""The longest way through any graph, and an order that urgency can only improve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataflower.core.pool import Pool
from dataflower.core.priority import join, ranked, remaining_s
from dataflower.testing.story import some_task, stage, workflow

times = st.floats(0.001, 10.0)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Pool], dict[str, list[str]]]:
    """Pools with measured times, and who reads whom."""
    count = draw(st.integers(1, 6))
    names = [f"s{number}" for number in range(count)]
    parents = {
        name: draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else [] for i, name in enumerate(names)
    }
    stages = [
        stage(name, {f"p{i}": f"{parent}.out" for i, parent in enumerate(parents[name])} or {"x": "inputs.x"})
        for name in names
    ]
    flow = workflow(stages, {name: f"{name}.out" for name in names})
    pools = {name: Pool("w@1", flow.stages[name], 2) for name in names}
    for pool in pools.values():
        pool.ran(draw(times))
    join(flow, pools)
    return pools, parents


def longest(name: str, pools: dict[str, Pool], parents: dict[str, list[str]]) -> float:
    """By trying every way."""
    ways = [longest(other, pools, parents) for other in parents if name in parents[other]]
    return pools[name].run_s + max(ways, default=0.0)


@given(graphs())
def test_the_longest_way_is_found(graph: tuple[dict[str, Pool], dict[str, list[str]]]) -> None:
    pools, parents = graph
    known: dict[Pool, float] = {}
    for name, pool in pools.items():
        assert remaining_s(pool, known) == longest(name, pools, parents)


@given(graphs(), st.data())
def test_an_earlier_deadline_never_means_a_later_place(
    graph: tuple[dict[str, Pool], dict[str, list[str]]], data: st.DataObject
) -> None:
    pools = list(graph[0].values())
    for pool in pools:
        pool.size = data.draw(st.integers(0, 3))
        pool.enqueue(some_task(), data.draw(st.one_of(st.just(0.0), times)))
    chosen = data.draw(st.sampled_from(pools))
    before = ranked(pools)
    assert sorted(map(id, before)) == sorted(map(id, pools))
    chosen.enqueue(some_task(), data.draw(times))
    assert ranked(pools).index(chosen) <= before.index(chosen)
