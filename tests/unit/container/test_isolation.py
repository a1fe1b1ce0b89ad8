from __future__ import annotations

import itertools

import pytest

from dataflower.container.isolation import Finding, Layer, judge
from dataflower.wire import Walls


@pytest.mark.parametrize(("room", "filter_", "landlock"), list(itertools.product([True, False], repeat=3)))
def test_the_best_sandbox_that_the_layers_make(room: bool, filter_: bool, landlock: bool) -> None:
    held = dict(zip(Layer, (room, filter_, landlock), strict=True))
    found = judge(tuple(Finding(layer, possible, f"{layer} it is") for layer, possible in held.items()))
    wanted = Walls.NONE
    if filter_ and landlock:
        wanted = Walls.LANDLOCK
    if filter_ and room:
        wanted = Walls.ROOM
    assert found.walls is wanted
    if wanted is not Walls.ROOM:
        lacking = next(layer for layer, possible in held.items() if not possible)
        assert f"{lacking.value}: {lacking} it is" in found.why_not


def test_no_better_than_allowed() -> None:
    findings = tuple(Finding(layer, True, "") for layer in Layer)
    assert [judge(findings, walls).walls for walls in Walls] == list(Walls)
