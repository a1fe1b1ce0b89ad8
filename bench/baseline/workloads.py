"""The four workflows of the DataFlower paper (ASPLOS 2023, evaluation), as far as its artifact tells them.

Graphs, fan-outs, sizes of data and shares of a core are the artifact's; each function takes as long as it took there
(mean times of the open-loop runs), by a timer instead of by computing: containers of a tenth of a core on a cluster of
three 16-core workers can't be had on one small machine, and what is compared is how functions are led and fed, not how
fast they compute. The bytes are real: written, handed over and read. Sizes that the artifact does not tell are marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

BYTES_PER_S_AND_CORE = 50e6
"""Egress of a container: 40 Mbit/s for each tenth of a core."""


@dataclass(frozen=True)
class Step:
    """A function of a workflow. `inputs`: `step`, `each step` (one task per part) or `gather step`; none: the request.

    `seconds` of work, then (or, with `parts`, meanwhile: one after another) `nbytes` of output in all. `cores`: its
    share; `replicas`: how many containers there are in every system, times a factor of the run.
    """

    name: str
    inputs: tuple[str, ...]
    seconds: float
    nbytes: int
    cores: float = 0.2
    parts: int = 0
    replicas: int = 2
    worker: int = 0
    """On which of the paper's three workers it runs; on two hosts, those of worker 2 are on the first."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second that one container may send to other machines."""
        return self.cores * BYTES_PER_S_AND_CORE

    @property
    def function(self) -> str:
        """`module:name` of what runs in its containers."""
        return f"bench.baseline.functions:{'cut' if self.parts else 'step'}"

    def params(self, scale: float) -> dict[str, float | int]:
        """What the function is told, with time and bytes times `scale`."""
        params: dict[str, float | int] = {"seconds": self.seconds * scale, "nbytes": max(1, int(self.nbytes * scale))}
        return params | ({"parts": self.parts} if self.parts else {})


@dataclass(frozen=True)
class Benchmark:
    """A workflow; its result is the output of the last step. `rpm`: requests per minute of the open loop."""

    name: str
    steps: tuple[Step, ...]
    rpm: float
    clients: tuple[int, ...]
    """Of the closed loop: how many, one measurement each, times the factor of the run."""

    def times(self, factor: int) -> Benchmark:
        """The same with so many times the containers and clients; 4 is what the paper's workers of 16 cores hold."""
        steps = tuple(replace(step, replicas=factor * step.replicas) for step in self.steps)
        return replace(self, steps=steps, clients=tuple(factor * count for count in self.clients))

    def workflow(self, scale: float, others: Sequence[str] = ()) -> str:
        """The workflow for dataflower, as YAML. `others`: names of further hosts, for the steps of workers 1 and 2."""
        lines = [self._stage(step, scale, others) for step in self.steps]
        last = self.steps[-1].name
        return (
            f"apiVersion: dataflower/v1\nkind: Workflow\nmetadata: {{name: {self.name}}}\n"
            f"inputs: {{request: {{type: string}}}}\nstages:\n{''.join(lines)}outputs: {{result: {last}.out}}\n"
        )

    def crosses(self, step: Step, hosts: int) -> bool:
        """Whether, on so many hosts, anybody who reads its output is on another one; the caller is on the first."""
        readers = [one for one in self.steps if step.name in {text.rpartition(" ")[2] for text in one.inputs}]
        own = step.worker % hosts
        return any(one.worker % hosts != own for one in readers) or (not readers and own > 0)

    def _stage(self, step: Step, scale: float, others: Sequence[str]) -> str:
        inputs = [f"x{i}: {self._source(text)}" for i, text in enumerate(step.inputs)] or ["x0: inputs.request"]
        params = ", ".join(f"{name}: {value!r}" for name, value in step.params(scale).items())
        resources = ""
        if others:
            number = step.worker % (1 + len(others))
            place = f"host: {others[number - 1]}, " if number else ""
            resources = f"    resources: {{{place}bandwidth: {step.bandwidth:.0f}}}\n"
        return (
            f"  {step.name}:\n    function: {step.function}\n    inputs: {{{', '.join(inputs)}}}\n"
            f"    params: {{{params}}}\n"
            f"    scaling: {{min_replicas: {step.replicas}, max_replicas: {step.replicas}, keep_alive_s: 600}}\n"
            "    retry: {errors: [DataLost]}\n"  # so outputs go straight to where they are read
            f"{resources}"
        )

    def _source(self, text: str) -> str:
        how, _, name = text.rpartition(" ")
        port = f"{name}.{'part' if self.step(name).parts else 'out'}"
        return f"{{{how}: {port}}}" if how else port

    def step(self, name: str) -> Step:
        """By name."""
        return next(step for step in self.steps if step.name == name)


WORDCOUNT = Benchmark(
    "wordcount",
    (
        Step("start", (), 0.015, 3_301_104, parts=8),
        Step("count", ("each start",), 0.119, 20_000, replicas=8, worker=1),  # size of a count: ours
        Step("merge", ("gather count",), 0.053, 20_000, worker=2),  # and of the result
    ),
    rpm=22,
    clients=(4, 8, 16, 32),
)
SVD = Benchmark(
    "svd",
    (
        Step("start", (), 0.013, 17_600_000, parts=16),
        Step("compute", ("each start",), 1.146, 65_536, cores=0.1, replicas=16, worker=1),  # size of a factor: ours
        Step("merge", ("gather compute",), 2.426, 65_536, worker=2),
    ),
    rpm=20,
    clients=(2, 4, 8),
)
VIDEO = Benchmark(
    "video",
    (
        Step("upload", (), 0.950, 21_000_000),
        Step("split", ("upload",), 0.774, 22_800_000, parts=4, worker=1),
        Step("transcode", ("each split",), 0.743, 5_700_000, cores=0.5, replicas=4),  # size of its output: ours
        Step("merge", ("gather transcode",), 0.260, 22_800_000, worker=1),
    ),
    rpm=11,
    clients=(2, 4, 8),
)
IMAGE = 2_285_881
RECOGNIZER = Benchmark(
    "recognizer",
    (
        Step("upload", (), 0.003, IMAGE),
        Step("adult", ("upload",), 2.373, 1024, cores=1.0, worker=1),
        Step("violence", ("upload",), 2.058, 1024, cores=1.0, worker=2),
        Step("extract", ("upload", "adult", "violence"), 0.677, 1024, cores=0.5, worker=1),
        Step("translate", ("extract",), 0.109, 1024),
        Step("censor", ("translate",), 0.006, 1024, worker=1),
        Step("mosaic", ("upload", "censor"), 0.473, IMAGE, worker=2),
    ),
    rpm=10,
    clients=(2, 4, 8),
)
BENCHMARKS: Mapping[str, Benchmark] = {each.name: each for each in (WORDCOUNT, SVD, VIDEO, RECOGNIZER)}
