"""The core of a host on the traffic of the replay: it has to learn what that is told, and comes close all the same."""

from __future__ import annotations

import math

import pytest

from dataflower.core.device.window import Latency
from dataflower.planner.contended import Backbone, LoraFunction, Machine, Request, replay
from dataflower.planner.sharing import served

GB = 10**9


def machine(device_gb: int = 48) -> Machine:
    return Machine(
        device_bytes=device_gb * GB,
        host_bytes=64 * GB,
        backbones={"7b": Backbone(14 * GB, 10.0, 0.7), "other": Backbone(14 * GB, 10.0, 0.7)},
        library_bytes=GB,
        library_s=2.5,
        adapter_s=0.6,
        kernel_s=0.5,
        slots=2,
    )


def function(name: str, backbone: str = "7b") -> LoraFunction:
    return LoraFunction(name, backbone, 2.0, Latency(0.4, 0.05), 0.02, GB // 10, GB // 2, GB // 10)


def bursts(names: str, count: int, gap_s: float, size: int, start_s: float = 30.0) -> list[Request]:
    """So many requests at a time, of one function after the other."""
    found = []
    for burst in range(count):
        at = start_s + burst * gap_s
        found += [Request(at + 0.01 * n, names[burst % len(names)], 20) for n in range(size)]
    return found


def test_everybody_is_served_in_time_where_there_is_time() -> None:
    requests = bursts("ab", 20, 3.0, 4)
    outcome = served(machine(), [function("a"), function("b")], requests)
    assert outcome.good >= len(requests) - 4  # until it is known how long batches take
    assert outcome.cold == 0  # they were ready ahead
    assert outcome.moved == 0


@pytest.mark.parametrize(("size", "gap_s"), [(4, 2.0), (12, 1.5), (20, 1.2)])
def test_core_comes_close_to_the_replay(size: int, gap_s: float) -> None:
    functions = [function(name) for name in "abcd"]
    requests = bursts("abcd", 40, gap_s, size)
    live, told = served(machine(), functions, requests), replay(machine(), functions, requests)
    assert all(ttft < math.inf for ttft in live.ttft_s)
    assert live.good >= 0.8 * told.good


def test_two_backbones_that_have_no_room_together_take_turns_in_memory() -> None:
    requests = bursts("ab", 6, 120.0, 3)
    outcome = served(machine(20), [function("a"), function("b", "other")], requests, preload=False)
    assert all(ttft < math.inf for ttft in outcome.ttft_s)
    assert outcome.moved >= 5  # each burst finds the other's weights there


def test_it_is_the_same_each_time() -> None:
    functions, requests = [function(name) for name in "abc"], bursts("abc", 15, 1.0, 9)
    assert served(machine(), functions, requests) == served(machine(), functions, requests)
