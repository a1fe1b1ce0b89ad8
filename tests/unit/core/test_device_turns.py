"""Windows, turns on a shared device, arrival rates: what the published figures say, and who goes first."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.core.device.arrivals import Rates
from dataflower.core.device.turns import Function, Rank, Turns
from dataflower.core.device.window import Latency, Window, window


def function(name: str, slo_s: float = 2.0, first_s: float = 0.4, more_s: float = 0.05, most: int = 16) -> Function:
    latency = Latency(first_s, more_s)
    return Function(name, slo_s, latency, window(slo_s, latency, most=most))


def test_window_without_a_cap_is_shorter_than_one_more_request() -> None:
    assert astuple(window(2.0, Latency(0.4, 0.05), most=128, fitting=128)) == (33, pytest.approx(0.0))
    assert astuple(window(2.5, Latency(0.3, 0.035), most=128, fitting=128)) == (63, pytest.approx(0.030))


def test_cap_on_the_size_makes_room_for_waiting() -> None:
    assert astuple(window(2.0, Latency(0.4, 0.05), most=16, fitting=128)) == (16, pytest.approx(0.85))
    assert astuple(window(2.0, Latency(0.4, 0.05), most=16, fitting=4)) == (4, pytest.approx(1.45))


def test_objective_that_nothing_keeps_means_no_waiting() -> None:
    assert window(0.1, Latency(0.4, 0.05)) == Window(1, 0.0)


def test_idle_device_takes_what_there_is() -> None:
    turns: Turns[int] = Turns()
    turns.know(function("f"))
    turns.add("f", 1, 10.0)
    batch = turns.take(10.0)
    assert batch is not None
    assert batch.items == (1,)
    assert batch.margin_s == pytest.approx(1.6)


def test_patient_device_waits_for_the_window() -> None:
    turns: Turns[int] = Turns(patient=True)
    turns.know(function("f"))
    turns.add("f", 1, 10.0)
    assert turns.take(10.0) is None
    assert turns.wake(10.0) == pytest.approx(10.85)
    batch = turns.take(turns.wake(10.0))
    assert batch is not None
    assert batch.items == (1,)


def test_full_batch_does_not_wait() -> None:
    turns: Turns[int] = Turns(patient=True)
    turns.know(function("f", most=4))
    for number in range(6):
        turns.add("f", number, 10.0)
    batch = turns.take(10.0)
    assert batch is not None
    assert batch.items == (0, 1, 2, 3)
    assert turns.waiting("f") == 2


def test_smallest_margin_goes_first_and_the_running_batch_is_counted() -> None:
    turns: Turns[str] = Turns(slots=2, patient=True)
    turns.know(function("loose", slo_s=5.0, most=1))
    turns.know(function("tight", slo_s=1.0, most=1))
    turns.add("loose", "a", 0.0)
    turns.add("tight", "b", 0.0)
    first, second = turns.take(0.0), turns.take(0.0)
    assert first is not None
    assert second is not None
    assert (first.function, second.function) == ("tight", "loose")
    assert first.margin_s == pytest.approx(0.6)
    assert second.margin_s == pytest.approx(5.0 - 2 * 0.4)
    turns.add("tight", "c", 0.1)
    assert turns.take(0.1) is None  # both slots are taken
    turns.over()
    assert turns.take(0.1) is not None


def test_large_margin_is_deferred_while_another_runs() -> None:
    turns: Turns[str] = Turns(slots=2, defer_s=1.0)
    turns.know(function("f", slo_s=1.0, most=1))
    turns.know(function("g", slo_s=9.0, most=1))
    turns.add("f", "a", 0.0)
    turns.add("g", "b", 0.0)
    assert turns.take(0.0) is not None
    assert turns.take(0.0) is None
    turns.over()
    assert turns.take(0.0) is not None


def test_function_that_can_not_start_does_not_hold_up_others() -> None:
    turns: Turns[str] = Turns()
    turns.know(function("cold", slo_s=0.5))
    turns.know(function("warm"))
    turns.add("cold", "a", 0.0)
    turns.add("warm", "b", 0.0)
    batch = turns.take(0.0, lambda name: name == "warm")
    assert batch is not None
    assert batch.function == "warm"


def test_withdrawn_and_forgotten_requests_never_run() -> None:
    turns: Turns[int] = Turns()
    turns.know(function("f"))
    turns.add("f", 1, 0.0)
    turns.add("f", 2, 0.0)
    assert turns.withdraw("f", 1)
    assert not turns.withdraw("f", 1)
    assert turns.forget("f") == (2,)
    assert turns.take(9.0) is None
    assert turns.wake(0.0) == math.inf


def test_what_can_be_in_time_goes_before_what_is_late() -> None:
    turns: Turns[str] = Turns()
    turns.know(function("f", slo_s=1.0, most=2))
    turns.add("f", "late", 0.0)
    turns.add("f", "fresh", 5.0)
    batch = turns.take(5.0)
    assert batch is not None
    assert batch.items == ("fresh", "late")  # there is time for both
    turns.add("f", "later", 0.0)
    turns.over()
    batch = turns.take(9.9)
    assert batch is not None
    assert (batch.items, batch.rank) == (("later",), Rank.LATE)


def test_who_has_waited_for_ten_objectives_goes_first() -> None:
    turns: Turns[str] = Turns()
    turns.know(function("f", slo_s=1.0, most=1))
    turns.add("f", "old", 0.0)
    turns.add("f", "fresh", 10.1)
    batch = turns.take(10.1)
    assert batch is not None
    assert (batch.items, batch.rank) == (("old",), Rank.STARVED)


def test_batch_is_no_larger_than_its_oldest_request_has_time_for() -> None:
    turns: Turns[int] = Turns()
    turns.know(function("f", slo_s=1.0, first_s=0.4, more_s=0.05))
    for number in range(12):
        turns.add("f", number, 0.0)
    batch = turns.take(0.3)
    assert batch is not None
    assert len(batch.items) == 7
    assert batch.margin_s == pytest.approx(0.0)


def test_what_others_would_make_late_waits_for_their_end() -> None:
    turns: Turns[str] = Turns(slots=2)
    turns.know(function("f", slo_s=0.7))
    turns.add("f", "a", 0.0)
    assert turns.take(0.0) is not None
    turns.add("f", "b", 0.1)
    assert turns.take(0.1) is None
    turns.over()
    assert turns.take(0.3) is not None


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from("fgh")), max_size=60), st.integers(1, 3), st.booleans())
def test_every_request_runs_once(calls: list[tuple[float, str]], slots: int, patient: bool) -> None:
    turns: Turns[int] = Turns(slots, patient=patient)
    for name, slo_s in (("f", 0.5), ("g", 2.0), ("h", 30.0)):
        turns.know(function(name, slo_s, most=4))
    seen: dict[str, list[int]] = {"f": [], "g": [], "h": []}
    ends: list[float] = []
    now, due = 0.0, sorted((at, number, name) for number, (at, name) in enumerate(calls))
    given_to: dict[str, list[int]] = {"f": [], "g": [], "h": []}
    for _ in range(1000):
        while (batch := turns.take(now)) is not None:
            assert len(batch.items) <= 4
            seen[batch.function] += batch.items
            ends.append(now + 0.3)
        assert turns.running == len(ends) <= slots
        coming = min([*ends, *(at for at, _, _ in due[:1]), turns.wake(now)], default=math.inf)
        if coming == math.inf:
            break
        now = max(now, coming)
        for end in [end for end in ends if end <= now]:
            ends.remove(end)
            turns.over()
        while due and due[0][0] <= now:
            _, number, name = due.pop(0)
            given_to[name].append(number)
            turns.add(name, number, now)
    assert {name: sorted(numbers) for name, numbers in seen.items()} == {
        name: sorted(numbers) for name, numbers in given_to.items()
    }
    assert sum(map(len, seen.values())) == len(calls)


def test_rate_follows_steady_arrivals_and_fades() -> None:
    rates: Rates[str] = Rates(window_s=60.0)
    for second in range(600):
        rates.note("f", second * 0.5)
    assert rates.rate("f", 300.0) == pytest.approx(2.0, rel=0.02)
    at = rates.falls_below("f", 0.5, 300.0)
    assert rates.rate("f", at) == pytest.approx(0.5)
    assert rates.falls_below("f", 0.5, at + 1.0) == at + 1.0
    assert rates.rate("g", 1.0) == 0.0
    rates.forget("f")
    assert rates.all(300.0) == {}
