"""The line that tests put between two hosts, by a clock of their own: when bytes arrive, and in which order."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.testing.line import Direction, Transit


def test_bytes_arrive_after_the_delay_and_not_before() -> None:
    transit = Transit(Direction(0.025))
    transit.enter(b"one", 10.0)
    transit.enter(b"two", 10.001)
    assert transit.next_at == pytest.approx(10.025)
    assert transit.arrived(10.0249) == []
    assert transit.arrived(10.0255) == [b"one"]
    assert transit.arrived(10.03) == [b"two"]
    assert (transit.next_at, transit.nbytes) == (math.inf, 0)


def test_a_bandwidth_spreads_bytes_out_behind_the_delay() -> None:
    direction = Direction(0.01, 1e6)
    transit = Transit(direction)
    transit.enter(bytes(1000), 5.0)
    assert direction.free_at == pytest.approx(4.996)  # a beginning may catch up 5 ms
    now = 5.0
    for _ in range(100):
        now = max(now, direction.free_at)
        transit.enter(bytes(1000), now)
    assert direction.free_at == pytest.approx(4.995 + 0.101)
    assert transit.next_at == pytest.approx(5.01)
    assert sum(map(len, transit.arrived(5.05))) == pytest.approx(45_000, abs=1000)


def test_both_connections_over_a_line_share_its_bandwidth() -> None:
    direction = Direction(0.0, 1e6)
    one, other = Transit(direction), Transit(direction)
    one.enter(bytes(100_000), 1.0)
    other.enter(b"x", 1.0)
    assert other.next_at == pytest.approx(1.095, abs=1e-4)


@given(
    st.lists(st.tuples(st.binary(max_size=50), st.floats(0, 0.1), st.floats(0, 0.5)), max_size=30),
    st.sampled_from([math.inf, 1e3, 1e5]),
)
def test_nothing_overtakes_or_is_lost_and_nothing_is_early_whatever_the_delays(
    sent: list[tuple[bytes, float, float]], bytes_per_s: float
) -> None:
    direction = Direction(0.0, bytes_per_s)
    transit = Transit(direction)
    now, found, entered = 1.0, b"", 0
    for data, pause, delay in sent:
        now += pause
        direction.delay_s = delay
        transit.enter(data, now)
        entered += len(data)
        assert direction.passed == entered
        assert direction.free_at <= now + entered / bytes_per_s
    while transit.next_at < math.inf:
        now = max(now, transit.next_at)
        found += b"".join(transit.arrived(now))
    assert found == b"".join(data for data, _, _ in sent)
