"""Workflows and invocations of a server, as plain values and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dataflower.cli.outcome import failure_data
from dataflower.cli.sizes import human
from dataflower.cli.values import plain, text
from dataflower.clock import SystemClock
from dataflower.errors import NotFound
from dataflower.host.api import InvocationRecord, Preloaded, StageStatus, State
from dataflower.spec.function import Port
from dataflower.spec.workflow import Slo

if TYPE_CHECKING:
    from dataflower.checkpoint.protocol import Statistics
    from dataflower.gateway.client import Client
    from dataflower.gateway.messages import WorkflowInfo

_STYLES = {State.RUNNING: "cyan", State.SUCCEEDED: "green", State.FAILED: "red", State.CANCELLED: "yellow"}


def workflow_of(client: Client, record: InvocationRecord) -> WorkflowInfo | None:
    """The workflow that an invocation ran; None if that version does not serve any more."""
    try:
        info = client.workflow(record.workflow)
    except NotFound:
        return None
    return info if info.version == record.version else None


def promised(client: Client, record: InvocationRecord) -> Slo | None:
    """The SLO of the workflow that an invocation ran; None if it failed, or that version does not serve any more."""
    info = workflow_of(client, record) if record.state is State.SUCCEEDED else None
    return None if info is None else info.slo


def workflow_data(info: WorkflowInfo) -> dict[str, Any]:
    """A workflow as plain values."""
    data: dict[str, Any] = {
        "name": info.name,
        "version": info.version,
        "description": info.description,
        "labels": info.labels,
        "applied_at": iso(info.applied_at),
        "running": info.running,
        "inputs": [_port_data(port) for port in info.inputs],
        "outputs": [_port_data(port) for port in info.outputs],
        "stages": [
            {
                "stage": s.stage,
                "starting": s.starting,
                "idle": s.idle,
                "busy": s.busy,
                "queued": s.queued,
                "done": s.done,
                "pool": s.pool or None,
                "shares": list(s.shares),
                "run_over_plan": s.run_over_plan,
                "is_slow": s.is_slow,
            }
            for s in info.stages
        ],
    }
    if info.replanning is not None:
        from dataflower.cli.replan import replan_data

        data["replanning"] = replan_data(info.replanning)
    return data


def _port_data(port: Port) -> dict[str, Any]:
    return {"name": port.name, "type": str(port.type), "stream": port.stream, "optional": port.optional}


def record_data(record: InvocationRecord) -> dict[str, Any]:
    """An invocation as plain values."""
    data: dict[str, Any] = {
        "invocation": record.id,
        "workflow": record.workflow,
        "version": record.version,
        "state": record.state.value,
        "accepted_at": iso(record.accepted_at),
        "finished_at": None if record.finished_at is None else iso(record.finished_at),
    }
    if record.outputs is not None:
        data["outputs"] = plain(dict(record.outputs))
    if record.failure is not None:
        data["failure"] = failure_data(record.failure)
    return data


def workflow_table(infos: Iterable[WorkflowInfo]) -> RenderableType:
    """A line for each workflow."""
    table = _table("workflow", "version", "running", "containers", "queued", "applied", "description")
    for info in infos:
        containers = sum(s.starting + s.idle + s.busy for s in info.stages)
        queued = sum(s.queued for s in info.stages)
        counts = (str(n) for n in (info.version, info.running, containers, queued))
        table.add_row(info.name, *counts, ago(info.applied_at), Text(info.description))
    return table


def preloaded_data(artifact: Preloaded) -> dict[str, Any]:
    """What could be ready ahead, as plain values."""
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "bytes": artifact.nbytes,
        "saved_s": artifact.saved_s,
        "value": artifact.value,
        "held": artifact.held,
        "ready": artifact.ready,
        "users": list(artifact.users),
    }


def preloaded_table(artifacts: Iterable[Preloaded]) -> RenderableType:
    """A line for each artifact of preloading: `ready`, `on its way`, or not held."""
    table = _table("ready ahead of calls", "state", "memory", "saves", "users")
    for a in artifacts:
        state = ("ready" if a.ready else "on its way") if a.held else "not held"
        table.add_row(Text(a.name), state, human(a.nbytes), f"{a.saved_s:.2f} s", str(len(a.users)))
    return table


def stage_table(stages: Iterable[StageStatus]) -> RenderableType:
    """A line for each stage."""
    rows = tuple(stages)
    shared = any(stage.pool for stage in rows)
    is_planned = any(stage.run_over_plan is not None for stage in rows)
    further = (*(("run/plan",) if is_planned else ()), *(("containers",) if shared else ()))
    table = _table("stage", "starting", "idle", "busy", "queued", "done", *further)
    for stage in rows:
        counts = (stage.starting, stage.idle, stage.busy, stage.queued, stage.done)
        where = (f"{stage.pool}, with {', '.join(stage.shares) or 'nobody'}" if stage.pool else "its own",)
        pace = Text("" if stage.run_over_plan is None else f"{stage.run_over_plan:.2f}")
        if stage.is_slow:
            pace.stylize("bold red")
        table.add_row(
            stage.stage, *(str(n) for n in counts), *([pace] if is_planned else []), *(where if shared else ())
        )
    return table


def slow_lines(stages: Iterable[StageStatus]) -> Iterator[str]:
    """A warning for each stage that runs slower than its plan says, and what to do about it."""
    for stage in stages:
        if stage.is_slow and stage.run_over_plan is not None:
            yield (
                f"slow:    runs of stage {stage.stage!r} take {stage.run_over_plan:.2f} times what the plan says: "
                "fewer calls are let in. Let the plan follow (`apply --replan on`), or profile and plan again."
            )


def record_table(records: Iterable[InvocationRecord]) -> RenderableType:
    """A line for each invocation."""
    table = _table("invocation", "workflow", "state", "accepted", "took", "failure")
    for record in records:
        failure = "" if record.failure is None else f"{record.failure.kind}: {record.failure.message}".splitlines()[0]
        table.add_row(
            record.id,
            f"{record.workflow}@{record.version}",
            Text(record.state.value, style=_STYLES[record.state]),
            ago(record.accepted_at),
            took(record),
            Text(failure),
        )
    return table


def in_order(outputs: Mapping[str, Any], ports: Iterable[Port], *, join: bool) -> dict[str, Any]:
    """Outputs in the order of the workflow file; `join`: streams of text as one text, as they are shown when they come.

    Outputs that no port is known for keep their place at the end.
    """
    ordered: dict[str, Any] = {}
    for port in ports:
        if port.name in outputs:
            value = outputs[port.name]
            is_text = join and port.stream and isinstance(value, list) and all(isinstance(v, str) for v in value)
            ordered[port.name] = "".join(value) if is_text else value
    return {**ordered, **{name: value for name, value in outputs.items() if name not in ordered}}


def outputs_table(record: InvocationRecord, ports: Iterable[Port] = ()) -> RenderableType:
    """The outputs of a finished invocation."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in in_order(record.outputs or {}, ports, join=True).items():
        table.add_row(name, Text(text(value)))
    return table


