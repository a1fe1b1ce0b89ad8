"""What the core wants done. The host carries commands out in order; none of them can fail back into the core
except by a later event.
"""

from __future__ import annotations

from msgspec import Struct

from dataflower import wire
from dataflower.core.trace import InvocationTrace
from dataflower.errors import Failure
from dataflower.spec.workflow import Isolation, Stage
from dataflower.wire import Value


class Preload(Struct, frozen=True):
    """Have a zygote with these libraries ready: importing them takes seconds, a fork milliseconds."""

    modules: tuple[str, ...]
    isolation: Isolation | None = None
    """Of the stages that it is for; None: as the host does it by default."""


class Unload(Struct, frozen=True):
    """That zygote need not be kept: it may end when it has no containers."""

    modules: tuple[str, ...]
    isolation: Isolation | None = None


class SizeWeights(Struct, frozen=True):
    """Find out how large a model's weights are: `events.WeightsSized` follows."""

    model: str


class HoldWeights(Struct, frozen=True):
    """Keep these models in memory, and no others for the policy's sake: (name, value of a byte).

    `events.WeightsSized` follows for each new one. They make room for what functions ask for, least dense first.
    """

    models: tuple[tuple[str, float], ...]


class DropWeights(Struct, frozen=True):
    """Have a model out of memory as soon as nobody uses it: `events.WeightsDropped` follows."""

    model: str


class SizeContainer(Struct, frozen=True):
    """Measure what a container has of memory for itself: `events.ContainerSized` follows, if that can be told."""

    container: int


class StartContainer(Struct, frozen=True):
    """Fork a container for a stage; `ContainerSaid(Hello | StartFailed)` or `ContainerExited` follows."""

    container: int
    key: str
    stage: Stage
    hardware: str = ""
    """The kind of device that a plan wants it on; empty: any."""
    followers: tuple[Stage, ...] = ()
    """The stages that read its outputs."""
    stays: bool = False
    """Whether its outputs need not leave the host that it runs on."""


class StopContainer(Struct, frozen=True):
    """Idle container: close its sockets and let it leave. `ContainerExited` follows."""

    container: int


class KillContainer(Struct, frozen=True):
    """It did not let go of a cancelled or timed-out task, or broke the protocol. `ContainerExited` follows."""

    container: int
    reason: str


class Tell(Struct, frozen=True):
    """Send a message to a container. Arenas that the message refers to are attached first by the host."""

    container: int
    message: wire.ToContainer
    at_leisure: bool = False
    """Whether it is enough if the container knows before it begins its next task."""


class EmitOutput(Struct, frozen=True):
    """A result for the caller: item `index` of a stream output, or the value itself (`index` -1).

    The slots stay alive until `OutputTaken` or `InvocationReleased`.
    """

    invocation: str
    port: str
    index: int
    value: Value


class EndOutput(Struct, frozen=True):
    """A stream output is complete; `absent`: the output will not come (its branch was not taken)."""

    invocation: str
    port: str
    absent: bool = False


class TakeInput(Struct, frozen=True):
    """Back-pressure towards the caller: so many items of this stream input may have been fed in all."""

    invocation: str
    port: str
    items: int


class FinishInvocation(Struct, frozen=True):
    """The invocation is over; failure None means success."""

    invocation: str
    failure: Failure | None
    trace: InvocationTrace
    is_kept: bool = False
    """Whether outputs that were not read lie in shared memory: then `InvocationReleased` is due once they are."""


class ExpireOutputs(Struct, frozen=True):
    """Nobody has read outputs of a finished invocation for long: `InvocationReleased` is due unless somebody does."""

    invocation: str


class DropArena(Struct, frozen=True):
    """No slot of this dead owner's arena is referred to any more."""

    arena: int


class StagePace(Struct, frozen=True):
    """People are to know: runs of a stage take `factor` times what its plan says; `is_slow`: clearly too much
    now; else that is over."""

    key: str
    stage: str
    factor: float
    is_slow: bool


class WakeAt(Struct, frozen=True):
    """Deliver `Woke` at this CLOCK_MONOTONIC time (replaces an earlier `WakeAt`); inf = never."""

    time: float


Command = (
    Preload
    | Unload
    | SizeWeights
    | HoldWeights
    | DropWeights
    | SizeContainer
    | StartContainer
    | StopContainer
    | KillContainer
    | Tell
    | EmitOutput
    | EndOutput
    | TakeInput
    | FinishInvocation
    | ExpireOutputs
    | DropArena
    | StagePace
    | WakeAt
)
