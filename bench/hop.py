"""How long does one hop take: a value from one stage to the next, each in a process of its own?

A chain of pass-through stages is invoked over and over from the host's own process (no gRPC). `hop` is the median time
of an invocation over the number of stages, so the way in and out is part of it. Two settings: all processes pinned to
one core, and free. Large tensors lie in an arena and are handed on by reference. Rivals run the same chain of four in
the same run, in turns with ours (docs/dataplane.md says how). The floor: a few bytes over sockets in plain Python,
straight from stage to stage (`direct`), and by way of the caller (`relay`), as our host does it.
"""

from __future__ import annotations

import os
import statistics
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import numpy as np
import uvloop

from bench.engine import document, engine, pin, stage
from bench.report import Report, arguments, finish
from bench.rivals import Field, field
from dataflower.host.runtime import Runtime

CHAINS = (1, 2, 4, 8)
STAGES = 4
KB, MB = 1024, 1024 * 1024
BY_REFERENCE = {"1KB": KB, "64MB": 64 * MB}


def chain(stages: int) -> str:
    """`stages` pass-through stages."""
    lines = [stage(f"s{i}", "forward", f"{{x: {f's{i - 1}.out' if i else 'inputs.x'}}}") for i in range(stages)]
    return document(f"chain{stages}", "{x: {type: any}}", "\n".join(lines), f"{{y: s{stages - 1}.out}}")


def reference_chain() -> str:
    """A stage that makes a tensor, four that hand it on, one that looks at its size."""
    lines = [stage("make", "blank", "{trigger: inputs.n, nbytes: inputs.n}")]
    lines += [stage(f"s{i}", "forward", f"{{x: {f's{i - 1}.out' if i else 'make.out'}}}") for i in range(4)]
    lines += [stage("end", "length", "{x: s3.out}")]
    return document("by_reference", "{n: {type: int}}", "\n".join(lines), "{size: end.out}")


async def once(host: Runtime, name: str, inputs: Mapping[str, Any]) -> None:
    """Invoke and see all results, where they lie."""
    invocation = await host.invoke(name, inputs)
    async for _ in invocation.outputs():
        pass


