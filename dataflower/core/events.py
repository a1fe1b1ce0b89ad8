"""What can happen to a host. Everything that the core learns comes in as one of these."""

from __future__ import annotations

from msgspec import Struct

from dataflower import wire
from dataflower.core.plan import DispatchPlan
from dataflower.core.program import Program
from dataflower.errors import Failure
from dataflower.wire import Value

Slot = tuple[int, int]
"""(arena, slot): names a piece of shared memory."""


class WorkflowAdded(Struct, frozen=True):
    """A workflow may be invoked from now on, under the key `name@version`."""

    key: str
    program: Program
    places: dict[str, str] = {}
    """The host of each stage that runs on another one, by name of the stage."""


class WorkflowRemoved(Struct, frozen=True):
    """No new invocations; running ones go on, then its containers stop."""

    key: str


class PlanChanged(Struct, frozen=True):
    """A workflow is run by this plan from now on; None: as its file says."""

    key: str
    plan: DispatchPlan | None


class InvocationArrived(Struct, frozen=True):
    """A call. `inputs`: one value per value port. `open_inputs`: stream ports that the caller will feed.

    `deadline`: CLOCK_MONOTONIC seconds after which the answer is worthless; 0 = none.
    """

    invocation: str
    key: str
    inputs: dict[str, Value]
    open_inputs: tuple[str, ...] = ()
    deadline: float = 0.0
    accepted: bool = False
    """It was accepted before (by a server that went down): it is not refused now for want of time or room."""


class InputArrived(Struct, frozen=True):
    """One item of a stream input."""

    invocation: str
    port: str
    value: Value


class InputEnded(Struct, frozen=True):
    """The caller has sent the last item of a stream input."""

    invocation: str
    port: str


class CancelArrived(Struct, frozen=True):
    """The caller does not want the result any more, or left."""

    invocation: str
    failure: Failure


class OutputTaken(Struct, frozen=True):
    """The caller's side has copied out so many items of an output so far (1 for a value)."""

    invocation: str
    port: str
    items: int


class InvocationReleased(Struct, frozen=True):
    """Nobody reads this finished invocation's outputs any more."""

    invocation: str


class ContainerSaid(Struct, frozen=True):
    """A message from a container, as it stands on the wire (already validated against `wire`)."""

    container: int
    message: wire.FromContainer


class ContainerExited(Struct, frozen=True):
    """The process is gone. `reason`: what to tell a user whose task it took along ('killed by signal 9').

    `begun`: the tasks that it had begun with and not ended; None if nobody knows, then all of its tasks count as such.
    """

    container: int
    reason: str
    begun: frozenset[int] | None = None


class ContainerDied(Struct, frozen=True):
    """The process is gone, and some of what it said is still on its way: see `ContainerExited`, which follows that.

    `owed`: the tasks of which something is to come.
    """

    container: int
    reason: str
    begun: frozenset[int] | None
    owed: frozenset[int]


class MemoryLost(Struct, frozen=True):
    """What these slots held is gone, with the host that had kept it; its containers are known to be gone."""

    slots: tuple[Slot, ...]


class ZygoteStarted(Struct, frozen=True):
    """A zygote has imported its libraries. `nbytes` of its own; 0: unknown."""

    modules: tuple[str, ...]
    seconds: float
    nbytes: int = 0


class ZygoteEnded(Struct, frozen=True):
    """A zygote with these libraries is gone, whoever wanted it so."""

    modules: tuple[str, ...]


class ContainerSized(Struct, frozen=True):
    """So much memory is a container's own."""

    container: int
    nbytes: int


class WeightsSized(Struct, frozen=True):
    """Answer to `SizeWeights` and `HoldWeights`. `nbytes` 0: they can't be had. `seconds`: of the load; 0: unknown.

    `held`: they are in memory now and stay.
    """

    model: str
    nbytes: int
    seconds: float = 0.0
    held: bool = False


class WeightsDropped(Struct, frozen=True):
    """Answer to `DropWeights`. `gone` False: they stay, since somebody has asked for them, or they are pinned."""

    model: str
    gone: bool


class ContainerSending(Struct, frozen=True):
    """What a container's data unit sends to other hosts, whenever something is added to it or has arrived.

    `fresh`, `waiting`, `bytes_per_s`: as of `pressure.Outflow`. `over`: tasks whose function is over after `run_s`
    seconds, and whose reports are on their way behind their outputs.
    """

    container: int
    fresh: int
    waiting: int
    bytes_per_s: float
    over: tuple[int, ...] = ()
    run_s: float = 0.0


class Woke(Struct, frozen=True):
    """The time asked for by `WakeAt` has come."""


Event = (
    WorkflowAdded
    | WorkflowRemoved
    | PlanChanged
    | InvocationArrived
    | InputArrived
    | InputEnded
    | CancelArrived
    | OutputTaken
    | InvocationReleased
    | ContainerSaid
    | ContainerExited
    | ContainerDied
    | MemoryLost
    | ZygoteStarted
    | ZygoteEnded
    | ContainerSized
    | WeightsSized
    | WeightsDropped
    | ContainerSending
    | Woke
)
