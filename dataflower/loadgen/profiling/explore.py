"""A few real runs of a workflow: how often each stage runs, and what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.errors import DataflowerError
from dataflower.host.api import HostApi
from dataflower.host.values import read_blob
from dataflower.spec.scopes import scopes_of
from dataflower.spec.workflow import Stage, Workflow

RECORDER = "dataflower.container.recorder:Recorder"
KEEP = 8
"""Tasks whose inputs are kept, for each stage."""


@dataclass(frozen=True, slots=True)
class Explored:
    """What the runs showed.

    Attributes:
        traces: of the runs, in order.
        tasks: stage -> tasks for one invocation: the average, and the most.
        items: fan-out -> items for one task, on the average.
        files: stage -> files of data that its function read.
    """

    traces: tuple[InvocationTrace, ...]
    tasks: Mapping[str, tuple[float, int]]
    items: Mapping[str, float]
    files: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Stages that work in tokens -> tokens of the prompt and of the answer, for each answer."""


def recording(workflow: Workflow, folder: Path, keep: int = KEEP) -> Workflow:
    """The same workflow, each function of which is run by the recorder; `folder` gets a folder for each stage."""
    stages = {name: _recorded(stage, folder, keep) for name, stage in workflow.stages.items()}
    return replace(workflow, stages=stages, slo=None, deadline_s=None)


def _recorded(stage: Stage, folder: Path, keep: int) -> Stage:
    if stage.is_switch:
        return stage
    place = stage_folder(folder, stage.name)
    place.mkdir(parents=True, exist_ok=True)
    params = {
        "function": stage.function,
        "params": dict(stage.params),
        "folder": str(place),
        "keep": keep,
        "batch": stage.batch is not None,
        "streams": [port.name for port in stage.input_ports if port.stream],
    }
    return replace(stage, function=RECORDER, params=params, batch=None)


def stage_folder(folder: Path, stage: str) -> Path:
    """Where the recorder of a stage notes things (stages of nested workflows have a slash in their name)."""
    return folder / stage.replace("/", "+")


async def explore(
    host: HostApi,
    workflow: Workflow,
    inputs: Sequence[Mapping[str, Any]],
    folder: Path,
    on_run: Callable[[int], None] = lambda run: None,
) -> Explored:
    """Run the workflow once for each of `inputs`, one after the other, with recorders in the place of its functions.

    Raises:
        InvocationFailed: a run failed.
    """
    shown = recording(workflow, folder)
    await host.apply(shown, f"recording of {workflow.name} in {folder}")
    traces: list[InvocationTrace] = []
    try:
        for i, given in enumerate(inputs):
            invocation = await host.invoke(workflow.name, given)
            async for _ in invocation.outputs():
                pass
            if invocation.trace is None:
                raise DataflowerError(f"run {i + 1} of {workflow.name} left no trace")
            traces.append(invocation.trace)
            on_run(i + 1)
    finally:
        await host.delete(workflow.name)
    return summed(workflow, traces, folder)


def summed(workflow: Workflow, traces: Sequence[InvocationTrace], folder: Path) -> Explored:
    """What the traces say together."""
    names = [name for name, stage in workflow.stages.items() if not stage.is_switch]
    counts = {name: [len(_firsts(trace, name)) for trace in traces] for name in names}
    tasks = {name: (sum(found) / len(found), max(found)) for name, found in counts.items()}
    files = {name: tuple(sorted(_files(stage_folder(folder, name)))) for name in names}
    answers = {name: found for name in names if (found := _answers(stage_folder(folder, name))) is not None}
    return Explored(tuple(traces), tasks, _items(workflow, traces), files, answers)


def _answers(folder: Path) -> tuple[tuple[int, int], ...] | None:
    """None if the stage has no language model."""
    notes = sorted(folder.glob("*.answers.json"))
    if not notes:
        return None
    return tuple((prompt, answer) for note in notes for prompt, answer in json.loads(note.read_text()))


def _firsts(trace: InvocationTrace, stage: str) -> list[TaskTrace]:
    """First attempts of a stage's tasks."""
    return [task for task in trace.tasks if task.stage == stage and task.attempt <= 1]


def _items(workflow: Workflow, traces: Sequence[InvocationTrace]) -> dict[str, float]:
    """Items of each fan-out for one task: what its stage handed out, else as many as its readers saw."""
    scopes = scopes_of(workflow)
    fanouts = dict.fromkeys(fanout for scope in scopes.values() for fanout in scope)
    found: dict[str, float] = {}
    for fanout in fanouts:
        if fanout in workflow.stages:
            done = [task.items for trace in traces for task in _firsts(trace, fanout)]
            found[fanout] = sum(done) / len(done) if done else 0.0
            continue
        inside = [(name, scope.index(fanout)) for name, scope in scopes.items() if fanout in scope]
        groups, members = set[tuple[int, ...]](), set[tuple[int, ...]]()
        for i, trace in enumerate(traces):
            for name, depth in inside:
                tags = [tuple(task.tag) for task in _firsts(trace, name)]
                groups.update((i, *tag[:depth]) for tag in tags)
                members.update((i, *tag[: depth + 1]) for tag in tags)
        found[fanout] = len(members) / len(groups) if groups else 0.0
    return found


def _files(folder: Path) -> Iterable[str]:
    for note in folder.glob("*.files.json"):
        yield from json.loads(note.read_text())


def recorded(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The inputs that were noted for a stage, in a fixed order; streams are lists."""
    return [read_blob(path.read_bytes()) for path in sorted(stage_folder(folder, stage).glob("*.task"))]
