"""The replay of bench.lora: who is in time, and what it costs, worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from bench.lora_replay import Kind, Request, bursty, recorded, replay
from dataflower.core.device.window import Latency

GB = 1e9
QUICK = Kind(0.5, 1 * GB, 2 * GB, Latency(0.1, 0.0), 1.0)


def test_a_start_and_what_is_held() -> None:
    found = replay([Request(10.0, 0)], QUICK, slo_s=1.0, keep_s=60.0)
    over = 10 + 0.5 + 0.1 + 1.0 + 60
    assert (found.requests, found.good, found.cold) == (1, 1, 1)
    assert found.gb_s == pytest.approx((over - 10) * 1 + over * 2)
    assert found.cost == found.gb_s


def test_slow_starts_lose_whoever_waits_for_them() -> None:
    slow = Kind(5.0, 1 * GB, 0.0, Latency(0.1, 0.0), 1.0)
    requests = [Request(0.0, 0), Request(1.0, 0), Request(30.0, 0)]
    found = replay(requests, slow, slo_s=1.0, keep_s=60.0)
    assert (found.good, found.cold) == (1, 1)


def test_a_container_leaves_when_nobody_comes_and_starts_again() -> None:
    found = replay([Request(0.0, 0), Request(100.0, 0)], QUICK, slo_s=1.0, keep_s=10.0)
    assert (found.good, found.cold) == (2, 2)
    stays = 0.5 + 0.1 + 1.0 + 10
    assert found.gb_s == pytest.approx(2 * stays + (100 + stays) * 2)


def test_functions_wait_for_a_slot() -> None:
    requests = [Request(0.0, 0), Request(0.0, 1)]
    assert replay(requests, QUICK, slo_s=1.0, keep_s=1.0).good == 1
    assert replay(requests, QUICK, slo_s=1.0, keep_s=1.0, slots=2).good == 2


def test_bursts_are_the_same_for_a_seed_and_bursty() -> None:
    made = bursty(3, 2, 20_000, 10.0)
    assert made == bursty(3, 2, 20_000, 10.0)
    one = [request.at for request in made if request.function == 0]
    gaps = [b - a for a, b in itertools.pairwise(one)]
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean > 3


def test_recorded_requests(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9799600,5\n2023-11-16 18:17:04.0319600,6\n")
    found = recorded(path, 1, 8)
    assert [request.at for request in found] == pytest.approx([0.0, 0.052], abs=1e-5)
    path.write_text("TIMESTAMP\nyesterday\n")
    with pytest.raises(ValueError, match="line 2"):
        recorded(path, 1, 8)
