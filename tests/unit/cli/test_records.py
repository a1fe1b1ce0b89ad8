"""What the store of weights holds, for people and for programs."""

from __future__ import annotations

import json

import msgspec

from dataflower.checkpoint.protocol import Rate, Resident, Shelved, Statistics
from dataflower.cli.records import weights_data, weights_text
from dataflower.gateway import server_info
from dataflower.gateway._generated import workflow_pb2 as pb

HELD = Statistics(
    cap_bytes=4 * 2**30,
    held_bytes=512 * 2**20,
    free_bytes=64 * 2**20,
    loads=2,
    hits=7,
    models=(Resident("smollm2", "ab" * 32, 269 * 2**20, 3, True), Resident("big", "", 2**30, 0, False)),
    rates=(Rate("disk", 1.5 * 2**30, 10), Rate("remote", 0.0, 0)),
)


def test_it_crosses_the_wire_whole() -> None:
    message = pb.WeightStore()
    server_info.encode_weights(HELD, message)
    assert server_info.decode_weights(message) == HELD


def test_what_is_on_devices_is_listed_by_device() -> None:
    there = Shelved("cuda:0", 2**33, 2**34, (Resident("smollm2", "ab" * 32, 269 * 2**20, 8, True),))
    message = pb.WeightStore()
    server_info.encode_weights(msgspec.structs.replace(HELD, devices=(there,)), message)
    assert "  smollm2 on cuda:0  269 MiB  8 users" in weights_text(server_info.decode_weights(message)).splitlines()


def test_it_is_shown() -> None:
    assert weights_text(HELD).splitlines() == [
        "weights: 512 MiB of 4.0 GiB held (64 MiB of memory ready for the next), 2 loaded, found here 7 more times",
        "  smollm2  269 MiB  3 users",
        "  big  1.0 GiB  loading",
        "  read at disk 1.5 GiB/s",
    ]
    data = json.loads(json.dumps(weights_data(HELD)))
    assert data["models"][0]["clients"] == 3
    assert data["rates"][0]["bandwidth"] == 1.5 * 2**30
