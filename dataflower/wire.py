"""Every message between processes.

All messages are MessagePack arrays written by msgspec from the structs below; the first element is the tag. User
values are MessagePack too, but opaque here: `Value.body` is packed and unpacked by `channel.tensor` alone, and tensors
inside it are extension types that point into `Value.tensors`. No pickle anywhere.

Sockets per container (SEQPACKET, all created by the host):

* *inbox*: `RunTask`, `RunMany`, `RunBatch`, from the host and from containers that it gave a way there (`OpenLink`).
* *task* socket: everything that the container says to the host.
* *control* socket: host -> container everything that must get through while user code runs.

Closing them is the order to stop. Descriptors ride along as ancillary data where a message says so.
"""

from __future__ import annotations

import enum

import msgspec

from dataflower.errors import Code

VERSION = 1
"""First field of `Hello`; a host ends a container that speaks another version."""

EXT_TENSOR = 1
"""MessagePack extension type: payload is the MessagePack integer i, meaning `Value.tensors[i]`."""
EXT_INLINE_TENSOR = 2
"""MessagePack extension type: payload is the MessagePack array [dtype, shape, little-endian bytes]: a small tensor."""

Tag = tuple[int, ...]
"""Which item of each enclosing fan-out a token belongs to, outermost first; () outside any fan-out."""


class TensorRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes in an arena: `nbytes` at `offset`. The slot is identified by (arena, slot)."""

    arena: int
    slot: int
    """Offset of the slot; `offset` lies inside it (a view of a tensor shares its slot)."""
    offset: int
    nbytes: int
    dtype: str
    """Datatype of the Open Inference Protocol, or BYTES for an opaque body."""
    shape: tuple[int, ...]


class Value(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A user value: MessagePack, its tensors by reference. A body too long for a message is itself a BYTES tensor."""

    body: bytes = b""
    tensors: tuple[TensorRef, ...] = ()
    spilled: TensorRef | None = None


class ErrorRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`errors.Failure` on the wire (the container does not know its stage or attempt)."""

    code: Code
    kind: str
    message: str
    traceback: str = ""
    lost: tuple[tuple[int, int], ...] = ()
    """Slots that it could not read: their bytes are gone."""


class Times(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Record points of a task in its container, CLOCK_MONOTONIC seconds; 0 where it does not apply."""

    received: float = 0.0
    fetched: float = 0.0
    started: float = 0.0
    first_output: float = 0.0
    ended: float = 0.0


# --- host -> container ---------------------------------------------------------------------------------------


class Single(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="v"):
    """An input that is one value."""

    name: str
    value: Value


class Gathered(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="l"):
    """An input that is a list of values."""

    name: str
    values: tuple[Value, ...]


class Opened(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="s"):
    """A stream input: the items so far; more come as `Feed`, the end as `FeedEnd`, unless `ended`."""

    name: str
    values: tuple[Value, ...]
    ended: bool


TaskInput = Single | Gathered | Opened


class Next(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the container of a task does with its outputs if it can: hand them straight to the container of the next.

    `container`: the receiver, to which `OpenLink` gave a way. `ports`: (input, output) pairs, all the inputs of the
    next task. `may_post`: whether the task's report may stand on the board (`channel.board`) instead of being sent. The
    rest is as in `RunTask`.
    """

    container: int
    task: int
    ports: tuple[tuple[str, str], ...]
    credit_items: int = 0
    credit_bytes: int = 0
    then: Next | None = None
    may_post: bool = False


class Served(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The stage that a task is of, in a container that several share; the LoRA adapter as that stage names it."""

    workflow: str
    version: int
    stage: str
    adapter: str


class RunTask(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="run"):
    """Run the function once. `deadline_s`: CLOCK_MONOTONIC time by which the result is worthless; 0 = none.

    `credit_items`, `credit_bytes`: how much the task may emit before it waits for `Credit` (cumulative).
    `served`: set in containers that several stages share.
    """

    task: int
    inputs: tuple[TaskInput, ...]
    deadline_s: float = 0.0
    credit_items: int = 0
    credit_bytes: int = 0
    invocation: str = ""
    tag: Tag = ()
    attempt: int = 1
    then: Next | None = None
    served: Served | None = None
    wanted: bool = False
    """Whether others wait for its place: it may be given up as soon as the function is over (`Computed`)."""


class RunMany(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="runs"):
    """Run the function for each of these tasks, one after the other, as if each had come alone: one wake-up for all."""

    tasks: tuple[RunTask, ...]


class RunBatch(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="batch"):
    """Run the function once for several tasks of its stage (docs/semantics.md, Batches). They have no streams."""

    tasks: tuple[RunTask, ...]


class Feed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="feed"):
    """Further items of a stream input."""

    task: int
    name: str
    values: tuple[Value, ...]


class FeedEnd(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="fend"):
    """A stream input ended in good order."""

    task: int
    name: str


