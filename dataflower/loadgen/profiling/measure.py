"""One stage alone on its container, batch after batch, on the inputs that real runs gave it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from dataflower.clock import Clock, SystemClock
from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.errors import DataflowerError
from dataflower.host.api import HostApi
from dataflower.loadgen.profiling.memory import peak_bytes, reset_peak
from dataflower.loadgen.profiling.steady import LEAST, Summary, is_steady, summary
from dataflower.planner.measured import PointDocument
from dataflower.planner.profile import Point
from dataflower.planner.table import mended
from dataflower.spec.function import Port, PortType
from dataflower.spec.workflow import INPUTS, Batch, Edge, Input, Output, PortRef, Scaling, Stage, Workflow

WAIT_MS = 50.0
"""How long an unfilled batch waits for the rest of what was sent at once."""
MOST_WAIT_MS = 5000.0
MOST_RUNS = 200
WARM = 2
"""Runs of a batch size before its time counts."""


class ProfilingHost(HostApi, Protocol):
    """A host in this process."""

    def container_pids(self) -> dict[int, int]:
        """Process ids of the running containers, by number."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        batches: sizes for a stage that takes batches, rising from 1.
        limit_s: most time for one batch size, unless that would leave fewer than three runs.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    limit_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A stage as it was measured; durations in seconds. `first_s`: the first task of the new container."""

    points: tuple[PointDocument, ...]
    start_s: float
    first_s: float


OnRun = Callable[[int, int], None]
"""`on_run(batch, runs so far)`."""


class Bench:
    """A workflow of one stage: the function, its container, and inputs to feed it with."""

    def __init__(
        self,
        host: ProfilingHost,
        stage: Stage,
        tasks: Sequence[Mapping[str, Any]],
        clock: Clock,
        *,
        name: str = "profile",
    ) -> None:
        """`tasks`: recorded inputs, at least one. `name`: tells several of one stage apart."""
        self._host, self._stage, self.clock = host, stage, clock
        shape = signature(tasks[0])
        self._tasks = [task for task in tasks if signature(task) == shape] if stage.batch is not None else list(tasks)
        self._turn = itertools.cycle(self._tasks)
        self._wait_ms = WAIT_MS
        self.name = f"{name}-{stage.name.replace('/', '-')}"

    async def start(self, most: int) -> float:
        """Have the container, which takes batches of up to `most`; how long it took, in seconds."""
        begun = self.clock.monotonic()
        workflow = alone(self._stage, self._tasks[0], self.name, most, self._wait_ms)
        await self._host.apply(workflow, f"{self.name} {most} {self._wait_ms}")
        await self._host.wait_ready(self.name)
        return self.clock.monotonic() - begun

    def pid(self, task: TaskTrace) -> int | None:
        """The process that ran a task, if it still lives."""
        return self._host.container_pids().get(task.container)

    async def stop(self) -> None:
        """Forget the workflow, and with it the container."""
        await self._host.delete(self.name)

    async def run(self, batch: int) -> TaskTrace | None:
        """One batch; the record of one of its tasks. None if it did not run as one batch.

        Raises:
            InvocationFailed: user code failed.
        """
        traces = await asyncio.gather(*(self._one() for _ in range(batch)))
        tasks = [task for trace in traces for task in trace.tasks]
        if batch > 1 and any(task.batch != batch for task in tasks):
            return None
        return max(tasks, key=lambda task: task.sent)

    async def _one(self) -> InvocationTrace:
        invocation = await self._host.invoke(self.name, next(self._turn))
        async for _ in invocation.outputs():
            pass
        if invocation.trace is None:
            raise DataflowerError(f"a run of {self._stage.name} left no trace")
        return invocation.trace

    async def patient(self, most: int) -> None:
        """A new container that waits longer for the rest of a batch."""
        if self._wait_ms >= MOST_WAIT_MS:
            raise DataflowerError(f"stage {self._stage.name!r}: {most} tasks sent at once did not run as one batch")
        self._wait_ms *= 4
        await self.start(most)


async def measure(
    host: ProfilingHost,
    stage: Stage,
    tasks: Sequence[Mapping[str, Any]],
    effort: Effort,
    *,
    on_run: OnRun = lambda batch, runs: None,
    clock: Clock | None = None,
) -> Measured:
    """Durations of a stage, alone on this machine with one container, for each batch size that it may take.

    The duration of a batch is from its hand-over to the container until the host has its last result: the time for
    which the container can take nothing else. Each size is repeated until its median is steady (`steady.is_steady`),
    the first runs not counted.

    Raises:
        InvocationFailed: user code failed.
    """
    clock = clock or SystemClock()
    sizes = sizes_of(stage, effort)
    bench = Bench(host, stage, tasks, clock)
    start_s = await bench.start(sizes[-1])
    points: list[tuple[int, Summary, int | None]] = []
    first_s = 0.0
    try:
        for size in sizes:
            found = await _series(bench, size, sizes[-1], effort, on_run)
            first_s = first_s or found.first_s
            points.append((size, summary(found.samples), found.memory_bytes))
    finally:
        await bench.stop()
    return Measured(_documents(points), start_s, first_s)


def sizes_of(stage: Stage, effort: Effort) -> tuple[int, ...]:
    """Batch sizes to measure: 1 alone for a stage that takes no batches, else up to the size that it allows."""
    if stage.batch is None:
        return (1,)
    most = stage.batch.max_size
    return tuple(sorted({size for size in (*effort.batches, most) if size <= most} | {1}))


@dataclass(slots=True)
class _Found:
    samples: list[float]
    first_s: float = 0.0
    memory_bytes: int | None = None


async def measure_beside(
    host: ProfilingHost,
    stage: Stage,
    tasks: Sequence[Mapping[str, Any]],
    points: Sequence[PointDocument],
    effort: Effort,
    *,
    on_run: OnRun = lambda batch, runs: None,
    clock: Clock | None = None,
) -> tuple[PointDocument, ...]:
    """The same batch sizes again, while others keep the machine busy: `points` with `busy_ms` and `busy_high_ms`.

    No batch counts as quicker in company than alone: that would be noise.

    Raises:
        InvocationFailed: user code failed.
    """
    bench = Bench(host, stage, tasks, clock or SystemClock())
    most = points[-1].batch
    await bench.start(most)
    try:
        found = [summary((await _series(bench, p.batch, most, effort, on_run)).samples) for p in points]
    finally:
        await bench.stop()
    medians = mended([Point(p.batch, s.median_s) for p, s in zip(points, found, strict=True)])
    highs = mended([Point(p.batch, s.high_s) for p, s in zip(points, found, strict=True)])
    result = []
    for point, median, high in zip(points, medians, highs, strict=True):
        busy = max(point.duration_ms, round(median.duration_s * 1000, 4))
        busy_high = max(busy, point.high_ms or 0.0, round(high.duration_s * 1000, 4))
        result.append(point.model_copy(update={"busy_ms": busy, "busy_high_ms": busy_high}))
    return tuple(result)


async def _series(bench: Bench, size: int, most: int, effort: Effort, on_run: OnRun) -> _Found:
    found, seen, wrong = _Found([]), 0, 0
    pid: int | None = None
    begun = bench.clock.monotonic()
    while True:
        task = await bench.run(size)
        if task is None:
            wrong += 1
            if wrong > 2:
                await bench.patient(most)
                wrong = 0
            continue
        duration = task.sent - task.dispatched
        found.first_s = found.first_s or duration
        seen += 1
        if pid is None:
            pid = bench.pid(task)
            if pid is not None:
                reset_peak(pid)
        if seen > WARM or duration > effort.limit_s:
            found.samples.append(duration)
        on_run(size, len(found.samples))
        spent = bench.clock.monotonic() - begun
        enough = len(found.samples) >= LEAST and is_steady(found.samples)
        late = spent > effort.limit_s and len(found.samples) >= min(3, LEAST)
        if enough or late or len(found.samples) >= MOST_RUNS:
            break
    found.memory_bytes = None if pid is None else peak_bytes(pid)
    return found


def _documents(points: Sequence[tuple[int, Summary, int | None]]) -> tuple[PointDocument, ...]:
    """Durations that fall as the batch grows are noise, or padding that pays: a smaller batch may run as a larger."""
    medians = mended([Point(size, s.median_s) for size, s, _ in points])
    highs = mended([Point(size, s.high_s) for size, s, _ in points])
    return tuple(
        PointDocument(
            batch=size,
            duration_ms=round(median.duration_s * 1000, 4),
            high_ms=round(max(high.duration_s, median.duration_s) * 1000, 4),
            std_ms=round(s.std_s * 1000, 4),
            runs=s.runs,
            steady=s.steady,
            memory_bytes=memory,
        )
        for (size, s, memory), median, high in zip(points, medians, highs, strict=True)
    )


def alone(stage: Stage, task: Mapping[str, Any], name: str, most: int, wait_ms: float) -> Workflow:
    """A workflow of this one stage, fed with what a recorded task has, with one container that is kept.

    Types of inputs are not checked again: a gathered list comes as the value that it is.
    """
    streams = {port.name for port in stage.input_ports if port.stream}
    ports = tuple(Port(port, PortType(), stream=port in streams) for port in task)
    others = tuple(port for port in stage.input_ports if port.name not in task)
    batch = None if stage.batch is None else Batch(max_size=most, wait_ms=wait_ms, same_shape=stage.batch.same_shape)
    only = replace(
        stage,
        name=stage.name.replace("/", "-"),
        inputs=tuple(Input(port, (Edge(PortRef(INPUTS, port)),)) for port in task),
        input_ports=(*ports, *others),
        when=(),
        retry=None,
        catch=(),
        scaling=Scaling(min_replicas=1, max_replicas=1, keep_alive_s=3600.0),
        batch=batch,
    )
    outputs = tuple(Output(port.name, Edge(PortRef(only.name, port.name)), port) for port in only.outputs)
    return Workflow(name, {only.name: only}, ports, outputs)


def signature(task: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which inputs a task has and the shapes of its tensors: tasks that may share a batch have the same."""
    return tuple((name, _shape(task[name])) for name in sorted(task))


def _shape(value: Any) -> Any:
    return (str(value.dtype), value.shape) if isinstance(value, np.ndarray) else None
