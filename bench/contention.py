"""What is each idea worth where LoRA functions share a device: one backbone, preloading, offloading, deadline order?

A replay in simulated time (`planner.contended`) with the policies that run in production; nothing is measured here but
what they decide. Delays and sizes are those that reports on a 7B model give for a 48 GB device: see `MACHINE`.
`--traces DIR` takes requests from azure_llm_2023_conv.csv and azure_llm_2023_code.csv there; without it they are made
up after the figures of those recordings (`loadgen.fitted`), which the output says.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.report import Report, finish
from dataflower.core.device.window import Latency
from dataflower.loadgen.fitted import FITS, fitted
from dataflower.loadgen.replay import Replay, read_trace
from dataflower.planner.contended import Backbone, LoraFunction, Machine, Outcome, Request, Setting, replay
from dataflower.planner.sharing import served

GB = 10**9
FUNCTIONS, SLO_S = 8, 2.0
MACHINE = Machine(
    device_bytes=48 * GB,
    host_bytes=64 * GB,
    backbones={"7b": Backbone(14 * GB, disk_s=10.0, copy_s=0.7)},
    library_bytes=GB,
    library_s=2.5,
    adapter_s=0.6,
    kernel_s=0.5,
    slots=4,
)
FILES = {"conversation": "azure_llm_2023_conv.csv", "code": "azure_llm_2023_code.csv"}
SLOWER = {"conversation": 8.0, "code": 8.0}
"""The recordings are of many machines; one device gets every so-many-th part of their rate."""
SETTINGS = {
    "ours": Setting(),
    "no_share": Setting(share=False),
    "no_preload": Setting(preload=False),
    "no_offload": Setting(offload=False),
    "no_order": Setting(adaptive=False),
    "patient": Setting(patient=True),
    "alone": Setting(share=False, preload=False, offload=False, adaptive=False),
}
"""All of it; without one idea each; with windows that an idle device waits for as well; each function for itself."""


def functions() -> list[LoraFunction]:
    """Eight on one backbone: 400 ms for a batch of one, 50 for each further request, 20 ms a token."""
    sizes = {"adapter_bytes": GB // 10, "kernel_bytes": GB // 2, "kv_bytes": GB // 10}
    return [LoraFunction(f"f{n}", "7b", SLO_S, Latency(0.4, 0.05), 0.02, **sizes) for n in range(FUNCTIONS)]


def requests(name: str, folder: Path | None, count: int) -> list[Request]:
    """Of one recording, dealt out to functions so that each next one has 0.7 times the share of the one before."""
    if folder is None:
        made = fitted(FITS[name], count, seed=1)
        times, tokens = made.at.tolist(), made.output.tolist()
    else:
        file = folder / FILES[name]
        found = read_trace(file.read_text(), str(file), Replay(inputs={"tokens": "GeneratedTokens"}))
        times = found.times.tolist()[:count]
        tokens = [int(one["tokens"]) for one in found.inputs[:count]]
    return [
        Request(at * SLOWER[name], f"f{_share(n)}", max(1, token))
        for n, (at, token) in enumerate(zip(times, tokens, strict=True))
    ]


def _share(number: int) -> int:
    """Which function a request is of: a point of the golden-ratio sequence on shares that fall geometrically."""
    point, left = math.modf(number * 0.6180339887498949)[0] * (1 - 0.7**FUNCTIONS), 1.0
    for function in range(FUNCTIONS):
        left *= 0.7
        if point < 1 - left:
            return function
    return FUNCTIONS - 1


def measure(report: Report, *, quick: bool, traces: Path | None = None) -> None:
    """Add the figures."""
    count = 400 if quick else 4000
    source = "made up" if traces is None else "recorded"
    for name in FILES:
        given = requests(name, traces, count)
        found = {label: replay(MACHINE, functions(), given, setting) for label, setting in SETTINGS.items()}
        ours, alone = found["ours"], found["alone"]
        about = f"{name}, {len(given)} {source} requests"
        cut = 1 - ours.good_cost / alone.good_cost if ours.good and alone.good else None
        report.add(
            f"{name}_cost_cut", f"{about}: cost of a good request, cut against `alone`", cut, missing="none good"
        )
        report.add(f"{name}_ttft_cut", f"{about}: median TTFT, cut", 1 - _median(ours.ttft_s) / _median(alone.ttft_s))
        for label, outcome in found.items():
            report.add(f"{name}_good_{label}", f"{about}: share within {SLO_S:g} s, {label}", _good(outcome))
            report.add(f"{name}_p99_{label}", f"{about}: p99 of TTFT, {label}", _p99(outcome.ttft_s), unit="s")
            report.add(f"{name}_cold_{label}", f"{about}: share that found it cold, {label}", _cold(outcome))
        live = served(MACHINE, functions(), given)
        report.add(f"{name}_good_live", f"{about}: share within {SLO_S:g} s, by the core of a host", _good(live))
        report.add(f"{name}_p99_live", f"{about}: p99 of TTFT, by the core of a host", _p99(live.ttft_s), unit="s")


def _good(outcome: Outcome) -> float:
    return outcome.good / len(outcome.ttft_s)


def _cold(outcome: Outcome) -> float:
    return outcome.cold / len(outcome.ttft_s)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--traces", type=Path, metavar="DIR", help="folder with the recordings")
    options = parser.parse_args()
    report = Report("contention")
    measure(report, quick=options.quick, traces=options.traces)
    finish(report, options)


if __name__ == "__main__":
    main()