class Grant(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="credit"):
    """The task may have emitted up to so many items and bytes in all, counted from its start."""

    task: int
    items: int
    bytes: int


class CancelTask(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="cancel"):
    """Stop at the next chance: the next yield, stream read, or Python instruction."""

    task: int
    reason: str = "cancelled"


class Withdraw(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="back"):
    """Give back those of these tasks that have not begun: `Withdrawn` names them, and they never run.

    Those that have begun go on, unless there is a `reason`: then they stop as by `CancelTask`.
    """

    tasks: tuple[int, ...]
    reason: str = ""


class Prefetch(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="prefetch"):
    """A task to come is likely to read this: have it at hand, so that it can begin at once. Nothing is promised."""

    refs: tuple[TensorRef, ...]


class Trim(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="trim"):
    """Give back memory that only makes tasks to come faster (caches). Answered with `Trimmed`."""


class ReleaseSlots(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="release"):
    """Slots of the receiver's own arenas that nobody reads any more: (arena, slot) pairs."""

    slots: tuple[tuple[int, int], ...]


class AttachArena(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="attach"):
    """Carries one descriptor: another container's arena, sealed, that coming messages refer to."""

    arena: int
    nbytes: int


class OpenLink(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="link"):
    """Carries one descriptor: a way to the inbox of another container of the workflow, for `Next`."""

    container: int


class CloseLink(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="cut"):
    """The other container is gone."""

    container: int


class DetachArena(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="detach"):
    """No further message refers to this arena; unmap it when its last view is gone."""

    arena: int


ToContainer = (
    RunTask
    | RunMany
    | RunBatch
    | Feed
    | FeedEnd
    | Grant
    | CancelTask
    | Withdraw
    | Prefetch
    | Trim
    | ReleaseSlots
    | AttachArena
    | DetachArena
    | OpenLink
    | CloseLink
)


# --- container -> host ---------------------------------------------------------------------------------------


class StartKind(enum.Enum):
    """What a start spends time on within `setup`."""

    WEIGHTS = "weights"
    MAP = "map"
    MODEL = "model"
    ADAPTER = "adapter"
    WARM_UP = "warm-up"


class StartPhase(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of a container's `setup`. `what`: which weights, which adapter. `was_there`: nothing had to be loaded."""

    kind: StartKind
    what: str
    seconds: float
    nbytes: int = 0
    was_there: bool = False


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="hello"):
    """The container is ready: user module imported, `setup` done. Durations in seconds, by phase."""

    version: int
    pid: int
    import_s: float = 0.0
    setup_s: float = 0.0
    phases: tuple[StartPhase, ...] = ()
    """Of `setup`, as far as it is known what it did."""


class StartFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="nostart"):
    """The function can't be imported, or its `setup` raised. The container exits after this."""

    error: ErrorRecord


class TokenSent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="tok"):
    """One `yield`: item number `index` of the task's stream ports. A port not named is absent in this item."""

    task: int
    index: int
    outputs: dict[str, Value]


class Computed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="over"):
    """The function is over, and another task may come while its outputs are copied; `TaskDone` or `TaskFailed` follows.

    Only of a task that is `wanted`, and of one at a time.
    """

    task: int


class TaskDone(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="done"):
    """The function returned. `outputs`: its value ports (absent ones left out); `items`: how many it streamed.

    `held`: (arena, slot) pairs of inputs of which user code still keeps a view; `Unheld` will follow for each.
    """

    task: int
    outputs: dict[str, Value]
    items: int
    times: Times
    held: tuple[tuple[int, int], ...] = ()
    forwarded: int = 0
    """The next task, if its inputs were handed straight to its container."""


class TaskFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="fail"):
    """The function raised, or was cancelled (`error.code` CANCELLED)."""

    task: int
    error: ErrorRecord
    times: Times
    held: tuple[tuple[int, int], ...] = ()


class BatchDone(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="bdone"):
    """What became of tasks that ran together: of all of them, or of some while the others wait for room."""

    results: tuple[TaskDone | TaskFailed, ...]


class Withdrawn(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="given"):
    """These tasks will not run here: they had not begun when `Withdraw` came."""

    tasks: tuple[int, ...]


class Taken(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="taken"):
    """User code has been handed so many items of a stream input so far (cumulative): that is what credit counts.

    All but the newest of them are let go, except `held`: slots of earlier items of which user code still keeps a view
    (say `list(stream)`); `Unheld` will follow for each.
    """

    task: int
    name: str
    items: int
    held: tuple[tuple[int, int], ...] = ()


class Starved(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="starved"):
    """The task waits for room in its container's arena. `released`: slots that were given back to it before that."""

    task: int
    released: int


class Unheld(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="unheld"):
    """Views that outlived their task are gone now."""

    slots: tuple[tuple[int, int], ...]