def ports(ports: Iterable[Port]) -> str:
    """Ports on one line: `video: string, frames: stream of UINT8[H, W, 3]`; `?` means optional."""
    shown = (f"{p.name}{'?' if p.optional else ''}: {'stream of ' if p.stream else ''}{p.type}" for p in ports)
    return ", ".join(shown) or "none"


def took(record: InvocationRecord) -> str:
    """How long an invocation ran."""
    if record.finished_at is None:
        return "-"
    return f"{(record.finished_at - record.accepted_at) * 1000:.0f} ms"


def ago(wall: float) -> str:
    """A time in the past as people say it."""
    passed = max(0.0, SystemClock().wall() - wall)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= size:
            return f"{passed // size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def iso(wall: float) -> str:
    """A wall-clock time as ISO 8601 in UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=title in ("workflow", "invocation", "stage"))
    return table


def weights_data(held: Statistics) -> dict[str, Any]:
    """What the store of model weights holds, as plain values."""
    data: dict[str, Any] = msgspec.structs.asdict(held)
    return {
        **data,
        "models": [msgspec.structs.asdict(model) for model in held.models],
        "rates": [msgspec.structs.asdict(rate) for rate in held.rates],
    }


def weights_text(held: Statistics) -> str:
    """The same in a few lines."""
    times = "" if not held.hits else f", found here {held.hits} more time{'s' * (held.hits != 1)}"
    lines = [
        f"weights: {human(held.held_bytes)} of {human(held.cap_bytes)} held "
        f"({human(held.free_bytes)} of memory ready for the next), {held.loads} loaded{times}"
    ]
    for model in held.models:
        state = f"{model.clients} user{'s' * (model.clients != 1)}" if model.ready else "loading"
        lines.append(f"  {model.name}  {human(model.nbytes)}  {state}")
    measured = [f"{rate.source} {human(rate.bandwidth)}/s" for rate in held.rates if rate.bandwidth]
    return "\n".join([*lines, *([f"  read at {', '.join(measured)}"] if measured else [])])
