"""How fail points are written."""

from __future__ import annotations

import pytest

from dataflower.container.failpoints import VARIABLE, Point, load


def test_unset_means_none_at_all() -> None:
    assert load({}, "stage") is None
    assert load({VARIABLE: "container.before_run:kill:stage=other"}, "stage") is None


def test_conditions_hold_back_the_point() -> None:
    points = load(
        {VARIABLE: "container.before_run:kill:stage=stage:attempt=2, container.mid_write:exit:hit=3"}, "stage"
    )
    assert points is not None
    points.hit(Point.BEFORE_RUN, attempt=1)
    points.hit(Point.MID_WRITE)
    points.hit(Point.MID_WRITE)
    points.hit(Point.AFTER_HANDOVER)
    assert bool(points)


@pytest.mark.parametrize(
    "text", ["container.nowhere:kill", "container.before_run:maim", "container.before_run:kill:x=1"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        load({VARIABLE: text}, "stage")
