"""The workflow file, key by key: pydantic models. They say what may be written; `spec.load` says what it means.

The JSON Schema of these models is what editors read, so every field has its description.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from dataflower.spec.function import DTYPES
from dataflower.spec.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size
from dataflower.spec.workflow import API_VERSION


def _milliseconds(value: object) -> float:
    return parse_duration(value, "ms")


def _union(*tags: str) -> Any:
    """Choose the member by whether a string or something else was written, so that errors speak of one of them only."""
    return Discriminator(lambda value: tags[0] if isinstance(value, str) else tags[1])


_DURATION_SCHEMA = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": DURATION_PATTERN}]}
_SIZE_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": SIZE_PATTERN}]}
Seconds = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
Milliseconds = Annotated[float, BeforeValidator(_milliseconds), WithJsonSchema(_DURATION_SCHEMA)]
Bytes = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
Positive = Annotated[Milliseconds, Field(gt=0)]
KindName = Literal["any", "json", "string", "bytes", "int", "float", "bool", "tensor"]
IsolationName = Literal["process", "sandbox"]
StageIsolationName = Literal["process", "sandbox", "shared"]
Reference = Annotated[str, Field(description="`stage.port`, or `stage` if it has one output port")]


class Document(BaseModel):
    """Base: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PortDocument(Document):
    """Type of a port: `{type: string}`, or a tensor `{dtype: UINT8, shape: [H, W, 3]}`."""

    type: KindName | None = Field(None, description="What it carries; `tensor` goes without saying if dtype is given")
    dtype: str | None = Field(
        None,
        description="Element type of a tensor, in the spelling of the Open Inference Protocol or of numpy",
        json_schema_extra={"enum": [*DTYPES, *DTYPES.values(), None]},
    )
    shape: list[Annotated[int, Field(ge=0)] | str] | None = Field(
        None, description="Sizes; a name must have one value throughout a task"
    )
    stream: bool | None = Field(None, description="A sequence of items instead of one value")
    optional: bool | None = Field(None, description="May be left out")
    default: Any = Field(None, description="Value if left out (makes it optional)")


PortEntry = Annotated[
    Annotated[KindName, Tag("<kind>")] | Annotated[PortDocument, Tag("<port>")], _union("<kind>", "<port>")
]


class SourceDocument(Document):
    """How a stage or an output takes the tokens of a port; exactly one key."""

    all: Reference | None = Field(None, description="The value, or the whole stream while it is produced (the default)")
    each: Reference | None = Field(None, description="One task per item of a stream")
    gather: Reference | None = Field(None, description="The items of the innermost fan-out together again, in order")
    keyed: Reference | None = Field(None, description="One task per distinct key of `{key, value}` items")


SourceEntry = Annotated[
    Annotated[Reference, Tag("<text>")] | Annotated[SourceDocument, Tag("<edge>")], _union("<text>", "<edge>")
]


class InputDocument(SourceDocument):
    """Where an input comes from: one of all, each, gather, keyed; or merge with its policy."""

    merge: list[SourceEntry] | None = Field(
        None, description="Several edges into one input, usually branches", min_length=1
    )
    policy: Literal["any", "all", "first"] | None = Field(
        None, description="any: the first to come (the default); all: the list of all; first: the list of the first n"
    )
    n: int | None = Field(None, ge=1, description="How many, for policy first")


InputEntry = Annotated[
    Annotated[Reference, Tag("<text>")] | Annotated[InputDocument, Tag("<edge>")], _union("<text>", "<edge>")
]


class RetryDocument(Document):
    """Attempts after a failure, in the terms of the Amazon States Language."""

    errors: list[str] = Field(
        ["*"], min_length=1, description="Kinds of error: ValueError, Timeout, ContainerCrashed, *"
    )
    max_attempts: int = Field(3, ge=1, description="Attempts in all, the first included")
    interval_s: Seconds = Field(1.0, ge=0, description="Delay before the second attempt")
    backoff_rate: float = Field(2.0, ge=1, description="Factor of the delay from attempt to attempt")
    max_delay_s: Seconds = Field(60.0, ge=0, description="Longest delay")
    jitter: Literal["full", "none"] = Field("full", description="full: uniform between 0 and the delay")


