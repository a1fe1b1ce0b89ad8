"""How throughput is taken in a closed loop: not from its beginning."""

from __future__ import annotations

import asyncio

import pytest

from bench import dataflow


def test_the_time_until_everybody_has_had_an_answer_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls, clients = 0.0, 0, 4
    monkeypatch.setattr("bench.dataflow.time.perf_counter", lambda: now)

    async def invoke() -> None:
        nonlocal now, calls
        calls += 1
        now += 5.0 if calls <= clients else 0.1
        await asyncio.sleep(0)

    rate = asyncio.run(dataflow.closed_loop(invoke, clients, 3.0))
    assert rate == pytest.approx(10, rel=0.05)
    assert calls >= clients + 30


def test_slow_systems_are_looked_at_for_rounds_rather_than_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls, clients = 0.0, 0, 4
    monkeypatch.setattr("bench.dataflow.time.perf_counter", lambda: now)

    async def invoke() -> None:
        nonlocal now, calls
        calls += 1
        now += 2.0
        await asyncio.sleep(0)

    rate = asyncio.run(dataflow.closed_loop(invoke, clients, 3.0))
    assert rate == pytest.approx(0.5, rel=0.1)
    assert calls >= clients * (1 + dataflow.ROUNDS)
