"""How fast do weights come onto a GPU, what does sharing them cost, and how fast is decoding there?

Four questions: host memory to device against a page-locked copy; eight processes over one backbone, with the device
memory that each takes besides; decoding at batch 1, 8 and 32 against transformers; a cold first token by phase, from
the disk, from host memory and from the device. Weights are random, of the shape of Llama 2 7B (`--quick`: of 1.1B).

    python -m bench.gpu --json bench/results/gpu.json
    python -m bench.gpu --fake       # the same way through the code on a machine without a GPU: no figures

Without a CUDA device every figure is null. Nothing is fetched; the model is written to `--folder` (14 GB).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.gpu_copies import Copies, measure
from bench.gpu_model import write
from bench.report import Report, finish
from dataflower import checkpoint
from dataflower.checkpoint import StoreConfig, accelerator
from dataflower.checkpoint.accelerator import Accelerator
from dataflower.errors import DataflowerError
from dataflower.testing.fake_device import NAME
from dataflower.testing.store_process import StoreProcess, running

REAL, FAKE = "dataflower.checkpoint.cuda", "dataflower.testing.fake_device"
PROCESSES = 8
BATCHES = (1, 8, 32)
PHASES = ("import_s", "context_s", "weights_s", "map_s", "model_s", "warm_up_s", "first_token_s")
TIERS = ("disk", "host", "device")
now = time.monotonic


def main() -> None:
    options = arguments()
    module, name = (FAKE, NAME) if options.fake else (REAL, "cuda:0")
    try:
        device: Accelerator | None = accelerator.find(module, name)
        why = "a dry run on a fake device" if options.fake else ""
    except DataflowerError as error:
        device, why = None, "there is no CUDA device"
        print(error.message, file=sys.stderr)
    report = Report("gpu")
    found: dict[str, Any] = {}
    if device is not None:
        with tempfile.TemporaryDirectory(prefix="dataflower-gpu-", dir=options.folder) as folder:
            found = measured(device, module, Path(folder), options)
    fill(report, {} if why else found, why)
    finish(report, options)
    if options.fake:
        fill(thrown_away := Report("gpu"), found, "")
        made = sum(row.value is not None for row in thrown_away.rows)
        assert made == len(thrown_away.rows) - (PROCESSES - 2), thrown_away
        print(f"dry run: the way through the code is whole ({made} figures made and thrown away)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of 1.1B, fewer rounds")
    parser.add_argument("--fake", action="store_true", help="a dry run on a fake device: a tiny model, no figures")
    parser.add_argument("--folder", help="where to write the model (by default the system's temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser.parse_args()


def measured(device: Accelerator, module: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    shape = "tiny" if options.fake else "1b" if options.quick else "7b"
    rounds, tokens = (1, 4) if options.fake else (2, 32) if options.quick else (4, 128)
    found: dict[str, Any] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        begun = now()
        try:
            found[name] = work()
        except Exception as error:  # a measurement that fails takes no other along
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if options.fake:
                raise
        print(f"{name}: {now() - begun:.1f} s", file=sys.stderr, flush=True)
        return found.get(name)

    step("copies", lambda: measure(device, 2**25 if options.fake else 2**31, rounds + 1))
    model = folder / "model"
    nbytes = step("bytes", lambda: write(model, shape, device.torch_device))
    if nbytes is None:
        return found
    config = StoreConfig(models_dir=folder / "store", models_memory_bytes=max(2 * nbytes, 2**28), accelerators=module)
    step("ttft", lambda: cold(config, model, device, 1 if options.fake or options.quick else 2))
    with running(config) as store:
        step("sharing", lambda: sharing(store, model, device, 2 if options.fake else PROCESSES))
        step("decode", lambda: decoding(store, model, device, tokens, rounds))
    return found


# --- one backbone, many processes


class Process:
    """A `bench.gpu_user`."""

    def __init__(self, store: StoreProcess, model: Path, device: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu_user", str(model), device, str(now())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(store.door,),
            text=True,
        )

    def ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process ended at {line!r} with {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def processes(store: StoreProcess, model: Path, device: str, count: int) -> Iterator[list[Process]]:
    made = [Process(store, model, device) for _ in range(count)]
    try:
        yield made
    finally:
        for process in made:
            process.close()


def sharing(store: StoreProcess, model: Path, device: Accelerator, count: int) -> dict[str, Any]:
    """Device memory that each process takes: for itself (a context), for the weights, for keys and values."""

    def used() -> int:
        room = device.room()
        return room.total_bytes - room.free_bytes

    def by(process: Process, line: str) -> tuple[int, Any]:
        before = used()
        answer = process.ask(line)
        return used() - before, answer

    rows = []
    start = used()
    with processes(store, model, device.name, count) as users:
        for process in users:  # one by one, so that what is taken is whose turn it is
            context, _ = by(process, "context")
            attached, told = by(process, "attach")
            first, _ = by(process, "first")
            rows.append({"context": context, "attach": attached, "first": first, **told})
        (shelf,) = store.statistics().devices
        total = used() - start
    return {"rows": rows, "total": total, "copies": len(shelf.models), "nbytes": shelf.models[0].nbytes}


def decoding(store: StoreProcess, model: Path, device: Accelerator, tokens: int, rounds: int) -> dict[str, Any]:
    with processes(store, model, device.name, 1) as (process,):
        process.ask("context")
        process.ask("attach")
        process.ask("first")
        return {str(batch): process.ask(f"decode {batch} {tokens} {rounds}") for batch in BATCHES}


# --- a cold first token


def cold(config: StoreConfig, model: Path, device: Accelerator, rounds: int) -> dict[str, list[dict[str, float]]]:
    """By where the weights are: on the disk, in the store's host memory as well, on the device as well."""
    checkpoint.open(model, config=config).close()  # what is noted of files at their first load is not a start's time
    found: dict[str, list[dict[str, float]]] = {tier: [] for tier in TIERS}
    for _ in range(rounds):
        with running(config) as store:
            found["disk"].append(once(store, model, device.name))
            found["host"].append(once(store, model, device.name))
            with processes(store, model, device.name, 1) as (keeper,):
                keeper.ask("attach")
                found["device"].append(once(store, model, device.name))
    return found


