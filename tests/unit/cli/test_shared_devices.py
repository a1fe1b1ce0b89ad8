"""Devices that stages share, from a host to people, programs and Prometheus."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from dataflower.cli.devices import device_data, device_table, device_text
from dataflower.core.device.state import DeviceState, Sharer
from dataflower.core.device.window import Latency, Window
from dataflower.gateway import server_info
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway.metrics import Metrics
from dataflower.testing.fake_host import FakeHost

MIB = 1024 * 1024
KNOWN = Sharer("support", "answer", 3, 2.0, Latency(0.4, 0.05), Window(16, 0.85))
NEW = Sharer("legal", "answer", 0, 0.5, None, Window(8, 0.0))
DEVICE = DeviceState("cpu", 2, 1, 17, (KNOWN, NEW), 600 * MIB, 400 * MIB, 5)


def test_state_survives_the_way_to_a_client() -> None:
    message = pb.SharedDevice()
    server_info.encode_device(DEVICE, message)
    assert server_info.decode_device(pb.SharedDevice.FromString(message.SerializeToString())) == DEVICE


def test_people_see_who_waits_and_for_how_long() -> None:
    expected = "device cpu: 1 of 2 batches run, 17 have run; memory 400 MiB of 600 MiB, 5 artifacts made room"
    assert device_text(DEVICE) == expected
    console = Console(width=120)
    with console.capture() as captured:
        console.print(device_table([DEVICE]))
    _, first, second = captured.get().splitlines()
    assert first.split() == [
        "cpu",
        "support/answer",
        "3",
        "2",
        "s",
        "0.400",
        "s",
        "0.050",
        "s",
        "16",
        "or",
        "0.85",
        "s",
    ]
    assert second.split() == ["cpu", "legal/answer", "0", "0.5", "s", "-", "-", "8", "or", "0.00", "s"]


def test_programs_get_numbers() -> None:
    data = json.loads(json.dumps(device_data(DEVICE)))
    assert (data["running"], data["cap_bytes"], data["offloaded"]) == (1, 600 * MIB, 5)
    assert [sharer["first_s"] for sharer in data["sharers"]] == [0.4, None]


@pytest.mark.asyncio
async def test_metrics_name_device_and_stage() -> None:
    host = FakeHost()
    host.shared = (DEVICE,)
    text = Metrics(host).render()[0].decode()
    assert 'dataflower_device_batches_running{device="cpu"} 1.0' in text
    assert 'dataflower_device_batches_total{device="cpu"} 17.0' in text
    assert 'dataflower_device_offloaded_total{device="cpu"} 5.0' in text
    assert 'dataflower_device_waiting_tasks{device="cpu",stage="answer",workflow="support"} 3.0' in text
    assert 'dataflower_device_window_seconds{device="cpu",stage="answer",workflow="support"} 0.85' in text
