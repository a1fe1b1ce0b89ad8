"""What a host offers to the front door: the interface between `gateway` (and `dataflower run`) and `host`.

`dataflower.testing.fake_host.FakeHost` is the fake that goes with it. Values at this border are plain Python objects:
None, bool, int, float, str, bytes, list, dict with string keys, and numpy arrays (or anything with `__array__`) for
tensors. A stream input may be given whole, as a list, or be opened and fed.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dataflower.checkpoint.protocol import Statistics
from dataflower.core.device.state import DeviceState
from dataflower.core.trace import InvocationTrace
from dataflower.errors import Failure
from dataflower.spec.workflow import Workflow
from dataflower.wire import StartPhase


class State(enum.Enum):
    """Of an invocation."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class OutputItem:
    """One result: item `index` of a stream output, or a value (`index` -1).

    Tensors in `value` are read-only views of shared memory, valid until the next item is asked for.
    """

    port: str
    index: int
    value: Any


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Containers and queue of a stage right now."""

    stage: str
    starting: int
    idle: int
    busy: int
    queued: int
    done: int = 0
    """Tasks ended so far, in whatever way, as far as the host counts them."""
    pool: str = ""
    """`owner/name` of the containers, if it shares them (`isolation: shared`): the counts are those of all who do."""
    shares: tuple[str, ...] = ()
    """With whom: `workflow/stage` of each."""
    run_over_plan: float | None = None
    """Measured over planned run time, lately; None without a plan, and until some runs have been seen."""
    is_slow: bool = False
    """Whether runs take clearly longer than the plan says."""


class ReplanOutcome(enum.StrEnum):
    """What became of a decision to plan again.

    PLANNING: nothing yet. REFUSED: there is no plan or no room for that rate, the present one is kept. FAILED:
    likewise, for a reason that may go by: it is tried again.
    """

    PLANNING = "planning"
    APPLIED = "applied"
    DRY_RUN = "dry-run"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReplanDecision:
    """To plan again, at wall-clock time `at`. Rates are invocations a second; `note`: the outcome in words."""

    at: float
    rate_per_s: float
    measured_per_s: float
    reason: str
    outcome: ReplanOutcome
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReplanStatus:
    """A workflow whose plan follows the traffic, or would (`dry_run`). `measured_per_s`: lately; None: not known."""

    dry_run: bool
    planned_per_s: float
    measured_per_s: float | None = None
    last: ReplanDecision | None = None


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """A workflow as the host has it.

    `source` is its YAML, self-contained; `plan` the plan file that it is run by, empty if there is none.
    """

    name: str
    version: int
    workflow: Workflow
    source: str
    applied_at: float
    stages: tuple[StageStatus, ...] = ()
    running: int = 0
    plan: str = ""
    replanning: ReplanStatus | None = None
    """None where the plan stays as it is."""


@dataclass(frozen=True, slots=True)
class InvocationRecord:
    """What is known of an invocation; `outputs` None while it runs or after it failed. Times are wall-clock seconds."""

    id: str
    workflow: str
    version: int
    state: State
    accepted_at: float
    finished_at: float | None = None
    failure: Failure | None = None
    outputs: Mapping[str, Any] | None = None
    trace: InvocationTrace | None = None


@dataclass(frozen=True, slots=True)
class HostUsage:
    """What a host holds right now. `slots`: pieces of shared memory that somebody still needs."""

    arenas: int = 0
    arena_bytes: int = 0
    """Shared memory of all arenas, the containers' and the host's."""
    host_arena_used_bytes: int = 0
    """Inputs of running invocations."""
    slots: int = 0
    containers: int = 0
    zygotes: int = 0


class PeerState(enum.Enum):
    """Of another host.

    CONNECTED   it runs containers for this one
    CONNECTING  it has not answered yet
    LOST        there is no connection; it is looked for
    OWNER       this one runs containers for it
    NEIGHBOUR   both run containers for the same host, and one sends the other what that tells it to
    """

    CONNECTED = "connected"
    CONNECTING = "connecting"
    LOST = "lost"
    OWNER = "owner"
    NEIGHBOUR = "neighbour"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another host. `reason`: why it is lost. Bytes: of tensors that went to it and came from it."""

    name: str
    address: str
    state: PeerState
    reason: str = ""
    containers: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


@dataclass(frozen=True, slots=True)
class ContainerStart:
    """How long a container took to be ready, by phase, in seconds."""

    workflow: str
    stage: str
    spawn_s: float
    """Until its process ran: a fork server, where there was none yet, the fork, the sandbox."""
    import_s: float
    """The import of the function's module."""
    setup_s: float
    """The function's `setup`: weights, warm-up."""
    phases: tuple[StartPhase, ...] = ()
    """Of `setup`, as far as it is known what it did."""


