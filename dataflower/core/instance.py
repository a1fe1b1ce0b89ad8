"""The pieces of a running invocation: instances (tasks waiting, running or done), their streams, and credit."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from dataflower.core.ledger import Ledger
from dataflower.core.merge import MergeState
from dataflower.core.payload import Payload, drop
from dataflower.core.program import StageProgram
from dataflower.core.trace import TaskTrace
from dataflower.wire import Tag, Value

if TYPE_CHECKING:
    from dataflower.core.lineage import Made
    from dataflower.core.matching import Flow


class Phase(enum.IntEnum):
    """Of an instance. RETRYING waits for its next attempt; DONE covers skipped, caught and failed."""

    WAITING = 0
    QUEUED = 1
    RUNNING = 2
    RETRYING = 3
    DONE = 4


class Emitter:
    """Credit account of one producer of items (a running task, or the caller on one stream input).

    `outstanding`: items that a consumer could take and has not taken. The producer may be `credit` items ahead of
    those that are settled, so its limit is `emitted - outstanding + credit`, and never goes back.
    """

    __slots__ = (
        "bytes",
        "credit_bytes",
        "credit_items",
        "emitted",
        "granted",
        "granted_bytes",
        "open",
        "out_bytes",
        "outstanding",
        "owner",
        "port",
    )

    def __init__(self, credit_items: int, credit_bytes: int, owner: Instance, port: str = "") -> None:
        self.credit_items = credit_items
        self.credit_bytes = credit_bytes
        self.owner = owner
        self.port = port
        self.open = True
        self.emitted = 0
        self.bytes = 0
        self.outstanding = 0
        self.out_bytes = 0
        self.granted = credit_items
        self.granted_bytes = credit_bytes

    def limits(self) -> tuple[int, int]:
        """How many items and bytes may have been emitted in all, by the present state."""
        return (
            max(self.granted, self.emitted - self.outstanding + self.credit_items),
            max(self.granted_bytes, self.bytes - self.out_bytes + self.credit_bytes),
        )

    @property
    def is_spent(self) -> bool:
        """Whether the producer must wait before it emits again."""
        return self.emitted >= self.granted or self.bytes >= self.granted_bytes

    def wants_grant(self) -> bool:
        """Whether the limit has moved far enough for a message: by half the credit, or the producer stands still."""
        items, nbytes = self.limits()
        more = items - self.granted
        more_bytes = nbytes - self.granted_bytes
        if not more and not more_bytes:
            return False
        return self.is_spent or 2 * more >= self.credit_items or 2 * more_bytes >= self.credit_bytes


class Item:
    """One item of a stream, as credit sees it. `uses`: consumers that could take it now and have not."""

    __slots__ = ("emitter", "nbytes", "uses")

    def __init__(self, emitter: Emitter, nbytes: int) -> None:
        self.emitter = emitter
        self.nbytes = nbytes
        self.uses = 0

    def use(self) -> None:
        """A consumer could take it from now on."""
        if not self.uses:
            self.emitter.outstanding += 1
            self.emitter.out_bytes += self.nbytes
        self.uses += 1

    def settle(self) -> bool:
        """A consumer has taken it; True if nobody else is waiting to."""
        self.uses -= 1
        if self.uses:
            return False
        self.emitter.outstanding -= 1
        self.emitter.out_bytes -= self.nbytes
        return True


class StreamInput:
    """Items of a stream input that its task has not let go of yet; `base` is the number of the first of them."""

    __slots__ = ("base", "ended", "entries", "reported", "sent", "taken")

    def __init__(self) -> None:
        self.entries: deque[tuple[Value, Item | None]] = deque()
        self.base = 0
        self.sent = 0
        """Items told to the container."""
        self.taken = 0
        """Items that user code has read."""
        self.ended = False
        self.reported = False
        """Whether the container knows the end."""

    @property
    def length(self) -> int:
        """Items that have come so far."""
        return self.base + len(self.entries)

    def unsent(self) -> tuple[Value, ...]:
        """Items that the container has not been told; marks them as told."""
        values = tuple(self.entries[i][0] for i in range(self.sent - self.base, len(self.entries)))
        self.sent = self.length
        return values

    def untold(self) -> tuple[Value, ...]:
        """The same, but they stay untold."""
        return tuple(self.entries[i][0] for i in range(self.sent - self.base, len(self.entries)))


class Instance:
    """One task-to-be: a stage under one tag, from its first token until it is done with and every edge has spoken."""

    __slots__ = (
        "ahead",
        "attempt",
        "cancelled",
        "children",
        "container",
        "delivered",
        "displaced",
        "emitter",
        "flow",
        "is_fetched",
        "is_sent",
        "is_wanted",
        "items",
        "lost",
        "made",
        "merges",
        "missing",
        "payloads",
        "phase",
        "pooled",
        "program",
        "promise",
        "promised",
        "recalled",
        "repeats",
        "satisfied",
        "streams",
        "tag",
        "task",
        "timed_out",
        "trace",
        "turn",
        "unbegun",
        "unheard",
    )

    def __init__(self, flow: Flow, program: StageProgram, tag: Tag) -> None:
        self.flow = flow
        self.program = program
        self.tag = tag
        self.phase = Phase.WAITING
        count = len(program.inputs)
        self.payloads: list[Payload | None] = [None] * count
        self.satisfied: list[bool] = [False] * count
        self.missing = count
        self.unheard = program.edges
        self.streams: dict[int, StreamInput] = {}
        self.merges: dict[int, MergeState] = {}
        self.items: list[Item] = []
        """Items of `each` edges that this task takes."""
        self.attempt = 0
        self.task = 0
        self.container = 0
        self.delivered = 0
        """Items handed on so far, by whichever attempt got furthest."""
        self.emitter: Emitter | None = None
        self.children: dict[int, Item] = {}
        """Items of its own that are not settled, by index: ordered gathers further down count against them."""
        self.trace: TaskTrace | None = None
        self.cancelled = False
        self.timed_out = False
        self.promise: Instance | None = None
        """The instance that its container hands its outputs to, until it is known whether it did (`core.relay`)."""
        self.promised = False
        """Whether it is the other side of a promise: it has a place and a number, and waits for its inputs."""
        self.lost = ""
        """Why the container of a promised instance is gone."""
        self.pooled = False
        """Whether it stands in its stage's queue."""
        self.turn = 0
        """Its place in that queue among equally urgent ones; it keeps it if it comes back unbegun."""
        self.ahead = False
        """Whether its container may not have begun with it yet: it got it while all places were taken."""
        self.recalled = False
        """Whether its container was asked to give it back if it had not begun."""
        self.is_fetched = False
        """Whether a container was asked to have its inputs at hand, or needed not be."""
        self.is_sent = self.is_wanted = False
        """Whether its function is over and its outputs are on their way here from another host; whether its container
        may give up its place before its outputs are copied."""
        self.displaced = 0
        """How often a container died with it before it had begun."""
        self.unbegun = False
        """Whether the container of a promised instance died before it had begun with it."""
        self.made: Made | None = None
        """What it has handed out that may be lost (`core.lineage`)."""
        self.repeats = False
        """Whether it makes outputs again that were lost: matching has them already."""

    def let_go(self, ledger: Ledger) -> list[Emitter]:
        """It is over: drop its inputs and settle the items it took. Returns the producers whose credit moved."""
        counted = self.phase is not Phase.WAITING
        moved: list[Emitter] = []
        self.phase = Phase.DONE
        for payload in self.payloads:
            if payload is not None:
                drop(ledger, payload)
        self.payloads = []
        if self.merges:
            for merge in self.merges.values():
                merge.let_go(ledger)
            self.merges.clear()
        if self.items:
            if counted:
                moved.extend([item.emitter for item in self.items if item.settle()])
            self.items = []
        if self.streams:
            for stream in self.streams.values():
                for value, entry in stream.entries:
                    ledger.drop(value)
                    if counted and entry is not None and entry.settle():
                        moved.append(entry.emitter)
            self.streams.clear()
        if self.emitter is not None:
            self.emitter.open = False
        return moved

    @property
    def is_doomed(self) -> bool:
        """Whether it was told to stop; its container is expected to let go of it."""
        return self.cancelled or self.timed_out

    @property
    def may_wait(self) -> bool:
        """Whether its running task may stand still until others move.

        It is out of credit, or has read all that has come of a stream.
        """
        if self.is_doomed:
            return False
        emitter = self.emitter
        if emitter is not None and emitter.is_spent:
            return True
        return any(not stream.ended and stream.taken >= stream.length for stream in self.streams.values())