class ArenaMade(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="arena"):
    """Carries one descriptor: a new arena of the sender, sealed. Its number is `container << 16 | n`.

    `on_disk`: it is a file, and can be damaged. Said by the host, which knows from the descriptor.
    """

    arena: int
    nbytes: int
    on_disk: bool = False


class Trimmed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="trimmed"):
    """What could be given back was."""


class Knock(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="knock"):
    """Carries one descriptor: a socket on which the sender wants to speak with the host's store of weights.

    The host passes it on through the store's door, with the number of the process that it came from. 0: the host.
    """

    version: int = 1
    """Of the store's protocol."""
    process: int = 0


STORE_VARIABLE = "DATAFLOWER_STORE"
"""Environment variable that names the socket to knock on: `DESCRIPTOR:INODE`."""
ASK_HOST = "host"
"""What it says in a process that is to become a container: its task socket is the one."""


FromContainer = (
    Hello
    | StartFailed
    | TokenSent
    | Computed
    | TaskDone
    | TaskFailed
    | BatchDone
    | Withdrawn
    | Taken
    | Starved
    | Unheld
    | ArenaMade
    | Trimmed
    | Knock
)


# --- host <-> zygote -----------------------------------------------------------------------------------------


class OutputPort(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An output port as the container needs it: to know streams, and to check what the function hands out."""

    name: str
    stream: bool = False
    kind: str = "any"
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None


class InputPort(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An input port; sizes named in `shape` must agree throughout a task, outputs included."""

    name: str
    stream: bool = False
    kind: str = "any"
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None


class Walls(enum.Enum):
    """What keeps a container in its place.

    ROOM      namespaces of its own: it sees only its own processes, files that it needs, and no network
    LANDLOCK  the same files, no network and no signals to others, but it can see that others are there
    NONE      a process like others
    """

    ROOM = "room"
    LANDLOCK = "landlock"
    NONE = "none"


class Fork(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="fork"):
    """Start a container. Carries five descriptors: inbox, task and control socket, log file, board."""

    container: int
    function: str
    stage: str
    workflow: str
    params: bytes
    """The stage's `params`, MessagePack."""
    outputs: tuple[OutputPort, ...]
    inputs: tuple[InputPort, ...]
    concurrency: int = 1
    threads: int = 1
    memory_bytes: int = 0
    arena_cap_bytes: int = 0
    code_path: tuple[str, ...] = ()
    """Directories put in front of `sys.path`."""
    spill_dir: str = ""
    """Where the container's arena goes on when it is full; empty: nowhere.

    A folder of its own that it makes. Its room, if it has one, shows one of its own in place of the folder above it.
    """
    spill_cap_bytes: int = 0
    spill_device: int = 0
    """`st_dev` of files there, as the host sees it."""
    isolated: bool = False
    """In a sandbox, as good as the zygote can make one; `demanded`: not at all rather than without one."""
    demanded: bool = False
    network: bool = False
    gpu: bool = False
    groups: tuple[str, ...] = ()
    """Files of control groups into which the container writes itself."""
    scratch: str = ""
    """Its private directory, where the sandbox has no /tmp of its own."""
    owner: int = 0
    """The number under which it makes arenas, if that is not `container`: its own on the host that it works for."""


class Spare(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="spare"):
    """Have a process ready that may become a container with these `groups`: sandboxed where possible, if `isolated`."""

    isolated: bool = False
    groups: tuple[str, ...] = ()


class Forked(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="forked"):
    """The container runs as `pid`."""

    container: int
    pid: int


class Prepared(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="prepared"):
    """The spare that was ordered waits as `pid`: `Forked` says that it is a container now, `Exited` 0 that it ended."""

    pid: int


class Exited(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="exited"):
    """The container ended; `status` as of waitpid (os.waitstatus_to_exitcode: negative = signal).

    `reason`: why it never began, if it didn't.
    """

    container: int
    status: int
    reason: str = ""


class Kept(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="kept"):
    """The zygote has a helper that outlives it while containers do, and ends by itself: `pid`."""

    pid: int


class ZygoteReady(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="zready"):
    """Libraries are imported; `seconds` is how long that took. `missing`: modules that could not be."""

    version: int
    pid: int
    seconds: float
    missing: tuple[str, ...] = ()
    walls: Walls = Walls.NONE
    """What its sandboxes are made of; `why_not`: why of nothing better."""
    why_not: str = ""


ToZygote = Fork | Spare
FromZygote = Forked | Prepared | Exited | Kept | ZygoteReady


encoder = msgspec.msgpack.Encoder()
decode_to_container = msgspec.msgpack.Decoder(ToContainer).decode
decode_from_container = msgspec.msgpack.Decoder(FromContainer).decode
decode_knock = msgspec.msgpack.Decoder(Knock).decode
decode_to_zygote = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote = msgspec.msgpack.Decoder(FromZygote).decode
encode = encoder.encode