class CatchDocument(Document):
    """What stands in after the last attempt."""

    errors: list[str] = Field(["*"], min_length=1, description="Kinds of error, or *")
    goto: str | None = Field(None, description="Stage that runs instead; it may read `stage.error`")
    output: dict[str, Any] | None = Field(None, description="Constants for the value ports")


class ResourcesDocument(Document):
    """What one container may use."""

    cpu: float = Field(1.0, gt=0, description="Cores, also its number of compute threads")
    memory: Bytes | None = Field(None, gt=0, description="Limit of its memory: 2GiB")
    gpu: Annotated[int, Field(ge=0)] | str = Field(0, description="How many, or which kind: h200")
    gpu_memory: Bytes | None = Field(None, gt=0, description="Memory on the device")
    bandwidth: Bytes | None = Field(None, gt=0, description="Bytes per second that it may send to other hosts: 10MB")
    host: str = Field("", description="Name of the host to run on: one of the server's `peers`, or its own")


class CreditDocument(Document):
    """Back-pressure of the stream outputs: how much may be on its way to a consumer that could take it."""

    items: int = Field(16, ge=1, description="Items")
    bytes: Bytes = Field(256 * 1024 * 1024, ge=1, description="Their size")


class BatchDocument(Document):
    """How tasks are put together for a function that takes several at once (`@function(batch=True)`)."""

    max_size: int | None = Field(None, ge=1, description="Most tasks in a batch (default 8)")
    wait_ms: Milliseconds | None = Field(
        None, ge=0, description="How long a task waits for others while a container is free (default 0)"
    )
    cost: str | None = Field(None, description="Weight of a task: CEL over its inputs, as in `size(text)`")
    max_cost: float | None = Field(None, gt=0, description="Most that a batch may weigh; a heavier task goes alone")
    same_shape: bool | None = Field(None, description="Only tensors of one dtype and shape in a batch (default true)")
    max_batch_size: int | None = Field(
        None, ge=1, description="Same as max_size", json_schema_extra={"deprecated": True}
    )
    batch_wait_timeout_s: Seconds | None = Field(
        None, ge=0, description="Same as wait_ms, in seconds", json_schema_extra={"deprecated": True}
    )
    max_queue_delay_microseconds: float | None = Field(
        None, ge=0, description="Same as wait_ms, in microseconds", json_schema_extra={"deprecated": True}
    )
    max_latency_ms: Milliseconds | None = Field(
        None, ge=0, description="Same as wait_ms", json_schema_extra={"deprecated": True}
    )


BATCH_ALIASES = {
    "max_batch_size": ("max_size", 1.0),
    "batch_wait_timeout_s": ("wait_ms", 1000.0),
    "max_queue_delay_microseconds": ("wait_ms", 0.001),
    "max_latency_ms": ("wait_ms", 1.0),
}
"""Names of other systems, read but never written, and the factor from their unit to ours."""


class ScalingDocument(Document):
    """How many containers, and for how long. Names as in Ray; Modal's are read too."""

    num_replicas: int | None = Field(None, ge=0, description="A fixed number: min_replicas and max_replicas at once")
    min_replicas: int | None = Field(None, ge=0, description="Kept warm (default 0)")
    max_replicas: int | None = Field(None, ge=1, description="Limit (default: as many as the host has cores)")
    max_ongoing_requests: int | None = Field(
        None, ge=1, description="Tasks that one container runs at a time (default 1)"
    )
    max_queued_requests: int | None = Field(None, ge=1, description="Tasks that may wait (default 10000)")
    keep_alive_s: Seconds | None = Field(None, ge=0, description="How long an idle container stays (default 60)")
    min_containers: int | None = Field(
        None, ge=0, description="Same as min_replicas", json_schema_extra={"deprecated": True}
    )
    max_containers: int | None = Field(
        None, ge=1, description="Same as max_replicas", json_schema_extra={"deprecated": True}
    )
    concurrency: int | None = Field(
        None, ge=1, description="Same as max_ongoing_requests", json_schema_extra={"deprecated": True}
    )
    max_inputs: int | None = Field(
        None, ge=1, description="Same as max_ongoing_requests", json_schema_extra={"deprecated": True}
    )
    scaledown_window: Seconds | None = Field(
        None, ge=0, description="Same as keep_alive_s", json_schema_extra={"deprecated": True}
    )


