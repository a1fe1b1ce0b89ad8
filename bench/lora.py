"""What do isolated LoRA functions gain by sharing their backbone: memory, cold starts, cost of a good request?

Each function is a container of its own (process, sandbox) with one adapter on SmolLM2-135M. Ours map the backbone that
the host holds. The rivals have a copy of everything each: `fresh` ones are processes as platforms start them that
preload nothing, and what the three keys compare with; `forked` ones start like ours from a zygote with the libraries,
so that the backbone is the only difference (`..._forked`). All start in turn, and memory is what all of them hold at
once: of a fresh process its PSS, of a forked one what it shares with nobody. What the forked ones share is counted
once and whole, as if there were no others: the backbone with the process that holds it (ours), and the zygote.

`--large` measures the same on a backbone of random weights of about .7 GB, the sizes of SmolLM2-360M but for fewer
heads of keys and values; its keys end in `_large`.

Cost is replayed with what was measured in the same run: bursty requests (Gamma gaps of CV 5, or --trace FILE, a CSV
file with TIMESTAMP), a slot for each core, containers kept for a minute; GB-seconds of memory held per request whose
first token came within the objective. What is shared, backbone and zygote, is paid for all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvloop
from safetensors.torch import save_file

from bench import lora_replay
from bench.engine import ROOT, engine
from bench.memory import whole
from bench.processes import children, descendants
from bench.report import Report, finish
from dataflower.checkpoint.region import MEMFD_NAME
from dataflower.checkpoint.settings import StoreConfig
from dataflower.core.device.window import Latency
from dataflower.host.runtime import Runtime
from functions import assets

MB, MIB = 1e6, 2**20
SLO_S = 2.0
KEEP_S = 60.0
FUNCTIONS = 8
TOKENS = 32
SEED = 7
LARGE = "32,960"
"""Layers and width: two copies for each of eight functions, forked and fresh, are held at once (13 GB)."""
TRAINED = ("sentiment", "contacts")
FILE = """apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}}}
inputs: {{request: json}}
stages:
  only:
    function: {function}
    inputs: {{request: inputs.request}}
    params: {params}
    scaling: {{max_replicas: 1, max_ongoing_requests: 8, keep_alive_s: 600}}
    resources: {{cpu: 1}}
    credit: {{items: 64}}
    preload: [torch, functions.llm, bench.lora_functions]
outputs: {{deltas: only.deltas}}
"""


@dataclass
class Seen:
    """What one kind of functions took: seconds to the first token, cold and warm, and on to the last; bytes (PSS)."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Shared:
    """Bytes that are there once, whatever the number of functions."""

    backbone: float
    libraries: float


def main() -> None:
    options = _arguments()
    report = Report("lora")
    with tempfile.TemporaryDirectory(prefix="dataflower-lora-") as scratch:
        uvloop.run(measure(report, options, Path(scratch)))
    if options.large:
        for row in report.rows:
            row.key += "_large"
    finish(report, options)


async def measure(report: Report, options: argparse.Namespace, scratch: Path) -> None:
    """All figures."""
    model = _model(options, scratch)
    count = 3 if options.quick else FUNCTIONS
    adapters = [make_adapter(scratch / f"a{i}", model, i) for i in range(count)]
    if not options.shape:
        trained = [assets.cache() / assets.ADAPTERS / name for name in TRAINED]
        adapters[: len(trained)] = [str(folder) for folder in trained if folder.is_dir()] or adapters[: len(trained)]
    functions = {"warm": ("functions.llm:Complete", {"model": model, "adapters": {"mine": adapters[0]}})}
    for i, adapter in enumerate(adapters):
        functions[f"ours{i}"] = ("functions.llm:Complete", {"model": model, "adapters": {"mine": adapter}})
        functions[f"own{i}"] = ("bench.lora_functions:Exclusive", {"model": model, "adapter": adapter})
    sources = [FILE.format(name=n, function=f, params=json.dumps(params)) for n, (f, params) in functions.items()]
    settings: dict[str, Any] = {"models": StoreConfig(models_dir=scratch / "store"), "cpus": 64}
    settings["readable_paths"] = (str(scratch), model, *adapters)
    ours, forked, fresh = Seen(), Seen(), Seen()
    async with engine(*sources, max_containers=64, **settings) as host:
        first, _ = await first_token(host, "warm", 0)
        report.add("first_start_s", "the host's very first function: weights laid out and loaded", first, unit="s")
        await host.delete("warm")
        places: dict[str, int] = {}
        processes: list[subprocess.Popen[bytes]] = []
        for i, adapter in enumerate(adapters):
            print(f"function {i + 1} of {count}, of each kind", file=sys.stderr, flush=True)
            for name, seen in ((f"ours{i}", ours), (f"own{i}", forked)):
                places[name] = await start(host, name, seen)
            if i < (1 if options.quick else FUNCTIONS):
                processes.append(_fresh(model, adapter, fresh))
        pids = host.container_pids()
        for name, number in places.items():
            (ours if name.startswith("ours") else forked).bytes.append(whole(pids[number])[0] * MIB)
        fresh.bytes += [whole(process.pid)[1] * MIB for process in processes]
        for process in processes:
            process.communicate()
        shared = Shared(await _backbone_bytes(host), library_bytes())
        four = await _together(host, "ours0", 4)
    _tell_memory(report, ours, forked, fresh, shared)
    _tell_starts(report, ours, forked, fresh)
    warm = statistics.median(ours.warm)
    latency = Latency(warm, max(0.0, four - warm) / 3)
    _tell_cost(report, options, {"ours": ours, "forked": forked, "fresh": fresh}, shared, latency)


