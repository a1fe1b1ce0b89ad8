"""Dispatch bounds, and the worked example: one module, three configurations, 198 requests a second within 1 s."""

import math

import pytest

from dataflower.planner import bounds
from dataflower.planner.group import curve
from dataflower.planner.optimal import best_schedule
from dataflower.planner.options import Billing, Dispatch
from dataflower.planner.profile import Configuration, ranked
from dataflower.planner.schedule import generate, with_dummies

B2 = Configuration(2, 0.1, "gpu", 1.0)
B8 = Configuration(8, 0.25, "gpu", 1.0)
B32 = Configuration(32, 0.8, "gpu", 1.0)
EXAMPLE = ranked([B2, B8, B32])
RATE, BUDGET = 198.0, 1.0


def test_round_robin_counts_a_full_machine_twice_and_a_residual_one_by_its_rate() -> None:
    assert bounds.round_robin(B32, 40.0) == pytest.approx(1.6)
    assert bounds.round_robin(B2, 6.0) == pytest.approx(0.1 + 2 / 6)


def test_batch_round_robin_waits_for_the_rest_of_the_batch() -> None:
    assert bounds.batch_round_robin(B32, 200.0) == pytest.approx(0.8 + 31 / 200)


def test_group_share_collects_at_the_rate_of_the_group() -> None:
    assert bounds.group_share(B32, 160.0) == pytest.approx(1.0)
    assert bounds.group_share(B32, 40.0) == pytest.approx(1.6)  # one machine: 2d


def test_ranked_share_sees_the_lower_tuples_requests_too() -> None:
    assert bounds.ranked_share(B32, 200.0) == pytest.approx(0.96)
    assert bounds.ranked_share(B32, 198.0) == pytest.approx(0.962, abs=5e-4)
    assert bounds.ranked_share(B8, 38.0) == pytest.approx(0.461, abs=5e-4)
    assert bounds.ranked_share(B2, 6.0) == pytest.approx(0.433, abs=5e-4)


def test_a_batch_of_one_never_waits_longer_than_it_runs() -> None:
    one = Configuration(1, 0.05, "gpu", 1.0)
    assert bounds.ranked_share(one, 0.001) == pytest.approx(0.1)
    assert bounds.group(one, 0.001) == pytest.approx(0.05)


def test_round_robin_with_full_machines_and_a_residual_costs_6_3() -> None:
    schedule = generate(EXAMPLE, RATE, BUDGET, Dispatch.RR)
    assert schedule is not None
    assert [(a.configuration, a.machines) for a in schedule.allotments] == [(B8, 6.0), (B2, pytest.approx(0.3))]
    assert schedule.cost == pytest.approx(6.3)


@pytest.mark.parametrize("dispatch", [Dispatch.DT, Dispatch.TC])
def test_two_tuples_cost_5_9(dispatch: Dispatch) -> None:
    schedule = generate(EXAMPLE, RATE, BUDGET, dispatch, max_tuples=2)
    assert schedule is not None
    assert [(a.configuration, a.machines) for a in schedule.allotments] == [(B32, 4.0), (B2, pytest.approx(1.9))]
    assert schedule.cost == pytest.approx(5.9)


def test_any_number_of_tuples_costs_5_3() -> None:
    schedule = generate(EXAMPLE, RATE, BUDGET, Dispatch.TC)
    assert schedule is not None
    assert [a.configuration for a in schedule.allotments] == [B32, B8, B2]
    assert [a.machines for a in schedule.allotments] == pytest.approx([4, 1, 0.3])
    assert schedule.cost == pytest.approx(5.3)
    assert schedule.integer_cost == 6


def test_two_dummy_requests_bring_it_to_5() -> None:
    schedule = with_dummies(EXAMPLE, RATE, BUDGET, Dispatch.TC)
    assert schedule is not None
    assert schedule.dummy_rate == pytest.approx(2.0)
    assert (schedule.cost, schedule.integer_cost) == (pytest.approx(5.0), 5)


def test_five_is_the_optimum_of_the_published_model() -> None:
    schedule = best_schedule(EXAMPLE, RATE, BUDGET)
    assert schedule is not None
    assert schedule.cost == pytest.approx(5.0)


def test_group_dispatch_reaches_the_lower_bound_of_4_95_by_use_and_5_machines() -> None:
    by_use = curve(EXAMPLE, RATE, Billing.USE, BUDGET)[-1]
    assert by_use.cost == pytest.approx(4.95)
    assert by_use.latency_s == pytest.approx(0.8 + 31 / 198)
    assert curve(EXAMPLE, RATE, Billing.INTEGER, BUDGET)[-1].cost == 5


def test_nothing_fits_a_budget_below_the_shortest_batch() -> None:
    assert generate(EXAMPLE, RATE, 0.1, Dispatch.TC) is None
    assert with_dummies(EXAMPLE, RATE, 0.1) is None
    assert best_schedule(EXAMPLE, RATE, 0.1) is None


def serve_in_groups(groups: list[tuple[Configuration, int, float]], requests: int) -> list[float]:
    """Worst latency of each group: evenly spaced arrivals, split as evenly as whole requests can be, to n machines."""
    rate = sum(share for _, _, share in groups)
    worst = [0.0] * len(groups)
    waiting: list[list[float]] = [[] for _ in groups]
    free = [[0.0] * n for _, n, _ in groups]
    for k in range(requests):
        first = len(groups) == 1 or math.floor((k + 1) * groups[0][2] / rate) > math.floor(k * groups[0][2] / rate)
        i = 0 if first else 1
        now = k / rate
        waiting[i].append(now)
        c = groups[i][0]
        if len(waiting[i]) == c.batch:
            machine = min(range(len(free[i])), key=lambda m: free[i][m])
            done = max(now, free[i][machine]) + c.duration_s
            free[i][machine] = done
            worst[i] = max(worst[i], done - waiting[i][0])
            waiting[i] = []
    return worst


@pytest.mark.parametrize(("configuration", "machines", "rate"), [(B32, 5, 198.0), (B32, 5, 200.0), (B8, 2, 38.0)])
def test_the_bound_of_a_group_holds_in_simulation_its_partial_machine_included(
    configuration: Configuration, machines: int, rate: float
) -> None:
    worst = serve_in_groups([(configuration, machines, rate)], 20_000)[0]
    assert worst <= bounds.group(configuration, rate) * (1 + 1e-9)


def test_the_bound_of_two_groups_holds_in_simulation() -> None:
    groups = [(B32, 4, 160.0), (B8, 2, 38.0)]
    for (c, _, share), worst in zip(groups, serve_in_groups(groups, 40_000), strict=True):
        assert worst <= bounds.group(c, share, split_rate=198.0) * (1 + 1e-9)
