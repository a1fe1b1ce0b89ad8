"""Functions that share a device, replayed: delays add up as they should, and each idea does what it is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflower.core.device.window import Latency
from dataflower.planner.contended import Backbone, LoraFunction, Machine, Request, Setting, replay

GB = 10**9
MACHINE = Machine(
    device_bytes=20 * GB,
    host_bytes=64 * GB,
    backbones={"b": Backbone(10 * GB, disk_s=5.0, copy_s=0.5)},
    library_bytes=GB,
    library_s=2.0,
    adapter_s=0.25,
    kernel_s=0.25,
)
PLAIN = Setting(preload=False)


def function(name: str, slo_s: float = 2.0) -> LoraFunction:
    return LoraFunction(name, "b", slo_s, Latency(0.4, 0.05), 0.02, GB // 10, GB // 2, GB // 10)


def test_cold_start_takes_the_sum_of_what_is_missing_and_a_warm_one_nothing() -> None:
    requests = [Request(0.0, "f", 10), Request(20.0, "f", 10), Request(200.0, "f", 10)]
    found = replay(MACHINE, [function("f")], requests, PLAIN)
    assert found.ttft_s == pytest.approx([2.0 + 5.5 + 0.5 + 0.4, 0.4, 2.0 + 5.5 + 0.5 + 0.4])
    assert (found.cold, found.good, found.batches) == (2, 1, 3)


def test_second_function_of_a_backbone_loads_its_own_part_alone() -> None:
    requests = [Request(0.0, "f", 10), Request(20.0, "g", 10)]
    found = replay(MACHINE, [function("f"), function("g")], requests, PLAIN)
    assert found.ttft_s[1] == pytest.approx(0.5 + 0.4)
    apart = replay(MACHINE, [function("f"), function("g")], requests, replace(PLAIN, share=False, offload=False))
    assert apart.ttft_s[1] > 50  # no room for its copy until the other's keep-alive is over


def test_offloading_makes_room_by_way_of_main_memory() -> None:
    requests = [Request(0.0, "f", 10), Request(20.0, "g", 10), Request(40.0, "f", 10)]
    apart = replay(MACHINE, [function("f"), function("g")], requests, replace(PLAIN, share=False))
    assert apart.moved > 0
    assert apart.ttft_s[1] == pytest.approx(5.5 + 0.5 + 0.4)
    assert apart.ttft_s[2] == pytest.approx(0.5 + 0.5 + 0.4)  # from main memory, and its adapter and kernels again


def test_preloading_keeps_what_is_called_often() -> None:
    requests = [Request(70.0 * n, "f", 10) for n in range(6)]
    machine = replace(MACHINE, device_bytes=40 * GB)  # half of it is for what is held ready
    assert replay(machine, [function("f")], requests, Setting()).cold == 1
    assert replay(machine, [function("f")], requests, PLAIN).cold == 6


def test_cost_is_memory_over_time() -> None:
    found = replay(MACHINE, [function("f")], [Request(0.0, "f", 1), Request(10.0, "f", 1)], PLAIN)
    held = (10 + 0.1 + 0.5) / 20
    assert found.cost == pytest.approx(held * (10.4 + 60) + 2 * 0.1 / 20 * 0.4)  # with the keep-alive
    assert found.idle_cost == pytest.approx(10 / 20 * (10.0 - 8.4 + 60))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 300), st.sampled_from("fgh"), st.integers(1, 200)), max_size=40),
    st.builds(Setting, *[st.booleans()] * 5),
)
def test_everybody_is_served_the_same_each_time(calls: list[tuple[float, str, int]], setting: Setting) -> None:
    requests = [Request(*call) for call in sorted(calls)]
    functions = [function("f", 0.5), function("g"), function("h", 10.0)]
    found = replay(MACHINE, functions, requests, setting)
    assert all(0.4 - 1e-9 <= seconds < 10_000 for seconds in found.ttft_s)
    assert found.good <= len(requests)
    assert replay(MACHINE, functions, requests, setting) == found
