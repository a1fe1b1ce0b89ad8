"""Records of the host as JSON: the same names as `dataflower ... -o json` prints."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from dataflower.errors import Failure
from dataflower.gateway.http.values import Tensors, to_json
from dataflower.gateway.messages import output_ports
from dataflower.host.api import InvocationRecord, ReplanStatus, WorkflowStatus
from dataflower.spec.function import Port


def stamp(seconds: float) -> str:
    """A wall-clock time in RFC 3339, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def workflow_data(status: WorkflowStatus, *, source: bool = False) -> dict[str, Any]:
    """A workflow; `source`: with its YAML."""
    data: dict[str, Any] = {
        "name": status.name,
        "version": status.version,
        "description": status.workflow.description,
        "labels": dict(status.workflow.labels),
        "applied_at": stamp(status.applied_at),
        "running": status.running,
        "inputs": [port_data(port) for port in status.workflow.inputs],
        "outputs": [port_data(port) for port in output_ports(status)],
        "stages": [asdict(stage) for stage in status.stages],
    }
    if status.replanning is not None:
        data["replanning"] = replanning_data(status.replanning)
    return {**data, "source": status.source} if source else data


def replanning_data(status: ReplanStatus) -> dict[str, Any]:
    """How a plan follows the traffic."""
    last = status.last
    return {
        "dry_run": status.dry_run,
        "planned_per_s": status.planned_per_s,
        "measured_per_s": status.measured_per_s,
        "last": None if last is None else {**asdict(last), "at": stamp(last.at), "outcome": last.outcome.value},
    }


def port_data(port: Port) -> dict[str, Any]:
    """A port."""
    data: dict[str, Any] = {
        "name": port.name,
        "type": str(port.type),
        "stream": port.stream,
        "optional": port.optional,
    }
    return {**data, "default": to_json(port.default)} if port.optional else data


def record_data(record: InvocationRecord, tensors: Tensors = Tensors.LIST) -> dict[str, Any]:
    """An invocation; `outputs` is there once it has succeeded, `failure` once it has not."""
    data: dict[str, Any] = {
        "id": record.id,
        "workflow": record.workflow,
        "version": record.version,
        "state": record.state.value,
        "accepted_at": stamp(record.accepted_at),
        "finished_at": None if record.finished_at is None else stamp(record.finished_at),
    }
    if record.outputs is not None:
        data["outputs"] = to_json(dict(record.outputs), tensors)
    if record.failure is not None:
        data["failure"] = failure_data(record.failure)
    return data


def failure_data(failure: Failure) -> dict[str, Any]:
    """A failure."""
    return {**asdict(failure), "code": failure.code.value}
