"""How long requests wait that come at once: held against a replay, request by request."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from dataflower.planner.application import Application, Module
from dataflower.planner.baselines import OURS
from dataflower.planner.bursts import Steps, bursts_of
from dataflower.planner.options import Billing, Options
from dataflower.planner.pack import Machine, Share
from dataflower.planner.plan import Plan, plan
from dataflower.planner.profile import Configuration, Device, Point, Profile, Profiles


def replayed(came: list[float], c: Configuration, machines: int) -> float:
    """The longest that a request waits until its batch begins; batches wait until they are full."""
    starts: list[float] = []
    longest = 0.0
    for first in range(0, len(came) - c.batch + 1, c.batch):
        full = came[first + c.batch - 1]
        free = starts[-machines] + c.duration_s if len(starts) >= machines else 0.0
        starts.append(max(full, free))
        longest = max(longest, starts[-1] - came[first])
    return longest


def evenly(steps: Steps, count: int) -> list[float]:
    """As many for each invocation as keep the sum just below the average."""
    upto = [math.floor(n * steps.each + 1e-9) for n in range(count + 1)]
    return [n / steps.rate for n in range(count) for _ in range(upto[n + 1] - upto[n])]


def most_or_none(steps: Steps, count: int) -> list[float]:
    """All at once, or none."""
    most = round(steps.lag) + 1
    upto = [most * math.floor(n * steps.each / most + 1e-9) for n in range(count + 1)]
    return [n / steps.rate for n in range(count) for _ in range(upto[n + 1] - upto[n])]


CASES = [
    (each, batch, machines, busy)
    for each in (0.3, 1.7, 2.0, 3.4, 9.0)
    for batch in (1, 2, 3, 8)
    for machines in (1, 2, 5)
    for busy in (0.2, 0.7, 0.97, 1.0)
]


@pytest.mark.parametrize(("lag", "share"), [(0.0, 0.5), (11.0, 0.1)])
def test_nobody_waits_longer_and_somebody_nearly_as_long(lag: float, share: float) -> None:
    tight = 0
    for each, batch, machines, busy in CASES:
        steps = Steps(10.0, each, lag)
        c = Configuration(batch, busy * machines * batch / (steps.rate * each), "x", 1.0)
        seen = replayed((most_or_none if lag else evenly)(steps, 2000), c, machines)
        promised = steps.wait_s(c, machines)
        assert seen <= promised + 1e-6, (each, batch, machines, busy)
        assert promised <= (batch - 1) / (steps.rate * each) + steps.late_s + 1e-9
        tight += seen > 0.9 * promised - 1e-9
    assert tight > share * len(CASES)


def test_more_machines_shorten_the_queue_of_a_burst() -> None:
    steps, c = Steps(1.0, 10.0), Configuration(1, 0.09, "x", 1.0)
    assert [round(steps.wait_s(c, n), 6) for n in (1, 2, 5, 10)] == [0.81, 0.36, 0.09, 0.0]


def module(name: str, factor: float, most: int = 0) -> Module:
    return Module(name, "m", factor, most)


def chain(*modules: Module) -> Application:
    names = [one.name for one in modules]
    return Application("app", modules, tuple(pairwise(names)))


def test_how_requests_come_follows_from_the_fan_outs() -> None:
    found = bursts_of(chain(module("a", 1.0), module("b", 3.0), module("c", 3.0), module("d", 1.0)))
    assert found == {"b": Steps(1.0, 3.0), "c": Steps(1.0, 3.0)}
    nested = bursts_of(chain(module("a", 1.0), module("b", 2.4), module("c", 4.8), module("d", 4.8)))
    assert [nested[name].lag for name in "bcd"] == [0.0, 2.0, 2.0]
    assert bursts_of(chain(module("a", 1.0), module("b", 2.4, most=7)))["b"] == Steps(1.0, 2.4, 6.0)
    assert bursts_of(chain(module("inputs", 5.0)))["inputs"] == Steps(1.0, 5.0)


TABLE = Profiles((Profile("m", "d", tuple(Point(b, 0.08 + 0.02 * b) for b in (1, 2, 4, 8))),), {"d": Device("d", 1.0)})


def test_a_plan_has_machines_for_what_comes_at_once() -> None:
    """Eight items each second: one machine could serve them one by one, but not all within the SLO."""
    application = chain(module("a", 1.0), module("b", 8.0))
    options = Options(billing=Billing.INTEGER, pack=False)
    found = plan(application, TABLE, 1.0, 0.4, options)
    even = plan(application, TABLE, 1.0, 0.4, replace(options, bursts=False))
    assert isinstance(found, Plan)
    assert isinstance(even, Plan)
    stage, blind = found.stages[1], even.stages[1]
    assert stage.tuples[0].machines * stage.tuples[0].configuration.batch >= 3
    assert found.cost >= even.cost
    assert Steps(1.0, 8.0).wait_s(blind.tuples[0].configuration, math.ceil(blind.tuples[0].machines)) > 0.3


def test_the_published_model_knows_no_bursts() -> None:
    assert not OURS.bursts
    assert Options().bursts


def test_a_share_of_a_machine_waits_for_as_many_turns_as_the_burst_takes() -> None:
    one = Share("a", 0, 2, 0.1, 4.0, math.inf, steps=Steps(1.0, 4.0))
    other = Share("b", 0, 1, 0.2, 1.0, math.inf)
    alone, both = Machine("d", 1.0, (one,)), Machine("d", 1.0, (one, other))
    assert alone.worst_s(one) == pytest.approx(0.1 + Steps(1.0, 4.0).wait_s(Configuration(2, 0.1, "d", 1.0), 1))
    # the burst of four takes two turns of 0.3 s; the first begins within one
    assert both.worst_s(one) >= 0.1 + 2 * 0.3
    assert both.worst_s(other) == pytest.approx(0.5)
