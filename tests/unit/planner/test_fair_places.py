"""Workflows that share a full host: whoever keeps all its places busy leaves some to the others."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest

from dataflower.core.config import CoreConfig
from dataflower.planner.simulate import Figures, Simulated, Simulation
from dataflower.spec.workflow import Scaling, Workflow
from dataflower.testing.story import stage, workflow

PLACES_EACH = 4


def one_stage(name: str) -> Workflow:
    found = workflow([stage("a", {}, scaling=Scaling(max_replicas=PLACES_EACH))], {"y": "a.out"})
    return replace(found, name=name)


def shared(places: int, took_s: float, rates: dict[str, float], seconds: float) -> Figures:
    """Evenly spaced invocations of several workflows, so many a second, on a host with so many containers."""
    given = {f"{name}@1": Simulated(one_stage(name), lambda *_: took_s) for name in rates}
    config = CoreConfig(cpus=PLACES_EACH, max_containers=places)
    simulation = Simulation(given, start_s=0.01, config=config)
    each = [[(n / rate, f"{name}@1") for n in range(int(seconds * rate))] for name, rate in rates.items()]
    return simulation.run(heapq.merge(*each), until_s=seconds)


@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("took_s", [0.0008, 0.02], ids=["brief", "long"])
def test_a_workflow_that_never_rests_does_not_keep_another_out(places: int, took_s: float) -> None:
    figures = shared(places, took_s, {"hog": 1.5 * PLACES_EACH / took_s, "modest": 10.0}, seconds=3.0)
    modest = figures.stages["modest@1", "a"]
    assert modest.tasks >= 20
    assert modest.longest_s < 1.5
    assert figures.stages["hog@1", "a"].busy_s > 0.7 * places * 3.0  # and what the other does not need is used


def test_two_that_never_rest_have_the_same_share() -> None:
    figures = shared(4, 0.02, {"one": 400.0, "other": 400.0}, seconds=8.0)
    one, other = (figures.stages[f"{name}@1", "a"].busy_s for name in ("one", "other"))
    assert one + other > 0.9 * 4 * 8.0
    assert 0.8 < one / other < 1.25


def test_more_workflows_than_places_take_turns() -> None:
    figures = shared(2, 0.02, dict.fromkeys(("a", "b", "c", "d", "e"), 200.0), seconds=12.0)
    busy = [figures.stages[f"{name}@1", "a"].busy_s for name in "abcde"]
    assert sum(busy) > 0.8 * 2 * 12.0
    assert min(busy) > 0.5 * max(busy)
