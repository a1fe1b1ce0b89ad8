"""What a workflow is: frozen data, checked by `spec.check`, read and written by `spec.load` and `spec.dump`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflower.spec.function import Port

API_VERSION = "dataflower/v1"
INPUTS = "inputs"
"""The pseudo-stage whose ports are the workflow's inputs: `inputs.video`."""
ERROR_PORT = "error"
"""Port of a stage with `catch` that carries `{kind, message, stage, attempt}` after a caught failure."""


class Fanout(enum.Enum):
    """How a consumer takes the tokens of the port that it reads.

    ALL      the value; of a stream port, the stream itself, item by item as it is produced
    EACH     one task per item
    KEYED    one task per distinct key of the items `{"key": ..., "value": ...}`, with the list of their values
    GATHER   the items of the innermost fan-out put together again, in order
    """

    ALL = "all"
    EACH = "each"
    KEYED = "keyed"
    GATHER = "gather"


class Merge(enum.Enum):
    """What becomes of an input that several edges feed; absent tokens never count.

    ALL: the list of all that came, in the order of the edges. ANY: the first to come. FIRST: the list of the first n.
    """

    ALL = "all"
    ANY = "any"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class PortRef:
    """`stage.port`."""

    stage: str
    port: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.port}"


@dataclass(frozen=True, slots=True)
class Edge:
    """From a port, in one of four ways."""

    source: PortRef
    fanout: Fanout = Fanout.ALL


@dataclass(frozen=True, slots=True)
class Input:
    """A named input of a stage and the edges that feed it (more than one only with a merge policy)."""

    name: str
    edges: tuple[Edge, ...]
    merge: Merge | None = None
    first: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A branch of a switch: taken if `when` (CEL over the stage's inputs) is true; None is the default branch."""

    name: str
    when: str | None


@dataclass(frozen=True, slots=True)
class CaseRef:
    """`stage.case`: a stage with `when: route.urgent` runs only where the switch `route` chose `urgent`."""

    stage: str
    case: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.case}"


@dataclass(frozen=True, slots=True)
class Retry:
    """Amazon States Language's terms. `errors` are kinds (`ValueError`, `Timeout`, `ContainerCrashed`) or `*`."""

    errors: tuple[str, ...] = ("*",)
    max_attempts: int = 3
    interval_s: float = 1.0
    backoff_rate: float = 2.0
    max_delay_s: float = 60.0
    jitter: str = "full"
    """`full`: uniform between 0 and the delay; `none`: the delay itself."""


@dataclass(frozen=True, slots=True)
class Catch:
    """After the last attempt: either `output` (port -> constant) stands in, or the stage `goto` runs instead."""

    errors: tuple[str, ...] = ("*",)
    goto: str | None = None
    output: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What one container may use. `cpu` in cores (also its number of compute threads), memory in bytes."""

    cpu: float = 1.0
    memory_bytes: int | None = None
    gpu: str | int = 0
    gpu_memory_bytes: int | None = None
    bandwidth: float | None = None
    """Bytes per second that the container may send to other hosts; None: as fast as it goes."""
    host: str = ""
    """Name of the host that the containers run on; empty: wherever the server decides, as a rule its own."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many containers, and for how long.

    `max_replicas` None: as many as the host has cores. `concurrency`: tasks that one container runs at a time.
    """

    min_replicas: int = 0
    max_replicas: int | None = None
    concurrency: int = 1
    keep_alive_s: float = 60.0
    max_queued: int = 10_000


@dataclass(frozen=True, slots=True)
class Credit:
    """Back-pressure of a stage's stream outputs: how much may be on its way to consumers that could take it."""

    items: int = 16
    bytes: int = 256 * 1024 * 1024


class Isolation(enum.Enum):
    """What keeps a stage's containers apart from others.

    PROCESS  a process of its own, with the rights of the server
    SANDBOX  sees only the files that it needs, read-only, its own /tmp, no other processes, no network unless asked for
    SHARED   as the server's default, but one container serves all stages of the workflow's owner that say so and run
             the same function on the same weights: their tasks share a batch, each with its stage's adapter
    """

    PROCESS = "process"
    SANDBOX = "sandbox"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Batch:
    """How the tasks of a stage are put together, for a function that takes several at once.

    Attributes:
        max_size: most tasks in a batch.
        wait_ms: how long a task waits for others while a container is free.
        cost: CEL over the task's inputs: its weight.
        max_cost: most that a batch may weigh; a task that is heavier goes alone.
        same_shape: tensors of one input have one dtype and shape throughout a batch.
    """

    max_size: int = 8
    wait_ms: float = 0.0
    cost: str | None = None
    max_cost: float | None = None
    same_shape: bool = True


@dataclass(frozen=True, slots=True)
class Slo:
    """The promise. `attainment` is the share of invocations that must keep it."""

    e2e_ms: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tpot_ms: float | None = None
    percentile: float = 99.0
    attainment: float = 0.99


@dataclass(frozen=True, slots=True)
class Stage:
    """A node. Exactly one of `function` (`module:name`) and `cases` (a switch) is set."""

    name: str
    function: str = ""
    cases: tuple[Case, ...] = ()
    inputs: tuple[Input, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    input_ports: tuple[Port, ...] = ()
    """The ports that the inputs meet, after the function's signature and the YAML's `types` were laid together."""
    outputs: tuple[Port, ...] = ()
    when: tuple[CaseRef, ...] = ()
    """Runs only if every named case was taken."""
    retry: Retry | None = None
    catch: tuple[Catch, ...] = ()
    timeout_s: float | None = None
    resources: Resources = Resources()
    scaling: Scaling = Scaling()
    credit: Credit = Credit()
    batch: Batch | None = None
    """Set if the function takes several tasks at once."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote of this stage has imported before it forks."""
    isolation: Isolation | None = None
    """None: as the server does it by default, which is a sandbox wherever one is possible."""
    network: bool = False
    """Whether a sandboxed container may use the network."""
    start_timeout_s: float | None = None
    """Limit of a container's start, import and `setup` included. None: the server's."""
    model: str = ""
    """Weights that its containers need, if the file says so; among `params` as well."""
    adapter: str = ""
    """LoRA adapter that they need, likewise."""

    @property
    def is_switch(self) -> bool:
        """Whether the host itself decides this stage, without a container."""
        return bool(self.cases)


@dataclass(frozen=True, slots=True)
class Output:
    """A named result of the workflow."""

    name: str
    edge: Edge
    type_: Port | None = None


@dataclass(frozen=True, slots=True)
class Workflow:
    """A DAG of stages. Nested workflows have been inlined: their stages are called `outer/inner`."""

    name: str
    stages: Mapping[str, Stage]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Output, ...] = ()
    slo: Slo | None = None
    deadline_s: float | None = None
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    """Whose stages those of `Isolation.SHARED` may share a container with; empty: those of this workflow alone."""
