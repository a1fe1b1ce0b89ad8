"""The figures of bench.gpu: all there with what was measured, all null without."""

import pytest

from bench import gpu
from bench.gpu_copies import Copies, measure
from bench.report import Report
from dataflower.testing.fake_device import FakeDevice, FakeLibrary

MIB = 2**20
USER = {"open_s": 0.1, "read_only": True, "context": 500 * MIB, "first": 300 * MIB}
SPENT = dict.fromkeys((*gpu.PHASES, "total_s"), 1.0)
FOUND = {
    "copies": Copies(10**9, pinned=[0.02], ours=[0.025], first=[0.1], ring=[0.05]),
    "sharing": {
        "rows": [USER | {"attach": 1000 * MIB}, *(USER | {"attach": MIB} for _ in range(7))],
        "nbytes": 1000 * MIB,
    },
    "decode": {str(batch): {"ours": [2.0], "theirs": [1.0], "median": [2.0, 1.0]} for batch in gpu.BATCHES},
    "ttft": {tier: [SPENT] for tier in gpu.TIERS},
}


def test_every_figure_comes_from_what_was_measured() -> None:
    report = Report("gpu")
    gpu.fill(report, FOUND, "")
    rows = {row.key: row for row in report.rows}
    assert all(row.value is not None for row in report.rows)
    assert rows["pinned_gb_s"].value == 50
    assert rows["h2d_of_pinned"].value == pytest.approx(0.8)
    assert rows["h2d_of_pinned"].met is False
    assert rows["ipc_copies"].value == 1.007
    assert rows["ipc_extra_mib_1"].value == 800  # the backbone itself is counted once, and not here
    assert rows["ipc_extra_mib_8"].value == 801
    assert rows["decode_vs_hf_32"].value == 2
    assert rows["ttft_device_total_s"].value == 1


def test_without_a_device_every_figure_is_null_and_says_why() -> None:
    with_device, without = Report("gpu"), Report("gpu")
    gpu.fill(with_device, FOUND, "")
    gpu.fill(without, {}, "there is no CUDA device")
    assert [row.key for row in without.rows] == [row.key for row in with_device.rows]
    assert {(row.value, row.missing) for row in without.rows} == {(None, "there is no CUDA device")}


def test_copies_are_measured_by_turns_and_let_go_of_everything() -> None:
    library = FakeLibrary(2**28)
    found = measure(FakeDevice(library), 33 * MIB, 3)
    assert [len(samples) for samples in (found.pinned, found.ours, found.first, found.ring)] == [2] * 4
    assert (library.used, library.pinned) == (0, {})
    assert library.copied == 13 * 33 * MIB
