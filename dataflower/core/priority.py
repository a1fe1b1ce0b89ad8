"""Which stage is served first when a host has no room for the containers of all: the one that must begin soonest.

A task must have begun by its deadline less the longest way from there to the end of its invocation (the critical
path), as long as the functions on it took lately. Stages that have no container at all come before those that have, so
that nobody is left out. Among stages without deadlines the one with the fewest containers comes first, then the one
with the longest way still to go, then the one that has waited longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter

from dataflower.core.pool import Pool
from dataflower.spec.scopes import predecessors
from dataflower.spec.workflow import Workflow


def join(workflow: Workflow, pools: Mapping[str, Pool]) -> None:
    """Tell each pool (by stage) who waits for it; a switch, which takes no time, is looked through."""
    before = {name: predecessors(workflow, stage) for name, stage in workflow.stages.items()}
    after: dict[str, dict[Pool, None]] = {name: {} for name in before}
    for name in reversed(tuple(TopologicalSorter(before).static_order())):
        own = {pools[name]: None} if name in pools else after[name]
        for parent in before[name]:
            after[parent].update(own)
    for name, pool in pools.items():
        known = pool.followers  # of other workflows, if it is shared with them
        pool.followers = tuple(dict.fromkeys((*(follower for follower in known if not follower.closing), *after[name])))


def remaining_s(pool: Pool, known: dict[Pool, float]) -> float:
    """Seconds from the start of a task to the end of its invocation, along the longest way, by measured run times.

    `known`: what was found out already. A stage that never ran counts as taking no time.
    """
    found = known.get(pool)
    if found is None:
        known[pool] = pool.run_s  # pools that workflows share may wait for each other, or for themselves
        found = pool.run_s + max((remaining_s(follower, known) for follower in pool.followers), default=0.0)
        known[pool] = found
    return found


def ranked(pools: Iterable[Pool]) -> list[Pool]:
    """The pools in the order in which they should get containers; given in the order in which they began to wait."""
    waiting = list(pools)
    if len(waiting) < 2:
        return waiting
    known: dict[Pool, float] = {}

    def rank(pool: Pool) -> tuple[bool, float, int, float]:
        left = remaining_s(pool, known)
        return (pool.size > 0, pool.due - left, pool.size, -left)

    return sorted(waiting, key=rank)