async def start(host: Runtime, name: str, seen: Seen) -> int:
    """A function from nothing to its first token, then twice more, warm. Gives its container's number."""
    before = set(host.container_pids())
    seen.cold.append((await first_token(host, name, 0))[0])
    (number,) = set(host.container_pids()) - before
    for seed in (1, 2):
        first, rest = await first_token(host, name, seed)
        seen.warm.append(first)
        seen.rest.append(rest)
    return number


async def first_token(host: Runtime, name: str, seed: int) -> tuple[float, float]:
    """Seconds to the first item of an answer, and from there to its end."""
    prompt = torch.randint(100, 1000, (37,), generator=torch.Generator().manual_seed(seed)).tolist()
    request = {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    request |= {"adapter": "mine"}
    began, first = time.perf_counter(), 0.0
    invocation = await host.invoke(name, {"request": request})
    async for _ in invocation.outputs():
        first = first or time.perf_counter() - began
    return first, time.perf_counter() - began - first


async def _backbone_bytes(host: Runtime) -> float:
    """Weights that the store holds, and the process itself."""
    store = await host.weights()
    assert store is not None
    (keeper,) = [pid for pid in descendants(os.getpid()) if b"dataflower.checkpoint" in _command(pid)]
    return sum(held.nbytes for held in store.models) + whole(keeper)[1] * MIB - weights_bytes(keeper)


def library_bytes() -> float:
    """Of the zygotes: what they have written, children or not, and their share of what lies in files.

    Their children have the same command, but another parent.
    """
    own = [p for p in children(os.getpid()) if b"dataflower.container.zygote" in _command(p)]
    fields = [line.split() for pid in own for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(float(field[1]) * 1024 for field in fields if field[0] in {"Anonymous:", "Pss_File:"})


def weights_bytes(pid: int) -> float:
    """A process's share (PSS) of the memory that the store holds. The store itself has all of that mapped, too, and
    which pages of it a function has mapped at a moment depends on what it computed last: so it is counted once, whole.
    """
    found, ours = 0.0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            ours = MEMFD_NAME in line
        elif ours and name == "Pss:":
            found += int(rest.split()[0]) * 1024
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has gone
        return b""


async def _together(host: Runtime, name: str, count: int) -> float:
    """Seconds until the last of so many requests at once has its first token."""
    return max(first for first, _ in await asyncio.gather(*(first_token(host, name, 10 + i) for i in range(count))))


def _fresh(model: str, adapter: str, seen: Seen) -> subprocess.Popen[bytes]:
    """A process from its start to its first token; it stays."""
    command = [sys.executable, "-m", "bench.lora_functions", model, adapter]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    seen.cold.append(time.perf_counter() - began)
    process.stdout.readline()
    return process


def _tell_memory(report: Report, ours: Seen, forked: Seen, fresh: Seen, shared: Shared) -> None:
    """What is shared is there once, whatever the number."""
    count = len(ours.bytes)
    together = shared.backbone + shared.libraries + sum(ours.bytes) * FUNCTIONS / count
    apart = shared.libraries + statistics.mean(forked.bytes) * FUNCTIONS
    how = "" if count == FUNCTIONS else f" (from {count} that were started)"
    own = statistics.mean(ours.bytes) / MB
    report.add("backbone_mb", "backbone, and the process that holds it, once", shared.backbone / MB, unit="MB")
    report.add("libraries_mb", "the zygote with the libraries, once", shared.libraries / MB, unit="MB")
    report.add("ours_mb", "each of ours besides: adapter, KV, activations, interpreter", own, unit="MB")
    report.add("fresh_mb", "each rival, a fresh process", statistics.mean(fresh.bytes) / MB, unit="MB")
    report.add("forked_mb", "each rival, forked", statistics.mean(forked.bytes) / MB, unit="MB")
    ratio = together / (statistics.mean(fresh.bytes) * FUNCTIONS)
    report.add("lora_memory", f"memory of {FUNCTIONS} over that of {FUNCTIONS} fresh ones{how}", ratio, at_most=0.25)
    report.add("lora_memory_forked", "over forked ones", together / apart)


def _tell_starts(report: Report, ours: Seen, forked: Seen, fresh: Seen) -> None:
    for name, what, seen in (
        ("ours", "ours: from nothing to the first token", ours),
        ("forked", "own backbone, forked: the same", forked),
        ("fresh", "own backbone, fresh process: the same", fresh),
    ):
        report.add(f"{name}_cold_s", what, statistics.median(seen.cold), unit="s", samples=seen.cold)
    report.add("warm_s", "warm, first token", statistics.median(ours.warm), unit="s", samples=ours.warm)
    ratio = 1 - statistics.median(ours.cold) / statistics.median(fresh.cold)
    report.add("lora_ttft_cut", "cold first token: cut against fresh processes", ratio, at_least=0.8)
    ratio = 1 - statistics.median(ours.cold) / statistics.median(forked.cold)
    report.add("lora_ttft_cut_forked", "cut against forked ones that load their own backbone", ratio)


def _tell_cost(
    report: Report, options: argparse.Namespace, seen: dict[str, Seen], shared: Shared, latency: Latency
) -> None:
    if options.trace:
        requests = lora_replay.recorded(options.trace, SEED, FUNCTIONS)
    else:
        requests = lora_replay.bursty(SEED, FUNCTIONS, 900 if options.quick else 7200, 20.0)
    batch_s = statistics.median(seen["ours"].rest)
    found = {}
    for name, kind in seen.items():
        held = {"ours": shared.backbone + shared.libraries, "forked": shared.libraries}.get(name, 0.0)
        own = statistics.mean(kind.bytes)
        begin = max(0.0, statistics.median(kind.cold) - latency.first_s)
        found[name] = lora_replay.replay(
            requests,
            lora_replay.Kind(begin, own, held, latency, batch_s),
            slo_s=SLO_S,
            keep_s=KEEP_S,
            slots=os.cpu_count() or 1,
        )
    for name, result in found.items():
        report.add(f"{name}_good", f"{name}: share of requests within {SLO_S:g} s", result.good / result.requests)
        report.add(f"{name}_cost", f"{name}: GB-seconds for each of them", result.cost, unit="GB s")
    cost = found["ours"].cost
    of = f"cost of a good request, {len(requests)} requests"
    report.add("lora_cost_cut", f"{of}: cut against fresh processes", 1 - cost / found["fresh"].cost, at_least=0.8)
    report.add("lora_cost_cut_forked", "cut against forked ones with a copy each", 1 - cost / found["forked"].cost)


# --- models and adapters


def _model(options: argparse.Namespace, scratch: Path) -> str:
    """SmolLM2, or one of its kind of another size with random weights."""
    folder = assets.find(assets.SMOLLM2)
    if not options.shape:
        return str(folder)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    layers, width = (int(part) for part in options.shape.split(","))
    config = AutoConfig.from_pretrained(folder)
    heads = width // 64
    config.update({"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 8 * width // 3 // 64 * 64})
    config.update({"num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "head_dim": 64})
    made = scratch / "model"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made)
    AutoTokenizer.from_pretrained(folder).save_pretrained(made)
    return str(made)


def make_adapter(folder: Path, model: str, seed: int) -> str:
    """An adapter of rank 8 on queries and values, with small random weights."""
    config = json.loads((Path(model) / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    outputs = {"q_proj": heads * size, "v_proj": config["num_key_value_heads"] * size}
    chance = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, count in outputs.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{place}.lora_A.weight"] = torch.randn(8, width, generator=chance) * 0.01
            weights[f"{place}.lora_B.weight"] = torch.randn(count, 8, generator=chance) * 0.01
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": list(outputs)}))
    return str(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three functions of each kind, a shorter trace")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="CSV file with a column TIMESTAMP to replay")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shape", metavar="LAYERS,WIDTH", help="random weights of this shape, say 16,2048")
    size.add_argument("--large", action="store_true", help=f"the same as --shape {LARGE}, under keys of its own")
    options = parser.parse_args()
    if options.large:
        options.shape = LARGE
    return options


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
