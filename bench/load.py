"""How long from weights on the disk to tensors, and how long for a second function with the same weights?

Raw bandwidth, our store, and the rivals read the same file in turn, each time with none of it in the page cache. The
raw figure is the better of two ways to read the file past the page cache into memory that is there already, in huge
pages, which a disk fills fastest (into pages of 4 KiB it gives a fifth to a third less, which would flatter us). Ours
goes from `checkpoint.open` in a client to all its tensors, every chunk checked on the way; before each load the store
holds another model, whose memory it recycles. The rivals get memory as the system gives it, as their users do. Raw and
ours are read twice in each round, in changing order, since a machine's disk is not the same from minute to minute.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from bench.peers.weights import drop
from bench.report import Report, arguments, finish
from bench.report import rounds as rounds_within
from bench.rivals import Rival, RivalError
from dataflower import checkpoint
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.layout import SEGMENT_BYTES
from dataflower.testing.store_process import StoreProcess, running

MIB = 2**20
RAW = ((4, MIB), (4, 8 * MIB))
"""Threads and bytes of a request: what a disk like this does best with."""
HUGE_S = 30.0
"""At most so long the store is given to put its memory into huge pages, as it does after a first load."""
BUDGET_S = 150.0
"""For the loads; what is written before and the attaching after take half a minute."""
RIVALS = ("safetensors", "fastsafetensors", "runai_model_streamer")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
"""The shape of TinyLlama-1.1B, with fewer layers."""


def write_model(folder: Path, layers: int, seed: int) -> None:
    """Random weights in bf16 under the names that transformers gives them."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    pool = torch.randn(1 << 22).to(torch.bfloat16)
    hidden, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 256
    assert isinstance(hidden, int)
    assert isinstance(inner, int)

    def values(*shape: int) -> torch.Tensor:
        count = 1
        for n in shape:
            count *= n
        return pool.roll(int(torch.randint(0, 1 << 22, ()))).repeat(-(-count // len(pool)))[:count].reshape(shape)

    tensors = {"model.embed_tokens.weight": values(32000, hidden), "model.norm.weight": values(hidden)}
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = values(*shape)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    fd = os.open(folder / "model.safetensors", os.O_RDONLY)
    os.fsync(fd)  # dirty pages can't be dropped
    os.close(fd)


class Raw:
    """Reads a file past the page cache into memory that is there already."""

    def __init__(self, nbytes: int) -> None:
        self._memory = mmap.mmap(-1, -(-nbytes // MIB) * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, len(self._memory), 4096):
            self._memory[at] = 1

    def read(self, path: Path, threads: int, block: int) -> float:
        """Seconds for the whole file."""
        drop(str(path))
        nbytes = path.stat().st_size
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        offsets, lock = iter(range(0, nbytes, block)), threading.Lock()
        view = memoryview(self._memory)

        def work() -> None:
            while True:
                with lock:
                    at = next(offsets, None)
                if at is None:
                    return
                os.preadv(fd, [view[at : at + block]], at)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - began
        os.close(fd)
        return seconds


def ours(store: StoreProcess, model: str, path: Path) -> float:
    """Seconds until the tensors can be used; the model is not in memory before, others' memory is recycled."""
    assert all(resident.name != model for resident in store.statistics().models)
    drop(str(path))
    began = time.perf_counter()
    with checkpoint.open(model) as weights:
        tensors = weights.tensors()
        seconds = time.perf_counter() - began
        assert tensors
    del tensors, weights
    while any(resident.clients for resident in store.statistics().models):
        pass  # the store has yet to read that we are gone
    return seconds


def settle(store: StoreProcess) -> int:
    """Until the memory is in as many huge pages as there will be; gives their bytes."""
    before, until = -1, time.monotonic() + HUGE_S
    while (now := store.statistics().huge_bytes) > before and time.monotonic() < until:
        before = now
        time.sleep(1)
    return now


def attach(store: StoreProcess, model: str, rounds: int) -> list[float]:
    """Milliseconds from the order to fork until another process has the model built over the weights."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from bench import attach; attach.main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(store.door,),
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    found = []
    with checkpoint.open(model):  # the first function, which goes on
        for _ in range(rounds):
            process.stdin.write(f"{model}\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline())["ready_s"] * 1e3)
    process.stdin.close()
    process.wait()
    process.stdout.close()
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    layers, rounds = (1, 2) if options.quick else (12, 9)
    report = Report("load")
    folder = Path(tempfile.mkdtemp(prefix="dataflower-bench-"))
    try:
        for i, name in enumerate(("one", "two")):
            write_model(folder / name, layers, i)
        measure(report, folder, rounds, 3 if options.quick else 20)
    finally:
        shutil.rmtree(folder)
    finish(report, options)


def measure(report: Report, folder: Path, rounds: int, attaches: int) -> None:
    paths = {name: folder / name / "model.safetensors" for name in ("one", "two")}
    nbytes = paths["one"].stat().st_size
    cap = (nbytes // SEGMENT_BYTES + 2) * SEGMENT_BYTES  # for one of the two
    config = checkpoint.StoreConfig(models_dir=folder / "store", models_memory_bytes=cap)
    for name in paths:
        Catalog(DiskTier(config)).register(folder / name, name)
    raw = Raw(nbytes)
    seconds: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with running(config) as store, _Rivals() as rivals:
        ways: dict[str, Callable[[Path], float]] = {
            f"raw {threads} x {block // MIB} MiB": lambda path, t=threads, b=block: raw.read(path, t, b)  # type: ignore[misc]
            for threads, block in RAW
        }
        first = ours(store, "two", paths["two"])  # its memory has never been touched; from here on it is recycled
        huge = settle(store)
        ways["ours"] = lambda path: ours(store, path.parent.name, path)
        others: dict[str, Callable[[Path], float]] = {
            name: lambda path, name=name: rivals.load(name, path)  # type: ignore[misc]
            for name in RIVALS
        }
        for i in rounds_within(rounds, BUDGET_S, "loads"):
            for path, measures in ((paths["one"], ways), (paths["two"], {**ways, **others})):
                turn = i % len(measures)  # who reads first finds the disk, and what lies below it, at its coldest
                for name, take in [*measures.items()][turn:] + [*measures.items()][:turn]:
                    if name not in missing:
                        try:
                            took = take(path)
                        except RivalError as error:
                            missing[name] = str(error)
                        else:
                            seconds.setdefault(name, []).append(took)
        waits = attach(store, "two", attaches)
    tell(report, nbytes, seconds, missing, waits)
    Console().print(
        f"[dim]{nbytes / 1e9:.2f} GB; ours into memory never touched before: {nbytes / first / 1e9:.2f} GB/s; "
        f"then {huge / 1e9:.2f} GB in huge pages"
    )
    for name, samples in seconds.items():
        Console().print(f"[dim]{name}: {nbytes / statistics.median(samples) / 1e9:.2f} GB/s")


class _Rivals:
    """The process of the rivals, or why there is none."""

    def __enter__(self) -> _Rivals:
        self._rival = Rival("weights", ours=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._rival.close()

    def load(self, name: str, path: Path) -> float:
        return float(self._rival.ask("load", loader=name, path=str(path))["samples"][0])


def tell(
    report: Report,
    nbytes: int,
    seconds: dict[str, list[float]],
    missing: dict[str, str],
    waits: Sequence[float],
) -> None:
    """The four figures, from medians."""
    middle = {name: statistics.median(samples) for name, samples in seconds.items()}
    best_raw = min(value for name, value in middle.items() if name.startswith("raw"))
    mine = middle["ours"]
    report.add(
        "load_of_raw",
        f"{nbytes / 1e9:.2f} GB from a cold disk to tensors: share of its raw bandwidth",
        best_raw / mine,
        at_least=0.9,
        samples=[best_raw / value for value in seconds["ours"]],
    )
    theirs = middle.get("safetensors")
    report.add(
        "load_vs_safetensors",
        "the same: load_file + clone over ours",
        None if theirs is None else theirs / mine,
        at_least=1.8,
        missing=missing.get("safetensors", ""),
    )
    others = {name: middle[name] for name in RIVALS[1:] if name in middle}
    best = min(others, key=lambda name: others[name], default="")
    report.add(
        "load_vs_best",
        f"the same: the best loader that installs ({best or 'none'}) over ours",
        others[best] / mine if best else None,
        at_least=1.0,
        missing="; ".join(f"{name}: {missing[name]}" for name in RIVALS[1:] if name in missing),
    )
    report.add(
        "attach_ms",
        "weights on the host: a second function, from the fork to a model ready to prefill",
        statistics.median(waits),
        unit="ms",
        at_most=100,
        samples=waits,
    )


if __name__ == "__main__":
    main()
