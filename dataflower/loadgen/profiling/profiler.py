"""The profile of a workflow on this machine: real runs, then each stage alone; what is known is not measured again."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from dataflower.clock import Clock, SystemClock
from dataflower.errors import InvalidArgument
from dataflower.host.values import fingerprint
from dataflower.loadgen.profiling.cache import Cache
from dataflower.loadgen.profiling.company import Company, room_beside
from dataflower.loadgen.profiling.digest import file_digests, likeness, stage_digest
from dataflower.loadgen.profiling.explore import Explored, explore, recorded
from dataflower.loadgen.profiling.measure import (
    Effort,
    Measured,
    ProfilingHost,
    measure,
    measure_beside,
    sizes_of,
)
from dataflower.loadgen.profiling.steady import summary
from dataflower.loadgen.profiling.tokens import OnPoint, measure_tokens, measure_tokens_beside
from dataflower.planner.measured import PointDocument, ProfileDocument, StageProfile
from dataflower.spec.workflow import Stage, Workflow

LIBRARIES = ("numpy", "torch", "onnxruntime", "transformers")
"""Installed packages whose versions durations depend on."""


class Progress(Protocol):
    """What is told while measuring goes on."""

    def begin(self, steps: int) -> None:
        """So many steps lie ahead: real runs, then a batch size of a stage each."""
        ...

    def step(self, what: str) -> None:
        """The next step begins."""
        ...

    def done(self, steps: int = 1) -> None:
        """Steps are over."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What to profile.

    Attributes:
        workflow: checked, with its functions importable by the host.
        inputs: of the real runs, one after the other.
        device: what the price file calls this kind of machine.
        roots: folders in which the user's code lies.
        folder: an empty one for notes, which may grow by the inputs of a few tasks of each stage.
        effort: how long to measure.
        cache: measurements of earlier times.
    """

    workflow: Workflow
    inputs: Sequence[Mapping[str, Any]]
    device: str
    roots: Sequence[Path]
    folder: Path
    effort: Effort = field(default_factory=Effort)
    cache: Cache = field(default_factory=lambda: Cache(None))


@dataclass(frozen=True, slots=True)
class Profiled:
    """The document, and which of its stages came out of the cache."""

    document: ProfileDocument
    cached: frozenset[str]


async def profile(host: ProfilingHost, request: Request, progress: Progress, clock: Clock | None = None) -> Profiled:
    """Measure a workflow.

    Raises:
        InvocationFailed: a run failed; the message names the stage.
        InvalidArgument: no inputs to run with.
    """
    if not request.inputs:
        raise InvalidArgument("nothing to run: give the inputs of at least one invocation")
    return await _Profiler(host, request, progress, clock or SystemClock()).run()


class _Profiler:
    def __init__(self, host: ProfilingHost, request: Request, progress: Progress, clock: Clock) -> None:
        self.host, self.request, self.progress, self.clock = host, request, progress, clock
        self.about = about_machine()
        self.stages = [stage for stage in request.workflow.stages.values() if not stage.is_switch]
        about = f"{request.device} {self.about}"
        self.digests = {stage.name: stage_digest(stage, request.roots, about) for stage in self.stages}

    async def run(self) -> Profiled:
        request, effort = self.request, self.request.effort
        run_key = _key("runs with tokens", [self.digests, _fingerprint(request)])
        known = request.cache.get(run_key)
        if known is not None:
            document = ProfileDocument.model_validate(known)
            return Profiled(document, frozenset(document.stages))
        self.progress.begin(len(request.inputs) + 2 * sum(len(sizes_of(stage, effort)) for stage in self.stages))
        self.progress.step("real runs")
        explored = await explore(
            self.host, request.workflow, request.inputs, request.folder, lambda run: self.progress.done()
        )
        profiles, cached = {}, set()
        for stage in self.stages:
            found, was_known = await self._stage(stage, explored)
            tasks, most = explored.tasks.get(stage.name, (0.0, 0))
            profiles[stage.name] = found.model_copy(update={"tasks": round(tasks, 6), "most": most})
            if was_known:
                cached.add(stage.name)
        await self._beside(explored, profiles)
        document = self._document(explored, profiles)
        files = file_digests({name for found in explored.files.values() for name in found})
        request.cache.put(run_key, document.as_data(), files)
        return Profiled(document, frozenset(cached))

    async def _stage(self, stage: Stage, explored: Explored) -> tuple[StageProfile, bool]:
        """The durations of a stage, and whether they were known."""
        sizes = sizes_of(stage, self.request.effort)
        tasks = recorded(self.request.folder, stage.name)
        key = _key("stage with tokens", [self.digests[stage.name], likeness(tasks), sizes])
        kept = self.request.cache.get(key)
        if kept is not None:
            self.progress.done(len(sizes))
            return StageProfile.model_validate(kept), True
        if tasks:
            found = _alone(stage, await self._measure(stage, tasks, sizes))
        else:
            self.progress.done(len(sizes))
            found = _in_place(stage, explored)
        answers = explored.answers.get(stage.name, ())
        if answers and found.points:
            ran = explored.tasks[stage.name][0] * len(explored.traces)
            costs = await measure_tokens(
                self.host, stage, answers, ran, self.request.effort, on_point=self._on_point(stage), clock=self.clock
            )
            found = found.model_copy(update={"tokens": costs})
        found = found.model_copy(update={"digest": self.digests[stage.name]})
        if found.points:
            files = file_digests(explored.files.get(stage.name, ()))
            self.request.cache.put(key, found.model_dump(mode="json"), files)
        return found, False

    def _on_point(self, stage: Stage) -> OnPoint:
        return lambda what: self.progress.step(f"{stage.name}: {what}")

    async def _measure(self, stage: Stage, tasks: Sequence[Mapping[str, Any]], sizes: tuple[int, ...]) -> Measured:
        done = 0

        def on_run(batch: int, runs: int) -> None:
            nonlocal done
            at = sizes.index(batch)
            self.progress.step(f"{stage.name}: batch {batch}, run {runs}")
            self.progress.done(at - done)
            done = at

        self.progress.step(f"{stage.name}: starting")
        found = await measure(self.host, stage, tasks, self.request.effort, on_run=on_run, clock=self.clock)
        self.progress.done(len(sizes) - done)
        return found

    async def _beside(self, explored: Explored, profiles: dict[str, StageProfile]) -> None:
        """Measure the stages again while the heaviest of them keeps the other cores busy."""
        tasks = {s.name: recorded(self.request.folder, s.name) for s in self.stages}
        alone = [s for s in self.stages if profiles[s.name].how == "alone" and profiles[s.name].points]
        if not alone:
            return
        heaviest = max(alone, key=lambda s: profiles[s.name].points[-1].duration_ms)
        count = room_beside(alone, heaviest)
        size = profiles[heaviest.name].points[-1].batch
        keys = {
            s.name: _key(
                "beside with tokens",
                [self.digests[s.name], likeness(tasks[s.name]), self.digests[heaviest.name], count],
            )
            for s in alone
        }
        unknown = []
        for stage in alone:
            kept = self.request.cache.get(keys[stage.name])
            sizes = [p.batch for p in profiles[stage.name].points]
            if kept is None or not count or [p["batch"] for p in kept["points"]] != sizes:
                unknown.append(stage)
            else:
                again = StageProfile.model_validate(kept)
                profiles[stage.name] = profiles[stage.name].model_copy(
                    update={"points": again.points, "tokens": again.tokens}
                )
        if not unknown or not count:
            return
        self.progress.step(f"{count} x {heaviest.name} to keep company")
        async with Company(self.host, heaviest, tasks[heaviest.name], self.clock, size=size, count=count):
            for stage in unknown:
                await self._in_company(stage, profiles, tasks[stage.name])
        for stage in unknown:
            files = file_digests(explored.files.get(stage.name, ()))
            self.request.cache.put(keys[stage.name], profiles[stage.name].model_dump(mode="json"), files)

    async def _in_company(
        self, stage: Stage, profiles: dict[str, StageProfile], tasks: Sequence[Mapping[str, Any]]
    ) -> None:
        def on_run(batch: int, runs: int) -> None:
            self.progress.step(f"{stage.name} in company: batch {batch}, run {runs}")

        points = await measure_beside(
            self.host, stage, tasks, profiles[stage.name].points, self.request.effort, on_run=on_run, clock=self.clock
        )
        costs = profiles[stage.name].tokens
        if costs is not None:
            costs = await measure_tokens_beside(
                self.host, stage, costs, self.request.effort, on_point=self._on_point(stage), clock=self.clock
            )
        profiles[stage.name] = profiles[stage.name].model_copy(update={"points": list(points), "tokens": costs})
        self.progress.done(len(points))

    def _document(self, explored: Explored, profiles: dict[str, StageProfile]) -> ProfileDocument:
        return ProfileDocument(
            workflow=self.request.workflow.name,
            device=self.request.device,
            machine=self.about,
            measured_at=datetime.datetime.fromtimestamp(self.clock.wall(), datetime.UTC).isoformat(timespec="seconds"),
            invocations=len(self.request.inputs),
            items={name: round(count, 6) for name, count in explored.items.items()},
            stages=profiles,
        )


def _alone(stage: Stage, found: Measured) -> StageProfile:
    return StageProfile(
        function=stage.function,
        cores=stage.resources.cpu,
        start_ms=round(found.start_s * 1000, 1),
        first_ms=round(found.first_s * 1000, 3),
        points=list(found.points),
    )


def _in_place(stage: Stage, explored: Explored) -> StageProfile:
    """From the real runs, beside everything else that ran then; nothing where the stage did not run."""
    durations = [
        task.sent - task.dispatched
        for trace in explored.traces
        for task in trace.tasks
        if task.stage == stage.name and task.sent > task.dispatched > 0 and not task.error
    ]
    points = []
    if durations:
        s = summary(durations)
        points = [
            PointDocument(
                batch=1,
                duration_ms=round(statistics.median(durations) * 1000, 4),
                high_ms=round(s.high_s * 1000, 4),
                std_ms=round(s.std_s * 1000, 4),
                runs=s.runs,
                steady=s.steady,
            )
        ]
    return StageProfile(function=stage.function, cores=stage.resources.cpu, how="in place", points=points)


def about_machine() -> str:
    """Processor, cores, Python and the libraries that compute: another of them, other durations."""
    parts = [_processor(), f"{len(os.sched_getaffinity(0))} cores", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _fingerprint(request: Request) -> list[Any]:
    shape = [str(stage) for stage in request.workflow.stages.values()]
    given = [fingerprint(inputs).hex() for inputs in request.inputs]
    return [shape, given, list(request.effort.batches), request.effort.limit_s]


def _key(kind: str, facts: Any) -> str:
    text = json.dumps([kind, facts, sys.version_info[:2]], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
