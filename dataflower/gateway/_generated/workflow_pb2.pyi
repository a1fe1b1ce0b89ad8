import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NullValue(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NULL_VALUE_UNSPECIFIED: _ClassVar[NullValue]

class PortKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PORT_KIND_UNSPECIFIED: _ClassVar[PortKind]
    PORT_KIND_ANY: _ClassVar[PortKind]
    PORT_KIND_JSON: _ClassVar[PortKind]
    PORT_KIND_STRING: _ClassVar[PortKind]
    PORT_KIND_BYTES: _ClassVar[PortKind]
    PORT_KIND_INT: _ClassVar[PortKind]
    PORT_KIND_FLOAT: _ClassVar[PortKind]
    PORT_KIND_BOOL: _ClassVar[PortKind]
    PORT_KIND_TENSOR: _ClassVar[PortKind]

class ReplanOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLAN_OUTCOME_UNSPECIFIED: _ClassVar[ReplanOutcome]
    REPLAN_OUTCOME_PLANNING: _ClassVar[ReplanOutcome]
    REPLAN_OUTCOME_APPLIED: _ClassVar[ReplanOutcome]
    REPLAN_OUTCOME_DRY_RUN: _ClassVar[ReplanOutcome]
    REPLAN_OUTCOME_REFUSED: _ClassVar[ReplanOutcome]
    REPLAN_OUTCOME_FAILED: _ClassVar[ReplanOutcome]

class InvocationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INVOCATION_STATE_UNSPECIFIED: _ClassVar[InvocationState]
    INVOCATION_STATE_RUNNING: _ClassVar[InvocationState]
    INVOCATION_STATE_SUCCEEDED: _ClassVar[InvocationState]
    INVOCATION_STATE_FAILED: _ClassVar[InvocationState]
    INVOCATION_STATE_CANCELLED: _ClassVar[InvocationState]
NULL_VALUE_UNSPECIFIED: NullValue
PORT_KIND_UNSPECIFIED: PortKind
PORT_KIND_ANY: PortKind
PORT_KIND_JSON: PortKind
PORT_KIND_STRING: PortKind
PORT_KIND_BYTES: PortKind
PORT_KIND_INT: PortKind
PORT_KIND_FLOAT: PortKind
PORT_KIND_BOOL: PortKind
PORT_KIND_TENSOR: PortKind
REPLAN_OUTCOME_UNSPECIFIED: ReplanOutcome
REPLAN_OUTCOME_PLANNING: ReplanOutcome
REPLAN_OUTCOME_APPLIED: ReplanOutcome
REPLAN_OUTCOME_DRY_RUN: ReplanOutcome
REPLAN_OUTCOME_REFUSED: ReplanOutcome
REPLAN_OUTCOME_FAILED: ReplanOutcome
INVOCATION_STATE_UNSPECIFIED: InvocationState
INVOCATION_STATE_RUNNING: InvocationState
INVOCATION_STATE_SUCCEEDED: InvocationState
INVOCATION_STATE_FAILED: InvocationState
INVOCATION_STATE_CANCELLED: InvocationState

class Value(_message.Message):
    __slots__ = ("null", "boolean", "integer", "real", "text", "binary", "tensor", "list", "map")
    NULL_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    null: NullValue
    boolean: bool
    integer: int
    real: float
    text: str
    binary: bytes
    tensor: Tensor
    list: ListValue
    map: MapValue
    def __init__(self, null: _Optional[_Union[NullValue, str]] = ..., boolean: _Optional[bool] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., text: _Optional[str] = ..., binary: _Optional[bytes] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., list: _Optional[_Union[ListValue, _Mapping]] = ..., map: _Optional[_Union[MapValue, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("datatype", "shape", "data")
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ListValue(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class MapEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: Value
    def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class MapValue(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[MapEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[MapEntry, _Mapping]]] = ...) -> None: ...

class Dimension(_message.Message):
    __slots__ = ("fixed", "named")
    FIXED_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    fixed: int
    named: str
    def __init__(self, fixed: _Optional[int] = ..., named: _Optional[str] = ...) -> None: ...

class TensorShape(_message.Message):
    __slots__ = ("dimensions",)
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    dimensions: _containers.RepeatedCompositeFieldContainer[Dimension]
    def __init__(self, dimensions: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ...) -> None: ...

class Port(_message.Message):
    __slots__ = ("name", "kind", "datatype", "shape", "stream", "optional", "default_value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: PortKind
    datatype: str
    shape: TensorShape
    stream: bool
    optional: bool
    default_value: Value
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[PortKind, str]] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Union[TensorShape, _Mapping]] = ..., stream: _Optional[bool] = ..., optional: _Optional[bool] = ..., default_value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("stage", "starting", "idle", "busy", "queued", "done", "pool", "shares", "run_over_plan", "is_slow")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    RUN_OVER_PLAN_FIELD_NUMBER: _ClassVar[int]
    IS_SLOW_FIELD_NUMBER: _ClassVar[int]
    stage: str
    starting: int
    idle: int
    busy: int
    queued: int
    done: int
    pool: str
    shares: _containers.RepeatedScalarFieldContainer[str]
    run_over_plan: float
    is_slow: bool
    def __init__(self, stage: _Optional[str] = ..., starting: _Optional[int] = ..., idle: _Optional[int] = ..., busy: _Optional[int] = ..., queued: _Optional[int] = ..., done: _Optional[int] = ..., pool: _Optional[str] = ..., shares: _Optional[_Iterable[str]] = ..., run_over_plan: _Optional[float] = ..., is_slow: _Optional[bool] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("e2e_ms", "ttft_ms", "itl_ms", "tpot_ms", "percentile", "attainment")
    E2E_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    ITL_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ATTAINMENT_FIELD_NUMBER: _ClassVar[int]
    e2e_ms: float
    ttft_ms: float
    itl_ms: float
    tpot_ms: float
    percentile: float
    attainment: float
    def __init__(self, e2e_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., itl_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., percentile: _Optional[float] = ..., attainment: _Optional[float] = ...) -> None: ...

class Workflow(_message.Message):
    __slots__ = ("name", "version", "description", "labels", "inputs", "outputs", "applied_at", "stages", "running", "source", "slo", "plan", "replanning")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_AT_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REPLANNING_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    description: str
    labels: _containers.ScalarMap[str, str]
    inputs: _containers.RepeatedCompositeFieldContainer[Port]
    outputs: _containers.RepeatedCompositeFieldContainer[Port]
    applied_at: _timestamp_pb2.Timestamp
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    running: int
    source: str
    slo: Slo
    plan: str
    replanning: Replanning
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., description: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., inputs: _Optional[_Iterable[_Union[Port, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Port, _Mapping]]] = ..., applied_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., running: _Optional[int] = ..., source: _Optional[str] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., plan: _Optional[str] = ..., replanning: _Optional[_Union[Replanning, _Mapping]] = ...) -> None: ...

class Replanning(_message.Message):
    __slots__ = ("dry_run", "planned_per_s", "measured_per_s", "last")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    PLANNED_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_PER_S_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    planned_per_s: float
    measured_per_s: float
    last: ReplanDecision
    def __init__(self, dry_run: _Optional[bool] = ..., planned_per_s: _Optional[float] = ..., measured_per_s: _Optional[float] = ..., last: _Optional[_Union[ReplanDecision, _Mapping]] = ...) -> None: ...

class ReplanDecision(_message.Message):
    __slots__ = ("decided_at", "rate_per_s", "measured_per_s", "reason", "outcome", "note")
    DECIDED_AT_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_PER_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    decided_at: _timestamp_pb2.Timestamp
    rate_per_s: float
    measured_per_s: float
    reason: str
    outcome: ReplanOutcome
    note: str
    def __init__(self, decided_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rate_per_s: _Optional[float] = ..., measured_per_s: _Optional[float] = ..., reason: _Optional[str] = ..., outcome: _Optional[_Union[ReplanOutcome, str]] = ..., note: _Optional[str] = ...) -> None: ...

class ApplyWorkflowRequest(_message.Message):
    __slots__ = ("source", "file_name", "expected_version", "plan", "plan_file_name")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    source: str
    file_name: str
    expected_version: int
    plan: str
    plan_file_name: str
    def __init__(self, source: _Optional[str] = ..., file_name: _Optional[str] = ..., expected_version: _Optional[int] = ..., plan: _Optional[str] = ..., plan_file_name: _Optional[str] = ...) -> None: ...

class ApplyWorkflowResponse(_message.Message):
    __slots__ = ("workflow",)
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    workflow: Workflow
    def __init__(self, workflow: _Optional[_Union[Workflow, _Mapping]] = ...) -> None: ...

class ListWorkflowsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkflowsResponse(_message.Message):
    __slots__ = ("workflows",)
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    workflows: _containers.RepeatedCompositeFieldContainer[Workflow]
    def __init__(self, workflows: _Optional[_Iterable[_Union[Workflow, _Mapping]]] = ...) -> None: ...

class GetWorkflowRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetWorkflowResponse(_message.Message):
    __slots__ = ("workflow",)
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    workflow: Workflow
    def __init__(self, workflow: _Optional[_Union[Workflow, _Mapping]] = ...) -> None: ...

class DeleteWorkflowRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteWorkflowResponse(_message.Message):
    __slots__ = ("running",)
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    running: int
    def __init__(self, running: _Optional[int] = ...) -> None: ...

class InvokeRequest(_message.Message):
    __slots__ = ("workflow", "inputs", "request_id")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    inputs: _containers.MessageMap[str, Value]
    request_id: str
    def __init__(self, workflow: _Optional[str] = ..., inputs: _Optional[_Mapping[str, Value]] = ..., request_id: _Optional[str] = ...) -> None: ...

class InvokeResponse(_message.Message):
    __slots__ = ("invocation_id", "outputs")
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    outputs: _containers.MessageMap[str, Value]
    def __init__(self, invocation_id: _Optional[str] = ..., outputs: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class OpenInvocation(_message.Message):
    __slots__ = ("workflow", "inputs", "request_id", "open_inputs")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OPEN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    inputs: _containers.MessageMap[str, Value]
    request_id: str
    open_inputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workflow: _Optional[str] = ..., inputs: _Optional[_Mapping[str, Value]] = ..., request_id: _Optional[str] = ..., open_inputs: _Optional[_Iterable[str]] = ...) -> None: ...

class InputItem(_message.Message):
    __slots__ = ("port", "value")
    PORT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    port: str
    value: Value
    def __init__(self, port: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class InputEnd(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: str
    def __init__(self, port: _Optional[str] = ...) -> None: ...

class InvokeStreamRequest(_message.Message):
    __slots__ = ("open", "item", "end")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    open: OpenInvocation
    item: InputItem
    end: InputEnd
    def __init__(self, open: _Optional[_Union[OpenInvocation, _Mapping]] = ..., item: _Optional[_Union[InputItem, _Mapping]] = ..., end: _Optional[_Union[InputEnd, _Mapping]] = ...) -> None: ...

class InvocationStarted(_message.Message):
    __slots__ = ("invocation_id",)
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    def __init__(self, invocation_id: _Optional[str] = ...) -> None: ...

class OutputItem(_message.Message):
    __slots__ = ("port", "index", "value")
    PORT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    port: str
    index: int
    value: Value
    def __init__(self, port: _Optional[str] = ..., index: _Optional[int] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class InvocationSummary(_message.Message):
    __slots__ = ("invocation_id", "items", "elapsed", "first_output")
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    FIRST_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    items: int
    elapsed: _duration_pb2.Duration
    first_output: _duration_pb2.Duration
    def __init__(self, invocation_id: _Optional[str] = ..., items: _Optional[int] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_output: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class InvokeStreamResponse(_message.Message):
    __slots__ = ("started", "item", "summary")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    started: InvocationStarted
    item: OutputItem
    summary: InvocationSummary
    def __init__(self, started: _Optional[_Union[InvocationStarted, _Mapping]] = ..., item: _Optional[_Union[OutputItem, _Mapping]] = ..., summary: _Optional[_Union[InvocationSummary, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("workflow", "inputs", "request_id", "deadline")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    inputs: _containers.MessageMap[str, Value]
    request_id: str
    deadline: _duration_pb2.Duration
    def __init__(self, workflow: _Optional[str] = ..., inputs: _Optional[_Mapping[str, Value]] = ..., request_id: _Optional[str] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("invocation",)
    INVOCATION_FIELD_NUMBER: _ClassVar[int]
    invocation: Invocation
    def __init__(self, invocation: _Optional[_Union[Invocation, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "kind", "message", "stage", "attempt", "traceback", "retry_after")
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    code: int
    kind: str
    message: str
    stage: str
    attempt: int
    traceback: str
    retry_after: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., stage: _Optional[str] = ..., attempt: _Optional[int] = ..., traceback: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Outputs(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.MessageMap[str, Value]
    def __init__(self, values: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Invocation(_message.Message):
    __slots__ = ("id", "workflow", "version", "state", "accepted_at", "finished_at", "failure", "outputs")
    ID_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    workflow: str
    version: int
    state: InvocationState
    accepted_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    failure: Failure
    outputs: Outputs
    def __init__(self, id: _Optional[str] = ..., workflow: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[InvocationState, str]] = ..., accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ...) -> None: ...

class GetInvocationRequest(_message.Message):
    __slots__ = ("invocation_id",)
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    def __init__(self, invocation_id: _Optional[str] = ...) -> None: ...

class GetInvocationResponse(_message.Message):
    __slots__ = ("invocation",)
    INVOCATION_FIELD_NUMBER: _ClassVar[int]
    invocation: Invocation
    def __init__(self, invocation: _Optional[_Union[Invocation, _Mapping]] = ...) -> None: ...

class WatchInvocationRequest(_message.Message):
    __slots__ = ("invocation_id",)
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    def __init__(self, invocation_id: _Optional[str] = ...) -> None: ...

class WatchInvocationResponse(_message.Message):
    __slots__ = ("invocation",)
    INVOCATION_FIELD_NUMBER: _ClassVar[int]
    invocation: Invocation
    def __init__(self, invocation: _Optional[_Union[Invocation, _Mapping]] = ...) -> None: ...

class CancelInvocationRequest(_message.Message):
    __slots__ = ("invocation_id",)
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    def __init__(self, invocation_id: _Optional[str] = ...) -> None: ...

class CancelInvocationResponse(_message.Message):
    __slots__ = ("invocation",)
    INVOCATION_FIELD_NUMBER: _ClassVar[int]
    invocation: Invocation
    def __init__(self, invocation: _Optional[_Union[Invocation, _Mapping]] = ...) -> None: ...

class ListInvocationsRequest(_message.Message):
    __slots__ = ("workflow", "limit")
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    limit: int
    def __init__(self, workflow: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListInvocationsResponse(_message.Message):
    __slots__ = ("invocations",)
    INVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    invocations: _containers.RepeatedCompositeFieldContainer[Invocation]
    def __init__(self, invocations: _Optional[_Iterable[_Union[Invocation, _Mapping]]] = ...) -> None: ...

class TaskTrace(_message.Message):
    __slots__ = ("stage", "tag", "attempt", "container", "queued_s", "dispatched_s", "fetched_s", "started_s", "first_output_s", "ended_s", "sent_s", "items", "cold", "error", "batch", "batch_wait_s", "start", "last_output_s")
    class StartEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    DISPATCHED_S_FIELD_NUMBER: _ClassVar[int]
    FETCHED_S_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_OUTPUT_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_S_FIELD_NUMBER: _ClassVar[int]
    SENT_S_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    COLD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LAST_OUTPUT_S_FIELD_NUMBER: _ClassVar[int]
    stage: str
    tag: _containers.RepeatedScalarFieldContainer[int]
    attempt: int
    container: int
    queued_s: float
    dispatched_s: float
    fetched_s: float
    started_s: float
    first_output_s: float
    ended_s: float
    sent_s: float
    items: int
    cold: bool
    error: str
    batch: int
    batch_wait_s: float
    start: _containers.ScalarMap[str, float]
    last_output_s: float
    def __init__(self, stage: _Optional[str] = ..., tag: _Optional[_Iterable[int]] = ..., attempt: _Optional[int] = ..., container: _Optional[int] = ..., queued_s: _Optional[float] = ..., dispatched_s: _Optional[float] = ..., fetched_s: _Optional[float] = ..., started_s: _Optional[float] = ..., first_output_s: _Optional[float] = ..., ended_s: _Optional[float] = ..., sent_s: _Optional[float] = ..., items: _Optional[int] = ..., cold: _Optional[bool] = ..., error: _Optional[str] = ..., batch: _Optional[int] = ..., batch_wait_s: _Optional[float] = ..., start: _Optional[_Mapping[str, float]] = ..., last_output_s: _Optional[float] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("invocation_id", "key", "arrived_s", "first_output_s", "finished_s", "deadline_s", "tasks", "dropped")
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_OUTPUT_S_FIELD_NUMBER: _ClassVar[int]
    FINISHED_S_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    key: str
    arrived_s: float
    first_output_s: float
    finished_s: float
    deadline_s: float
    tasks: _containers.RepeatedCompositeFieldContainer[TaskTrace]
    dropped: int
    def __init__(self, invocation_id: _Optional[str] = ..., key: _Optional[str] = ..., arrived_s: _Optional[float] = ..., first_output_s: _Optional[float] = ..., finished_s: _Optional[float] = ..., deadline_s: _Optional[float] = ..., tasks: _Optional[_Iterable[_Union[TaskTrace, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class GetTraceRequest(_message.Message):
    __slots__ = ("invocation_id",)
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    def __init__(self, invocation_id: _Optional[str] = ...) -> None: ...

class GetTraceResponse(_message.Message):
    __slots__ = ("trace",)
    TRACE_FIELD_NUMBER: _ClassVar[int]
    trace: Trace
    def __init__(self, trace: _Optional[_Union[Trace, _Mapping]] = ...) -> None: ...

class ServerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerStatusResponse(_message.Message):
    __slots__ = ("version", "started_at", "workflows", "max_message_bytes", "log_dir", "peers", "preloaded", "weights", "devices")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_DIR_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PRELOADED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    version: str
    started_at: _timestamp_pb2.Timestamp
    workflows: _containers.RepeatedCompositeFieldContainer[Workflow]
    max_message_bytes: int
    log_dir: str
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    preloaded: _containers.RepeatedCompositeFieldContainer[PreloadedArtifact]
    weights: WeightStore
    devices: _containers.RepeatedCompositeFieldContainer[SharedDevice]
    def __init__(self, version: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., workflows: _Optional[_Iterable[_Union[Workflow, _Mapping]]] = ..., max_message_bytes: _Optional[int] = ..., log_dir: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., preloaded: _Optional[_Iterable[_Union[PreloadedArtifact, _Mapping]]] = ..., weights: _Optional[_Union[WeightStore, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[SharedDevice, _Mapping]]] = ...) -> None: ...

class SharedDevice(_message.Message):
    __slots__ = ("name", "running", "slots", "batches", "sharers", "cap_bytes", "used_bytes", "offloaded")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    SHARERS_FIELD_NUMBER: _ClassVar[int]
    CAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFLOADED_FIELD_NUMBER: _ClassVar[int]
    name: str
    running: int
    slots: int
    batches: int
    sharers: _containers.RepeatedCompositeFieldContainer[DeviceSharer]
    cap_bytes: int
    used_bytes: int
    offloaded: int
    def __init__(self, name: _Optional[str] = ..., running: _Optional[int] = ..., slots: _Optional[int] = ..., batches: _Optional[int] = ..., sharers: _Optional[_Iterable[_Union[DeviceSharer, _Mapping]]] = ..., cap_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., offloaded: _Optional[int] = ...) -> None: ...

class DeviceSharer(_message.Message):
    __slots__ = ("workflow", "stage", "waiting", "objective", "first", "more", "window_size", "window_wait")
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SIZE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_WAIT_FIELD_NUMBER: _ClassVar[int]
    workflow: str
    stage: str
    waiting: int
    objective: _duration_pb2.Duration
    first: _duration_pb2.Duration
    more: _duration_pb2.Duration
    window_size: int
    window_wait: _duration_pb2.Duration
    def __init__(self, workflow: _Optional[str] = ..., stage: _Optional[str] = ..., waiting: _Optional[int] = ..., objective: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., more: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., window_size: _Optional[int] = ..., window_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WeightStore(_message.Message):
    __slots__ = ("cap_bytes", "held_bytes", "free_bytes", "loads", "hits", "models", "rates")
    CAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    cap_bytes: int
    held_bytes: int
    free_bytes: int
    loads: int
    hits: int
    models: _containers.RepeatedCompositeFieldContainer[HeldModel]
    rates: _containers.RepeatedCompositeFieldContainer[LoadRate]
    def __init__(self, cap_bytes: _Optional[int] = ..., held_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., loads: _Optional[int] = ..., hits: _Optional[int] = ..., models: _Optional[_Iterable[_Union[HeldModel, _Mapping]]] = ..., rates: _Optional[_Iterable[_Union[LoadRate, _Mapping]]] = ...) -> None: ...

class HeldModel(_message.Message):
    __slots__ = ("name", "digest", "bytes", "clients", "ready", "held")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    bytes: int
    clients: int
    ready: bool
    held: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., bytes: _Optional[int] = ..., clients: _Optional[int] = ..., ready: _Optional[bool] = ..., held: _Optional[bool] = ...) -> None: ...

class LoadRate(_message.Message):
    __slots__ = ("source", "bandwidth", "queued_bytes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    source: str
    bandwidth: float
    queued_bytes: int
    def __init__(self, source: _Optional[str] = ..., bandwidth: _Optional[float] = ..., queued_bytes: _Optional[int] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("name", "address", "state", "reason", "containers", "bytes_out", "bytes_in")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    state: str
    reason: str
    containers: int
    bytes_out: int
    bytes_in: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., containers: _Optional[int] = ..., bytes_out: _Optional[int] = ..., bytes_in: _Optional[int] = ...) -> None: ...

class PreloadedArtifact(_message.Message):
    __slots__ = ("name", "kind", "nbytes", "saved", "value", "held", "ready", "users")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    nbytes: int
    saved: _duration_pb2.Duration
    value: float
    held: bool
    ready: bool
    users: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., nbytes: _Optional[int] = ..., saved: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., value: _Optional[float] = ..., held: _Optional[bool] = ..., ready: _Optional[bool] = ..., users: _Optional[_Iterable[str]] = ...) -> None: ...
