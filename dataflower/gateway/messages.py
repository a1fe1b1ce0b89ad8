"""Records of the host <-> messages of the public API, for server and client alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.errors import Failure
from dataflower.gateway import values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway.status import code_number, code_of
from dataflower.gateway.times import seconds_of, set_time
from dataflower.host.api import (
    InvocationRecord,
    ReplanDecision,
    ReplanOutcome,
    ReplanStatus,
    StageStatus,
    State,
    WorkflowStatus,
)
from dataflower.spec.function import Kind, Port, PortType
from dataflower.spec.workflow import Slo

_STATES = {
    State.RUNNING: pb.INVOCATION_STATE_RUNNING,
    State.SUCCEEDED: pb.INVOCATION_STATE_SUCCEEDED,
    State.FAILED: pb.INVOCATION_STATE_FAILED,
    State.CANCELLED: pb.INVOCATION_STATE_CANCELLED,
}
_STATE_OF = {number: state for state, number in _STATES.items()}
_OUTCOMES: dict[ReplanOutcome, Any] = {
    outcome: pb.ReplanOutcome.Value(f"REPLAN_OUTCOME_{outcome.name}") for outcome in ReplanOutcome
}
_OUTCOME_OF = {number: outcome for outcome, number in _OUTCOMES.items()}
_KINDS: dict[Kind, Any] = {kind: pb.PortKind.Value(f"PORT_KIND_{kind.name}") for kind in Kind}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class WorkflowInfo:
    """A workflow as a server shows it. `applied_at`: wall-clock seconds. `source` is empty in lists."""

    name: str
    version: int
    applied_at: float
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    stages: tuple[StageStatus, ...] = ()
    running: int = 0
    source: str = ""
    slo: Slo | None = None
    plan: str = ""
    replanning: ReplanStatus | None = None


def encode_port(port: Port, into: pb.Port) -> None:
    """Write a port."""
    into.name = port.name
    into.kind = _KINDS[port.type.kind]
    into.datatype = port.type.dtype
    if port.type.shape is not None:
        into.shape.SetInParent()
        for size in port.type.shape:
            dimension = into.shape.dimensions.add()
            if isinstance(size, int):
                dimension.fixed = size
            else:
                dimension.named = size
    into.stream = port.stream
    into.optional = port.optional
    if port.optional:
        values.encode(port.default, into.default_value)


def decode_port(message: pb.Port) -> Port:
    """Read a port."""
    shape = None
    if message.HasField("shape"):
        shape = tuple(d.fixed if d.HasField("fixed") else d.named for d in message.shape.dimensions)
    return Port(
        name=message.name,
        type=PortType(_KIND_OF.get(message.kind, Kind.ANY), message.datatype, shape),
        stream=message.stream,
        optional=message.optional,
        default=values.decode(message.default_value) if message.HasField("default_value") else None,
    )


def output_ports(status: WorkflowStatus) -> tuple[Port, ...]:
    """A workflow's outputs as ports, each under the output's own name; untyped if nothing is known of it."""
    ports = []
    for output in status.workflow.outputs:
        known = output.type_ or Port(output.name)
        ports.append(Port(output.name, known.type, stream=known.stream))
    return tuple(ports)


def encode_workflow(status: WorkflowStatus, into: pb.Workflow, *, source: bool) -> None:
    """Write a workflow; `source`: with its YAML."""
    into.name = status.name
    into.version = status.version
    into.description = status.workflow.description
    into.labels.update(status.workflow.labels)
    for port in status.workflow.inputs:
        encode_port(port, into.inputs.add())
    for port in output_ports(status):
        encode_port(port, into.outputs.add())
    set_time(into.applied_at, status.applied_at)
    for stage in status.stages:
        into.stages.add(
            stage=stage.stage,
            starting=stage.starting,
            idle=stage.idle,
            busy=stage.busy,
            queued=stage.queued,
            done=stage.done,
            pool=stage.pool,
            shares=stage.shares,
            run_over_plan=stage.run_over_plan,
            is_slow=stage.is_slow,
        )
    into.running = status.running
    if status.workflow.slo is not None:
        into.slo.SetInParent()
        for name, value in asdict(status.workflow.slo).items():
            if value is not None:
                setattr(into.slo, name, value)
    if source:
        into.source = status.source
        into.plan = status.plan
    if status.replanning is not None:
        encode_replanning(status.replanning, into.replanning)


def encode_replanning(status: ReplanStatus, into: pb.Replanning) -> None:
    """Write how a plan follows the traffic."""
    into.dry_run = status.dry_run
    into.planned_per_s = status.planned_per_s
    if status.measured_per_s is not None:
        into.measured_per_s = status.measured_per_s
    if status.last is not None:
        set_time(into.last.decided_at, status.last.at)
        into.last.rate_per_s = status.last.rate_per_s
        into.last.measured_per_s = status.last.measured_per_s
        into.last.reason = status.last.reason
        into.last.outcome = _OUTCOMES[status.last.outcome]
        into.last.note = status.last.note


def decode_replanning(message: pb.Replanning) -> ReplanStatus:
    """Read how a plan follows the traffic."""
    last = message.last
    return ReplanStatus(
        dry_run=message.dry_run,
        planned_per_s=message.planned_per_s,
        measured_per_s=message.measured_per_s if message.HasField("measured_per_s") else None,
        last=ReplanDecision(
            at=seconds_of(last.decided_at),
            rate_per_s=last.rate_per_s,
            measured_per_s=last.measured_per_s,
            reason=last.reason,
            outcome=_OUTCOME_OF.get(last.outcome, ReplanOutcome.FAILED),
            note=last.note,
        )
        if message.HasField("last")
        else None,
    )


def decode_workflow(message: pb.Workflow) -> WorkflowInfo:
    """Read a workflow."""
    return WorkflowInfo(
        name=message.name,
        version=message.version,
        applied_at=seconds_of(message.applied_at),
        description=message.description,
        labels=dict(message.labels),
        inputs=tuple(decode_port(p) for p in message.inputs),
        outputs=tuple(decode_port(p) for p in message.outputs),
        stages=tuple(_stage_status(stage) for stage in message.stages),
        running=message.running,
        source=message.source,
        slo=decode_slo(message.slo) if message.HasField("slo") else None,
        plan=message.plan,
        replanning=decode_replanning(message.replanning) if message.HasField("replanning") else None,
    )


def _stage_status(message: pb.StageStatus) -> StageStatus:
    return StageStatus(
        message.stage,
        message.starting,
        message.idle,
        message.busy,
        message.queued,
        message.done,
        message.pool,
        tuple(message.shares),
        message.run_over_plan if message.HasField("run_over_plan") else None,
        message.is_slow,
    )


def decode_slo(message: pb.Slo) -> Slo:
    """Read a promise."""
    limits = {field.name: value for field, value in message.ListFields()}
    return Slo(**limits)


def encode_failure(failure: Failure, into: pb.Failure) -> None:
    """Write a failure."""
    into.code = code_number(failure.code)
    into.kind = failure.kind
    into.message = failure.message
    into.stage = failure.stage
    into.attempt = failure.attempt
    into.traceback = failure.traceback
    if failure.retry_after_s is not None:
        set_time(into.retry_after, failure.retry_after_s)


def decode_failure(message: pb.Failure) -> Failure:
    """Read a failure."""
    return Failure(
        code=code_of(message.code),
        kind=message.kind,
        message=message.message,
        stage=message.stage,
        attempt=message.attempt,
        traceback=message.traceback,
        retry_after_s=seconds_of(message.retry_after) if message.HasField("retry_after") else None,
    )


def encode_record(record: InvocationRecord, into: pb.Invocation) -> None:
    """Write an invocation, without its trace."""
    into.id = record.id
    into.workflow = record.workflow
    into.version = record.version
    into.state = _STATES[record.state]
    set_time(into.accepted_at, record.accepted_at)
    if record.finished_at is not None:
        set_time(into.finished_at, record.finished_at)
    if record.failure is not None:
        encode_failure(record.failure, into.failure)
    if record.outputs is not None:
        into.outputs.SetInParent()
        values.encode_map(record.outputs, into.outputs.values)


def decode_record(message: pb.Invocation) -> InvocationRecord:
    """Read an invocation."""
    return InvocationRecord(
        id=message.id,
        workflow=message.workflow,
        version=message.version,
        state=_STATE_OF[message.state],
        accepted_at=seconds_of(message.accepted_at),
        finished_at=seconds_of(message.finished_at) if message.HasField("finished_at") else None,
        failure=decode_failure(message.failure) if message.HasField("failure") else None,
        outputs=values.decode_map(message.outputs.values) if message.HasField("outputs") else None,
    )


def encode_trace(trace: InvocationTrace, into: pb.Trace) -> None:
    """Write record points."""
    into.invocation_id = trace.invocation
    into.key = trace.key
    into.arrived_s = trace.arrived
    into.first_output_s = trace.first_output
    into.finished_s = trace.finished
    into.deadline_s = trace.deadline
    into.dropped = trace.dropped
    for task in trace.tasks:
        into.tasks.add(
            stage=task.stage,
            tag=task.tag,
            attempt=task.attempt,
            container=task.container,
            queued_s=task.queued,
            dispatched_s=task.dispatched,
            fetched_s=task.fetched,
            started_s=task.started,
            first_output_s=task.first_output,
            ended_s=task.ended,
            sent_s=task.sent,
            items=task.items,
            cold=task.cold,
            error=task.error,
            batch=task.batch,
            batch_wait_s=task.batch_wait_s,
            start=task.start,
            last_output_s=task.last_output,
        )


def decode_trace(message: pb.Trace) -> InvocationTrace:
    """Read record points; times are of the server's monotonic clock."""
    tasks = [
        TaskTrace(
            stage=task.stage,
            tag=tuple(task.tag),
            attempt=task.attempt,
            container=task.container,
            queued=task.queued_s,
            dispatched=task.dispatched_s,
            fetched=task.fetched_s,
            started=task.started_s,
            first_output=task.first_output_s,
            ended=task.ended_s,
            sent=task.sent_s,
            items=task.items,
            cold=task.cold,
            error=task.error,
            batch=task.batch,
            batch_wait_s=task.batch_wait_s,
            start=dict(task.start),
            last_output=task.last_output_s,
        )
        for task in message.tasks
    ]
    return InvocationTrace(
        invocation=message.invocation_id,
        key=message.key,
        arrived=message.arrived_s,
        finished=message.finished_s,
        first_output=message.first_output_s,
        deadline=message.deadline_s,
        tasks=tasks,
        dropped=message.dropped,
    )