def once(store: StoreProcess, model: Path, device: str) -> dict[str, float]:
    begun = now()
    with processes(store, model, device, 1) as (process,):
        spent: dict[str, float] = {}
        for line in ("context", "attach", "first"):
            spent |= process.ask(line)
        spent["total_s"] = now() - begun
    return spent


# --- the report


def fill(report: Report, found: dict[str, Any], why: str) -> None:
    """All rows, null where nothing was measured."""

    def reason(part: str) -> str:
        return why or ("" if part in found else "it failed: see the output")

    copies: Copies | None = found.get("copies")
    gb = "GB/s"
    for key, question, share in (
        ("pinned_gb_s", "page-locked host memory to device, one copy", None),
        ("h2d_of_pinned", "the store's memory to device, page-locked before: share of that", 0.9),
        ("h2d_first_of_pinned", "the same the first time, locking included", None),
        ("h2d_ring_of_pinned", "the same through the ring, where it can't be locked", None),
    ):
        value = None if copies is None else copies.figure(key)
        report.add(key, question, value, unit=gb if share is None and key == "pinned_gb_s" else "", at_least=share,
                   missing=reason("copies"))  # fmt: skip
    shared = found.get("sharing")
    rows = shared["rows"] if shared else []
    copied = sum(row["attach"] for row in rows) / shared["nbytes"] if shared else None
    report.add("ipc_copies", f"device memory of {PROCESSES} attached backbones, over one", copied, at_most=1.05,
               missing=reason("sharing"))  # fmt: skip
    for number in range(PROCESSES):
        row = rows[number] if number < len(rows) else None
        first = shared["nbytes"] if shared and number == 0 else 0
        extra = None if row is None else (row["context"] + row["attach"] + row["first"] - first) / 2**20
        what = f"device memory that process {number + 1} takes besides the backbone"
        report.add(f"ipc_extra_mib_{number + 1}", what, extra, unit="MiB", missing=reason("sharing"))
    seconds = [row["open_s"] for row in rows[1:]]
    attach = statistics.median(seconds) if seconds else None
    report.add("ipc_attach_s", "a further process has it", attach, unit="s", samples=seconds, missing=reason("sharing"))
    right = None if not rows else float(all(row["read_only"] for row in rows))
    report.add("ipc_read_only", "whether the driver maps it for reading only", right, missing=reason("sharing"))
    for batch in BATCHES:
        both = found.get("decode", {}).get(str(batch))
        ours, theirs = both["median"] if both else (None, None)
        of = f"decode, batch {batch}, bf16"
        report.add(f"decode_tok_s_{batch}", of, ours, unit="tok/s", samples=both["ours"] if both else (),
                   missing=reason("decode"))  # fmt: skip
        ratio = ours / theirs if both else None
        report.add(f"decode_vs_hf_{batch}", f"{of}: over transformers", ratio, unit="x", missing=reason("decode"))
    for tier in TIERS:
        runs = found.get("ttft", {}).get(tier, [])
        for phase in (*PHASES, "total_s"):
            samples = [run[phase] for run in runs if phase in run]
            value = statistics.median(samples) if samples else None
            what = f"cold first token, weights on the {tier}: {phase.removesuffix('_s').replace('_', ' ')}"
            report.add(f"ttft_{tier}_{phase}", what, value, unit="s", samples=samples, missing=reason("ttft"))


if __name__ == "__main__":
    main()