ALIASES = {
    "min_containers": "min_replicas",
    "max_containers": "max_replicas",
    "concurrency": "max_ongoing_requests",
    "max_inputs": "max_ongoing_requests",
    "scaledown_window": "keep_alive_s",
}
"""Names of other systems, read but never written."""


class TuningDocument(ScalingDocument):
    """The keys of a stage that a profile may set: how it runs, not what it does."""

    params: dict[str, Any] | None = Field(None, description="Constants: `setup` parameters, or inputs without an edge")
    model: str | None = Field(None, min_length=1, description="Weights of the stage: `setup` gets it as `model`")
    adapter: str | None = Field(
        None, min_length=1, description="LoRA adapter of the stage: `setup` gets it as `adapter`"
    )
    retry: RetryDocument | None = None
    timeout_s: Seconds | None = Field(None, gt=0, description="Limit of one attempt")
    resources: ResourcesDocument | None = None
    scaling: ScalingDocument | None = None
    credit: CreditDocument | None = None
    batch: BatchDocument | None = None
    preload: list[str] | None = Field(None, description="Modules that the zygote imports before it forks")
    isolation: StageIsolationName | None = Field(
        None,
        description="process, or sandbox (the default where possible); shared: one container for all stages of an owner"
        " that run the same function on the same weights",
    )
    network: bool | None = Field(None, description="Whether a sandboxed container may use the network (default no)")
    start_timeout_s: Seconds | None = Field(None, gt=0, description="Limit of a container's start, `setup` included")


class StageDocument(TuningDocument):
    """A node: exactly one of `function`, `switch` and `workflow`."""

    function: str | None = Field(None, description="`module:name` of a Python function or class")
    switch: dict[str, str] | None = Field(
        None,
        description="Case name -> CEL condition over the inputs; the first true one is taken, `default` is the rest",
    )
    workflow: str | None = Field(None, description="Path of another workflow file, whose stages are put in here")
    inputs: dict[str, InputEntry] = Field(default_factory=dict, description="Where each input comes from")
    types: dict[str, PortEntry] = Field(default_factory=dict, description="Input types, on top of the function's own")
    outputs: dict[str, PortEntry] | None = Field(None, description="Output ports, on top of the function's own")
    when: str | list[str] | None = Field(None, description="`switch.case` (all of them) without which it is skipped")
    catch: list[CatchDocument] = Field(default_factory=list, description="Fallbacks; the first that matches applies")


class SloDocument(Document):
    """The promise."""

    e2e_ms: Positive | None = Field(None, description="From arrival to the last result")
    ttft_ms: Positive | None = Field(None, description="To the first token")
    itl_ms: Positive | None = Field(None, description="Between tokens")
    tpot_ms: Positive | None = Field(None, description="Per token after the first, on average")
    percentile: float = Field(99.0, gt=0, le=100, description="Which percentile the limits are about")
    attainment: float = Field(0.99, gt=0, le=1, description="Share of invocations that keep it")


class MetadataDocument(Document):
    """Who it is."""

    name: str = Field(description="Name under which it is invoked")
    description: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    owner: str | None = Field(
        None, description="Whose it is: stages with `isolation: shared` share with those of the same owner only"
    )


class ProfileDocument(Document):
    """Settings for one kind of machine, laid over the file by `--profile NAME`."""

    slo: SloDocument | None = None
    deadline_s: Seconds | None = Field(None, gt=0)
    stages: dict[str, TuningDocument] = Field(default_factory=dict)


class WorkflowDocument(Document):
    """A dataflower workflow."""

    api_version: Literal["dataflower/v1"] = Field(alias="apiVersion", description=f"Always {API_VERSION}")
    kind: Literal["Workflow"] = Field(description="Always Workflow")
    metadata: MetadataDocument
    slo: SloDocument | None = None
    deadline_s: Seconds | None = Field(None, gt=0, description="Limit of a whole invocation")
    isolation: IsolationName | None = Field(None, description="Of all stages that don't say otherwise")
    inputs: dict[str, PortEntry] = Field(default_factory=dict, description="What the caller passes in")
    stages: dict[str, StageDocument] = Field(description="The nodes", min_length=1)
    outputs: dict[str, SourceEntry] = Field(default_factory=dict, description="What the caller gets")
    profiles: dict[str, ProfileDocument] = Field(default_factory=dict, description="Settings by kind of machine")
