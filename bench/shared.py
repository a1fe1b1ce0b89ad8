"""What do LoRA functions of one owner gain by sharing a container (`isolation: shared`), and do they say the same?

Each function has an adapter of its own on SmolLM2-135M: the two that `make adapters` trains, if they are there, the
others random. They run twice on one host, in turn: as containers of their own, which share the weights and nothing
else, and as stages that share one container and its batch. In fp32, so that every token can be compared; requests of
all functions come at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.engine import engine
from bench.lora import FUNCTIONS, TRAINED, make_adapter
from bench.memory import whole
from bench.report import Report, arguments, finish
from dataflower.checkpoint.settings import StoreConfig
from dataflower.host.runtime import Runtime
from functions import assets

TOKENS = 16
ASKED = (
    "The acting is superb and the story moved me to tears.",
    "Please get in touch with Maria Lopez, maria.lopez@example.org, if anything is unclear.",
    "I want my money back, it broke after two days.",
)
FILE = """apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}, owner: bench}}
inputs: {{request: json}}
stages:
  only:
    function: functions.llm:Complete
    inputs: {{request: inputs.request}}
    model: {model}
    adapter: {adapter}
    isolation: {isolation}
    params: {{dtype: float32, temperature: 0}}
    scaling: {{max_replicas: 1, max_ongoing_requests: 16, keep_alive_s: 600}}
    resources: {{cpu: 1}}
    credit: {{items: 64}}
outputs: {{deltas: only.deltas}}
"""
KINDS = {"apart": "sandbox", "shared": "shared"}


def main() -> None:
    options = arguments(__doc__ or "")
    report = Report("shared")
    with tempfile.TemporaryDirectory(prefix="dataflower-shared-") as scratch:
        uvloop.run(measure(report, options, Path(scratch)))
    finish(report, options)


async def measure(report: Report, options: argparse.Namespace, scratch: Path) -> None:
    """All figures."""
    model, count, rounds = str(assets.find(assets.SMOLLM2)), *((2, 1) if options.quick else (FUNCTIONS, 3))
    adapters = [make_adapter(scratch / f"a{i}", model, i) for i in range(count)]
    trained = [assets.cache() / assets.ADAPTERS / name for name in TRAINED]
    adapters = [*(str(folder) for folder in trained if folder.is_dir()), *adapters][:count]
    sources = [
        FILE.format(name=f"{kind}{i}", model=model, adapter=json.dumps(adapter), isolation=isolation)
        for kind, isolation in KINDS.items()
        for i, adapter in enumerate(adapters)
    ]
    settings: dict[str, Any] = {"models": StoreConfig(models_dir=scratch / "store")}
    settings["readable_paths"] = (str(scratch), model, *adapters)
    said: dict[str, list[list[int]]] = {}
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    memory: dict[str, float] = {}
    async with engine(*sources, max_containers=64, **settings) as host:
        for kind in KINDS:
            before = set(host.container_pids())
            said[kind] = await everybody(host, kind, count)
            pids = [pid for number, pid in host.container_pids().items() if number not in before]
            memory[kind] = sum(private(pid) for pid in pids)
            report.add(f"{kind}_containers", f"{kind}: containers of {count} functions", len(pids))
        for _ in range(rounds):
            for kind in KINDS:
                began = time.perf_counter()
                again = await everybody(host, kind, count)
                took[kind].append(time.perf_counter() - began)
                said[kind] += again
    pairs = list(zip(said["apart"], said["shared"], strict=True))
    equal = sum(one == other for one, other in pairs) / len(pairs)
    report.add("shared_equal", f"answers that are the same, token for token, of {len(pairs)}", equal, at_least=1.0)
    different = len({tuple(answer) for answer in said["shared"][: count * len(ASKED)]})
    report.add("shared_answers", f"different answers of {count} functions to {len(ASKED)} requests", different)
    for kind, nbytes in memory.items():
        report.add(f"{kind}_mb", f"{kind}: memory besides the weights", nbytes, unit="MB")
    report.add("shared_memory", "shared over apart", memory["shared"] / memory["apart"])
    for kind, samples in took.items():
        middle = statistics.median(samples)
        report.add(f"{kind}_s", f"{kind}: all requests at once", middle, unit="s", samples=samples)
    report.add("shared_gain", "apart over shared", statistics.median(took["apart"]) / statistics.median(took["shared"]))


def private(pid: int) -> float:
    """MB of a container's own, which includes its first process."""
    return whole(pid)[0]


async def everybody(host: Runtime, kind: str, count: int) -> list[list[int]]:
    """Tokens of each function's answer to each request, all asked at once."""
    return await asyncio.gather(*(answer(host, f"{kind}{i}", text) for i in range(count) for text in ASKED))


async def answer(host: Runtime, name: str, text: str) -> list[int]:
    """Tokens of one answer."""
    request = {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "ignore_eos": True}
    deltas = (await (await host.invoke(name, {"request": request})).result())["deltas"]
    return [token for delta in deltas for token in delta.get("tokens", ())]


if __name__ == "__main__":
    main()