@dataclass(frozen=True, slots=True)
class Preloaded:
    """An artifact that starts need, as the policy of preloading sees it.

    Attributes:
        name: what it is: libraries, weights or a container, and which.
        kind: `library`, `backbone` or `kernels` (a container, with adapter and warmed-up kernels in it).
        nbytes: memory that it takes.
        saved_s: by how much a start is shorter that finds it there.
        value: seconds of waiting that it saves in a second, at the present rates.
        held: the policy wants it ready.
        ready: it is.
        users: functions that need it, as `workflow/stage`.
    """

    name: str
    kind: str
    nbytes: int
    saved_s: float
    value: float
    held: bool
    ready: bool
    users: tuple[str, ...]


StartListener = Callable[[ContainerStart], None]
"""Told of a container that has become ready; must neither block nor raise."""
Listener = Callable[[InvocationRecord], None]
"""Told of an invocation that is over, without its outputs; must neither block nor raise."""


class Invocation(Protocol):
    """A running call. Its owner must either exhaust `outputs()` (or await `result()`) or `cancel()` it."""

    @property
    def id(self) -> str:
        """The invocation's id (given by the caller, or made up)."""
        ...

    async def feed(self, port: str, item: Any) -> None:
        """Send an item of a stream input; waits while the workflow can't take it."""
        ...

    async def end_input(self, port: str) -> None:
        """Say that a stream input is complete."""
        ...

    def outputs(self) -> AsyncIterator[OutputItem]:
        """Results as they come; raises `InvocationFailed` at the end if it failed."""
        ...

    async def result(self) -> dict[str, Any]:
        """All outputs, streams as lists, absent ones left out (tensors copied). Raises `InvocationFailed`."""
        ...

    def cancel(self, failure: Failure | None = None) -> None:
        """Stop it; a no-op once it is over."""
        ...

    @property
    def trace(self) -> InvocationTrace | None:
        """Record points, once it is over."""
        ...


class HostApi(Protocol):
    """A machine that runs workflows."""

    async def apply(
        self,
        workflow: Workflow,
        source: str,
        *,
        expected_version: int | None = None,
        plan: str | None = None,
        plan_file: str = "plan",
    ) -> WorkflowStatus:
        """Make it invokable; the newest version of a name serves. Same source again changes nothing.

        `plan`: text of the plan file (`dataflower plan -o yaml`) to run it by; empty to run it as its file says. If it
        is not given, the same source keeps the plan that it has, and a new version has none. `plan_file` names it in
        messages.

        `expected_version` other than the present one: `DataflowerError` with ABORTED. A plan for another workflow, or
        that can't be carried out: INVALID_ARGUMENT.
        """
        ...

    async def delete(self, name: str) -> None:
        """Forget a workflow (NotFound if there is none) and return at once; running invocations go on to their end."""
        ...

    def workflows(self) -> tuple[WorkflowStatus, ...]:
        """All of them, by name."""
        ...

    def workflow(self, name: str) -> WorkflowStatus:
        """One of them; NotFound with the nearest name as a hint."""
        ...

    async def wait_ready(self, name: str) -> None:
        """Wait for the containers that a workflow keeps (`min_replicas`); returns early if one can't be started."""
        ...

    async def invoke(
        self,
        name: str,
        inputs: Mapping[str, Any],
        *,
        invocation: str | None = None,
        open_inputs: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> Invocation:
        """Start a call. `deadline`: CLOCK_MONOTONIC seconds. Checks names and types of the inputs first.

        Raises NotFound, InvalidArgument, ResourceExhausted, Unavailable; ALREADY_EXISTS if the id is in use.
        """
        ...

    async def submit(
        self, name: str, inputs: Mapping[str, Any], *, invocation: str | None = None, deadline_s: float | None = None
    ) -> InvocationRecord:
        """Start a call whose record outlives the caller and the server: journalled before this returns.

        The same id with the same inputs returns the existing record; with others, ALREADY_EXISTS.
        """
        ...

    async def get(self, invocation: str) -> InvocationRecord:
        """A running or finished invocation; NotFound."""
        ...

    def watch(self, invocation: str) -> AsyncIterator[InvocationRecord]:
        """The record now, and again whenever it changes, until it is over."""
        ...

    async def cancel(self, invocation: str) -> InvocationRecord:
        """Stop it, whoever started it; a no-op once it is over."""
        ...

    def recent(self, workflow: str | None = None, limit: int = 50) -> tuple[InvocationRecord, ...]:
        """The newest invocations first (without outputs and traces)."""
        ...

    def on_over(self, listener: Listener) -> None:
        """Tell `listener` of every invocation from now on, whoever started it, when it is over."""
        ...

    def on_start(self, listener: StartListener) -> None:
        """Tell `listener` of every container from now on, when it is ready."""
        ...

    def peers(self) -> tuple[PeerStatus, ...]:
        """Other hosts: those that run stages for this one, then those that it runs stages for."""
        ...

    def preloaded(self) -> tuple[Preloaded, ...]:
        """What could be ready ahead of calls, the most valuable byte first; nothing where preloading is off."""
        ...

    def devices(self) -> tuple[DeviceState, ...]:
        """Devices on which stages with weights take turns; none where they don't (`device_batches` 0)."""
        ...

    async def weights(self) -> Statistics | None:
        """What the store of model weights holds and how fast it loads; None while there is none."""
        ...

    def usage(self) -> HostUsage:
        """What it holds right now."""
        ...