async def microseconds(host: Runtime, name: str, inputs: Mapping[str, Any], rounds: int, hops: int) -> list[float]:
    """Time per hop of `rounds` warm invocations."""
    for _ in range(max(3, rounds // 10)):
        await once(host, name, inputs)
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        await once(host, name, inputs)
        samples.append((time.perf_counter() - start) / hops * 1e6)
    return samples


class Setting:
    """All samples of one setting (pinned or free), ours in microseconds per hop."""

    def __init__(self, host: Runtime, rivals: Field, quick: bool) -> None:
        self.host, self.rivals = host, rivals
        self.turns, self.rounds = (1, 60) if quick else (5, 600)
        self.ours: dict[str, list[float]] = {}

    async def mine(self, key: str, name: str, inputs: Mapping[str, Any], rounds: int, hops: int) -> None:
        """One of our turns."""
        self.ours.setdefault(key, []).extend(await microseconds(self.host, name, inputs, rounds, hops))

    def theirs(self, key: str, name: str, do: str = "chain", *, nbytes: int = KB, part: int = 1) -> None:
        """One turn of a rival: a chain of four. `part`: divides the rounds."""
        rounds = self.rounds // part
        self.rivals.measure(key, name, do, stages=STAGES, nbytes=nbytes, rounds=rounds, warm=max(10, rounds // 10))

    async def chains(self) -> None:
        """Ours, for each length of the chain."""
        payload = os.urandom(KB)
        for n in CHAINS:
            await self.mine(f"chain{n}", f"chain{n}", {"x": payload}, self.rounds, n)

    async def large(self) -> None:
        """Ours, by reference; and a megabyte that the caller gives."""
        for size, nbytes in BY_REFERENCE.items():
            await self.mine(size, "by_reference", {"n": nbytes}, self.rounds // 6, 6)
        await self.mine("1MB", "chain4", {"x": np.ones(MB, np.uint8)}, self.rounds // 3, STAGES)

    def floors(self) -> None:
        """What sockets and Python cost."""
        self.theirs("direct", "direct")
        self.theirs("relay", "relay")

    def ratio(self, theirs: str, ours: str) -> float | None:
        """Median of a rival (per hop) over ours."""
        rival = self.rivals.median(theirs)
        return None if rival is None else rival / STAGES * 1e6 / statistics.median(self.ours[ours])

    def report(self, report: Report, suffix: str, limits: Mapping[str, float]) -> None:
        """The rows that both settings have."""
        where = "free" if suffix else "pinned"
        for n in CHAINS:
            samples = self.ours[f"chain{n}"]
            key = f"hop_us_1KB{suffix}" if n == STAGES else f"hop_us_1KB_chain{n}{suffix}"
            question = f"chain of {n}, 1 KB, per hop ({where})"
            limit = limits["hop"] if n == STAGES else None
            report.add(key, question, statistics.median(samples), unit="us", at_most=limit, samples=samples)
        ratio = statistics.median(self.ours["64MB"]) / statistics.median(self.ours["1KB"])
        question = f"hop at 64 MB by reference over 1 KB ({where})"
        report.add(f"hop_64MB_over_1KB{suffix}", question, ratio, at_most=limits.get("large"))
        report.add(
            f"hop_us_1MB{suffix}",
            f"chain of 4, 1 MB written by the caller ({where})",
            statistics.median(self.ours["1MB"]),
            unit="us",
            samples=self.ours["1MB"],
        )
        for name, words in {"direct": "straight to the next", "relay": "by way of the caller"}.items():
            self.theirs_row(report, f"floor_us_{name}{suffix}", f"floor: a token {words} ({where})", name)

    def theirs_row(self, report: Report, key: str, question: str, name: str) -> None:
        """A rival's own time per hop."""
        samples = self.rivals.samples(name, 1e6 / STAGES)
        value = statistics.median(samples) if samples else None
        report.add(key, question, value, unit="us", samples=samples, missing=self.rivals.reason(name))


async def pinned(report: Report, options: Namespace) -> None:
    """Everything on one core."""
    with field(not options.alone) as rivals:
        rivals.add("direct", "floor", "direct", ours=True, core=0)
        rivals.add("relay", "floor", "relay", ours=True, core=0)
        rivals.add("iceoryx2", "iceoryx", core=0)
        async with engine(*(chain(n) for n in CHAINS), reference_chain()) as host:
            setting = Setting(host, rivals, options.quick)
            for _ in range(setting.turns):
                await setting.chains()
                setting.floors()
                setting.theirs("iceoryx2_1KB", "iceoryx2")
                await setting.large()
                setting.theirs("iceoryx2_1MB", "iceoryx2", nbytes=MB, part=3)
        setting.report(report, "", {"hop": 30, "large": 1.3})
        for size, key, target in (("1KB", "hop_vs_iceoryx2", 0.7), ("1MB", "hop_vs_iceoryx2_1MB", 4.0)):
            name = f"iceoryx2_{size}"
            setting.theirs_row(report, f"hop_us_{name}", f"iceoryx2, chain of 4, {size} (pinned)", name)
            ratio = setting.ratio(name, "chain4" if size == "1KB" else size)
            report.add(key, f"iceoryx2 over ours, {size}", ratio, at_least=target, missing=rivals.reason(name))
        report.rivals |= rivals.versions


async def free(report: Report, options: Namespace) -> None:
    """The kernel puts processes where it likes."""
    with field(not options.alone) as rivals:
        rivals.add("direct", "floor", "direct", ours=True)
        rivals.add("relay", "floor", "relay", ours=True)
        rivals.add("torch", "torch_queue", ours=True)
        rivals.add("mosec", "mosec_chain")
        rivals.add("pyzmq", "zmq_chain")
        rivals.add("ray", "ray_all")
        async with engine(*(chain(n) for n in CHAINS), reference_chain()) as host:
            setting = Setting(host, rivals, options.quick)
            for _ in range(setting.turns):
                await setting.chains()
                setting.floors()
                setting.theirs("mosec", "mosec", part=2)
                setting.theirs("pyzmq", "pyzmq", part=2)
                setting.theirs("graph", "ray", "graph_chain", part=3)
                setting.theirs("actors", "ray", "actors_chain", part=6)
                await setting.large()
                setting.theirs("torch", "torch", nbytes=64 * MB, part=6)
        setting.report(report, "_free", {"hop": 80})
        names = {"mosec": "mosec, raw codec", "graph": "Ray compiled graph, numpy", "actors": "Ray actors, numpy"}
        for name, words in (names | {"pyzmq": "pyzmq, ipc"}).items():
            setting.theirs_row(report, f"hop_us_{name}", f"{words}: chain of 4, 1 KB (free)", name)
        setting.theirs_row(report, "hop_us_64MB_torch", "torch.multiprocessing: chain of 4, 64 MB (free)", "torch")
        both = [setting.ratio(name, "chain4") for name in ("graph", "mosec")]
        best = None if None in both else min(ratio for ratio in both if ratio is not None)
        reason = rivals.reason("graph", "mosec")
        report.add("hop_vs_best", "the better of compiled graph and mosec over ours", best, at_least=2, missing=reason)
        actors, reason = setting.ratio("actors", "chain4"), rivals.reason("actors")
        report.add("hop_vs_ray", "Ray actors over ours", actors, at_least=15, missing=reason)
        torch, reason = setting.ratio("torch", "64MB"), rivals.reason("torch")
        report.add("hop_vs_torch_64MB", "torch.multiprocessing over ours, 64 MB", torch, at_least=1, missing=reason)
        report.rivals |= rivals.versions


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("hop")
    allowed = pin(0)
    uvloop.run(pinned(report, options))
    os.sched_setaffinity(0, allowed)
    uvloop.run(free(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
