"""The host's ends of a container's two sockets: what waits to be sent, and which arenas the other side knows."""

from __future__ import annotations

import os
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from dataflower import wire
from dataflower.channel.board import Board
from dataflower.channel.link import Link
from dataflower.channel.views import Views
from dataflower.core.commands import StartContainer
from dataflower.core.events import Slot
from dataflower.errors import Closed, Crowded, PeerGone, WouldBlock
from dataflower.wire import (
    AttachArena,
    BatchDone,
    CancelTask,
    CloseLink,
    DetachArena,
    Feed,
    Knock,
    Next,
    OpenLink,
    Prefetch,
    ReleaseSlots,
    RunBatch,
    RunMany,
    RunTask,
    Single,
    Taken,
    TaskDone,
    TaskFailed,
    TensorRef,
    TokenSent,
    Unheld,
    Value,
    Withdraw,
)

_encode = wire.encode
_ARENA_SLACK_BYTES = 64 << 20
_MOST_ARENAS = 1000
"""Of one container: each costs the host a descriptor."""
_MOST_WAITING = 10_000
"""Messages that a container may leave unread beyond what the kernel keeps; honest ones read theirs whatever they do."""
_MOST_MESSAGE_BYTES = 256 << 20
"""Longer words of a container are not read. Values lie in arenas, so honest ones stay far below."""
_CROWDED_S = 0.002
"""Between two attempts while too many descriptors are under way: the kernel says nobody when there are fewer."""
MOST_TOGETHER = 8
"""Tasks in one message."""
_FETCHED_BYTES = 256 << 10
"""Smaller tensors are looked at sooner than a message about them is read."""
_SMALL_BYTES = 4096
"""Inputs of a task that shares a message with others: all together stay below what a message may hold."""


class ProtocolViolation(Exception):
    """A container said something that no honest one says; it is killed for it."""


class OutboxStatistics(msgspec.Struct, frozen=True):
    """`waiting`: messages that the kernel's buffer had no room for yet."""

    sent: int
    waiting: int


class Outbox:
    """A socket that one side writes to and never waits for: what doesn't fit now goes out when there is room.

    The queue is bounded by the core's credit: it hands out nothing to a container that doesn't answer.
    """

    __slots__ = ("_loop", "_queue", "_sent", "_stop_waiting", "attached", "link")

    def __init__(self, loop: AbstractEventLoop, link: Link) -> None:
        """Take over `link`; `close` it."""
        self._loop = loop
        self._stop_waiting: Callable[[], None] | None = None
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._sent = 0
        self.link = link
        self.attached: set[int] = set()
        """Arenas that were announced over this socket. One that was announced over the other may not be there yet."""

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send now or later, in order. Descriptors are copied. A dead peer is not an error: its exit tells of it."""
        if not self._queue:
            try:
                self.link.send_nowait(payload, descriptors)
            except WouldBlock as error:
                self._wait(error)
            except (PeerGone, Closed):
                return
            else:
                self._sent += 1
                return
        self._queue.append((payload, tuple(os.dup(descriptor) for descriptor in descriptors)))

    def _wait(self, error: WouldBlock) -> None:
        if isinstance(error, Crowded):  # the socket is writable, so waiting for that would be spinning
            self._loop.remove_writer(self.link.fileno())
            self._stop_waiting = self._loop.call_later(_CROWDED_S, self._flush).cancel
        else:
            self._loop.add_writer(self.link.fileno(), self._flush)

    def _flush(self) -> None:
        self._stop_waiting = None
        while self._queue:
            payload, descriptors = self._queue[0]
            try:
                self.link.send_nowait(payload, descriptors)
            except WouldBlock as error:
                self._wait(error)
                return
            except (PeerGone, Closed):
                self._drop_queue()
                break
            self._queue.popleft()
            self._sent += 1
            for descriptor in descriptors:
                os.close(descriptor)
        self._loop.remove_writer(self.link.fileno())

    def _drop_queue(self) -> None:
        if self._stop_waiting is not None:
            self._stop_waiting()
            self._stop_waiting = None
        for _, descriptors in self._queue:
            for descriptor in descriptors:
                os.close(descriptor)
        self._queue.clear()

    def close(self) -> None:
        """Close the socket; what waits is lost. Idempotent."""
        descriptor = self.link.fileno()
        if descriptor < 0:
            return
        self._loop.remove_writer(descriptor)
        self._drop_queue()
        self.link.close()

    def hang_up(self) -> None:
        """`close`, for a socket of which others hold copies of our end. Idempotent."""
        descriptor = self.link.fileno()
        if descriptor < 0:
            return
        self._loop.remove_writer(descriptor)
        self._drop_queue()
        self.link.hang_up()

    def statistics(self) -> OutboxStatistics:
        """Counts now."""
        return OutboxStatistics(self._sent, len(self._queue))


@dataclass(frozen=True, slots=True)
class Memory:
    """What the host knows of all arenas alive. `sizes`: arena -> bytes. `is_held`: whether anybody reads a slot."""

    views: Views
    sizes: dict[int, int]
    is_held: Callable[[Slot], bool]


class Peer:
    """A container as the host talks to it. Owns the sockets."""

    __slots__ = (
        "_arena_room",
        "_least_arena",
        "_memory",
        "_peers",
        "_sizes",
        "board",
        "control",
        "crowd",
        "done",
        "exit_begun",
        "exit_reason",
        "gathered",
        "heard_out",
        "inbox",
        "is_deaf",
        "is_single",
        "key",
        "linked",
        "links",
        "number",
        "orphans",
        "promises",
        "stage",
        "stalled",
        "started_at",
        "task",
    )

    def __init__(
        self,
        loop: AbstractEventLoop,
        command: StartContainer,
        links: tuple[Link, Link, Link],
        memory: Memory,
        peers: Mapping[int, Peer],
        *,
        arena_cap_bytes: int = 1 << 62,
        board: Board | None = None,
    ) -> None:
        """`links`: inbox, task, control. `peers`: all containers, for links between them. `arena_cap_bytes`: memory
        that its live outputs may take. `board`: where it posts reports; still the caller's.
        """
        self.inbox = Outbox(loop, links[0])
        self.task = links[1]
        self.task.most_bytes = _MOST_MESSAGE_BYTES
        self.control = Outbox(loop, links[2])
        self._settle(command, memory, peers, arena_cap_bytes, board)

    def _settle(
        self,
        command: StartContainer,
        memory: Memory,
        peers: Mapping[int, Peer],
        arena_cap_bytes: int,
        board: Board | None = None,
    ) -> None:
        """Everything but the sockets."""
        self.number = command.container
        self.key = command.key
        self.stage = command.stage.name
        self.links: set[int] = set()
        """Containers to whose inboxes it was given a way."""
        self.linked = False
        """Whether another was given a way to its inbox."""
        self.is_single = command.stage.scaling.concurrency == 1
        """Whether it has one thread, which can take several tasks at a time."""
        self.gathered: list[RunTask] = []
        """Tasks that wait to go out together."""
        self.orphans: set[int] = set()
        """Tasks that it was perhaps handed by a container that died before it could say so."""
        self.promises: dict[int, Next] = {}
        """By task: what it may hand on when that is done."""
        self.stalled: deque[tuple[wire.FromContainer, list[int]]] = deque()
        """What it said about a task before the host heard that the task was handed to it."""
        self.is_deaf = False
        """Whether the loop does not look at its socket: there is more in it, and `stalled` must wait."""
        self.exit_reason = ""
        """Why it is gone, while `stalled` must wait."""
        self.exit_begun: frozenset[int] | None = None
        """What it had begun with then."""
        self.heard_out = False
        """Whether it had nothing more to say when its socket was closed."""
        self.board: Board | None = board
        """Where it posts reports; None if it can't, or is not listened to any more."""
        self._peers = peers
        self._memory = memory
        self._sizes = memory.sizes
        self.started_at = 0.0
        """CLOCK_MONOTONIC time at which it was ordered."""
        self._arena_room = 4 * arena_cap_bytes + _ARENA_SLACK_BYTES
        """Bytes that its arenas may still grow by; an honest one's stay below twice the cap, or thrice (`Arena`)."""
        self._least_arena = self._arena_room // _MOST_ARENAS
        self.done = [0]
        """Tasks ended so far; the engine has all containers of a stage share one count."""
        self.crowd = [0]
        """Invocations under way; the engine has all containers of a workflow share one count."""

    # --- host to container -----------------------------------------------------------------------------------

    @property
    def is_remote(self) -> bool:
        """Whether it is on another host (`remote_peer.RemotePeer`): it has no sockets here then."""
        return False

    def tell(self, message: wire.ToContainer) -> None:
        """Send a message on the socket where it belongs, behind the arenas that it refers to."""
        kind = type(message)
        if kind is RunTask:
            box = self.inbox
            then = message.then  # type: ignore[union-attr]
            if then is not None:
                self.promises[message.task] = then  # type: ignore[union-attr]
                self._open_links(then)
            for item in message.inputs:  # type: ignore[union-attr]
                if type(item) is Single:
                    value = item.value
                    if value.tensors or value.spilled is not None:
                        self._introduce(box, value)
                else:
                    self._introduce_all(box, item.values)  # type: ignore[union-attr]
        elif kind is RunBatch:
            box = self.inbox
            for task in message.tasks:  # type: ignore[union-attr]
                for entry in task.inputs:  # type: ignore[union-attr]
                    self._introduce_all(box, (entry.value,) if isinstance(entry, Single) else entry.values)
        elif kind is Prefetch:
            self._prefetch(message.refs)  # type: ignore[union-attr]
            return
        else:
            box = self.control
            if kind is Feed:
                self._introduce_all(box, message.values)  # type: ignore[union-attr]
            elif (kind is CancelTask or kind is Withdraw) and self.board is not None:
                self.board.stops()
        box.send(_encode(message))

    def leaves(self, message: wire.ToContainer) -> bool:
        """Leave a message for which the container need not be woken where it finds it; False: it must be told."""
        return type(message) is ReleaseSlots and self.board is not None and self.board.give_back(message.slots)

    def _prefetch(self, refs: Iterable[TensorRef]) -> None:
        """On the socket that is heard while user code runs."""
        large = tuple([r for r in refs if r.nbytes >= _FETCHED_BYTES and r.arena >> 16 != self.number])
        if not large:
            return
        for ref in large:
            if ref.arena not in self.control.attached:
                self._attach(self.control, ref.arena)
        self.control.send(_encode(Prefetch(large)))

    def gather(self, message: RunTask) -> bool:
        """Keep a task until `send_gathered`, which must follow; False if it is none of those that go out together."""
        if not self.is_single or message.then is not None:
            return False
        size = 0
        for item in message.inputs:
            if type(item) is not Single:
                return False
            size += len(item.value.body)
        if size > _SMALL_BYTES:
            return False
        for item in message.inputs:
            value = item.value  # type: ignore[union-attr]
            if value.tensors or value.spilled is not None:
                self._introduce(self.inbox, value)
        self.gathered.append(message)
        if len(self.gathered) >= MOST_TOGETHER:
            self.send_gathered()
        return True

    def send_gathered(self) -> None:
        """Send what was kept, in order."""
        tasks = self.gathered
        if tasks:
            self.gathered = []
            self.inbox.send(_encode(tasks[0] if len(tasks) == 1 else RunMany(tuple(tasks))))

    def _open_links(self, then: Next | None) -> None:
        """Give each sender along the way to the next inbox, once; what comes later in the same inbox finds it."""
        sender = self
        while then is not None:
            receiver = self._peers.get(then.container)
            if receiver is None or receiver.is_remote or receiver.inbox.link.fileno() < 0:
                return
            if receiver.number not in sender.links:
                sender.links.add(receiver.number)
                receiver.linked = True
                sender.inbox.send(_encode(OpenLink(receiver.number)), (receiver.inbox.link.fileno(),))
            sender, then = receiver, then.then

    def lost(self, other: int) -> None:
        """Another container is gone."""
        if other in self.links:
            self.links.discard(other)
            self.inbox.send(_encode(CloseLink(other)))

    def was_given(self, outputs: Mapping[str, Value], then: Next) -> None:
        """Another container handed it these outputs, and has announced the arenas that they lie in."""
        attached = self.inbox.attached
        for _, port in then.ports:
            value = outputs[port]
            for ref in value.tensors:
                if ref.arena >> 16 != self.number:
                    attached.add(ref.arena)
            if value.spilled is not None and value.spilled.arena >> 16 != self.number:
                attached.add(value.spilled.arena)

    def _introduce_all(self, box: Outbox, values: Iterable[Value]) -> None:
        for value in values:
            if value.tensors or value.spilled is not None:
                self._introduce(box, value)

    def _introduce(self, box: Outbox, value: Value) -> None:
        for ref in value.tensors:
            if ref.arena not in box.attached:
                self._attach(box, ref.arena)
        if value.spilled is not None and value.spilled.arena not in box.attached:
            self._attach(box, value.spilled.arena)

    def _attach(self, box: Outbox, arena: int) -> None:
        if arena >> 16 == self.number:
            return
        box.attached.add(arena)
        box.send(_encode(AttachArena(arena, self._sizes[arena])), (self._memory.views.descriptor(arena),))

    def drop_arena(self, arena: int) -> None:
        """Tell the container, if it knows the arena, that no message will refer to it again."""
        for box in (self.inbox, self.control):
            # Another container may have announced it and died before it could say so.
            if arena in box.attached or (self.linked and box is self.inbox):
                box.attached.discard(arena)
                box.send(_encode(DetachArena(arena)))

    # --- container to host -----------------------------------------------------------------------------------

    def check_heard(self) -> None:
        """Raises `ProtocolViolation` if what it is told piles up unread: its words must not cost the host ever more."""
        if len(self.control._queue) > _MOST_WAITING or len(self.inbox._queue) > _MOST_WAITING:
            raise ProtocolViolation("does not read what it is told")

    def add_arena(self, nbytes: int) -> None:
        """It makes an arena. Raises `ProtocolViolation` if it has too many, or too much in them."""
        if nbytes > self._arena_room:
            raise ProtocolViolation("made more memory than it may have")
        self._arena_room -= max(nbytes, self._least_arena)

    def check(self, message: wire.FromContainer) -> None:
        """Refuse references to memory that this container was not given, or that nobody reads any more.

        Raises `ProtocolViolation`. Without this, one container could have another's memory released under its readers.
        """
        kind = type(message)
        if kind is TaskDone or kind is TokenSent:
            for value in message.outputs.values():  # type: ignore[union-attr]
                for ref in value.tensors:
                    self._check_ref(ref)
                if value.spilled is not None:
                    self._check_ref(value.spilled)
        if kind is TaskDone or kind is TaskFailed or kind is Taken:
            held = message.held  # type: ignore[union-attr]
            if held:
                self._check_slots(held)
        elif kind is Unheld:
            self._check_slots(message.slots)  # type: ignore[union-attr]
        elif kind is BatchDone:
            for result in message.results:  # type: ignore[union-attr]
                self.check(result)
        elif kind is Knock:
            raise ProtocolViolation("knocked at the store without a socket")

    def _knows(self, arena: int) -> bool:
        if arena >> 16 == self.number:
            return arena in self._sizes
        return arena in self.inbox.attached or arena in self.control.attached

    def _check_ref(self, ref: TensorRef) -> None:
        if not self._knows(ref.arena):
            raise ProtocolViolation(f"named memory that it was not given (arena {ref.arena:#x})")
        if not 0 <= ref.slot <= ref.offset <= ref.offset + ref.nbytes <= self._sizes[ref.arena]:
            raise ProtocolViolation(f"named memory outside arena {ref.arena:#x}")
        if ref.arena >> 16 != self.number and not self._memory.is_held((ref.arena, ref.slot)):
            raise ProtocolViolation(f"named memory that nobody reads any more (arena {ref.arena:#x}, slot {ref.slot})")

    def _check_slots(self, slots: Iterable[tuple[int, int]]) -> None:
        for arena, _ in slots:
            if not self._knows(arena):
                raise ProtocolViolation(f"named memory that it was not given (arena {arena:#x})")

    def close(self) -> None:
        """Close the sockets, which is the order to leave. Idempotent."""
        self.board = None
        self.inbox.hang_up()
        self.task.close()
        self.control.close()


__all__ = ["Memory", "Outbox", "OutboxStatistics", "Peer", "ProtocolViolation"]
