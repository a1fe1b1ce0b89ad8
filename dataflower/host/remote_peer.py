"""A container on another host, as the engine talks to it: the same messages as one here, over a session."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

from msgspec.structs import replace

from dataflower import wire
from dataflower.core.commands import StartContainer
from dataflower.host import peer_wire
from dataflower.host.links import Memory, Peer
from dataflower.host.peer_wire import Kill, Stop
from dataflower.wire import (
    CancelTask,
    Feed,
    Grant,
    Prefetch,
    ReleaseSlots,
    RunBatch,
    RunTask,
    Single,
    TensorRef,
    Value,
    Withdraw,
)

_MIRRORED_BYTES = 1 << 38
"""What the arenas of one remote container may have in all; its host keeps it to its own limit."""


class Messenger(Protocol):
    """What carries messages to the other host."""

    def leaves(self, task: int, deadline_s: float) -> float:
        """A task leaves for there now; gives its deadline by the other host's clock, never too early."""
        ...

    def give_up(self, container: int, task: int, reason: str) -> bool:
        """Do without the outputs of a task if they are on their way from there; False if they are not."""
        ...

    def tell(
        self,
        container: int,
        body: bytes,
        refs: Iterable[TensorRef] = (),
        *,
        urgent: bool = False,
        due: float = math.inf,
    ) -> None:
        """Send a message about a container, behind the memory that it refers to; an urgent one at once.

        `due`: memory that should be there sooner goes before other.
        """
        ...


class RemotePeer(Peer):
    """A container on another host."""

    __slots__ = ("_known", "_messenger", "readers", "stays")

    def __init__(
        self, messenger: Messenger, command: StartContainer, memory: Memory, peers: Mapping[int, Peer]
    ) -> None:
        self._messenger = messenger
        self.readers: tuple[str, ...] = ()
        """Other hosts on which its outputs are read."""
        self.stays = command.stays
        """Whether its outputs stay on its host."""
        self._known: set[int] = set()
        """Arenas of others that it was told of."""
        self._settle(command, memory, peers, _MIRRORED_BYTES)

    @property
    def is_remote(self) -> bool:
        """Whether it is on another host."""
        return True

    def _knows(self, arena: int) -> bool:
        return arena in self._sizes if arena >> 16 == self.number else arena in self._known

    def tell(self, message: wire.ToContainer) -> None:
        """Send a message, with the bytes that it refers to."""
        if isinstance(message, Prefetch):
            self._messenger.tell(self.number + peer_wire.ASIDE, wire.encode(message), message.refs)
            return
        if isinstance(message, CancelTask) and self._messenger.give_up(self.number, message.task, message.reason):
            return
        refs: list[TensorRef] = []
        due = math.inf
        urgent = isinstance(message, (Grant, CancelTask, Withdraw, ReleaseSlots))
        if isinstance(message, RunTask):
            due = message.deadline_s or math.inf
            message = self._theirs(message)
            refs = _refs_of_task(message)
        elif isinstance(message, RunBatch):
            due = min((task.deadline_s or math.inf for task in message.tasks), default=math.inf)
            message = RunBatch(tuple([self._theirs(task) for task in message.tasks]))
            refs = [ref for task in message.tasks for ref in _refs_of_task(task)]
        elif isinstance(message, Feed):
            refs = [ref for value in message.values for ref in refs_of(value)]
        for ref in refs:
            if ref.arena >> 16 != self.number:
                self._known.add(ref.arena)
        self._messenger.tell(self.number, wire.encode(message), refs, urgent=urgent, due=due)

    def _theirs(self, task: RunTask) -> RunTask:
        """The task by the other host's clock; its outputs come here, so it can't hand them on itself."""
        return replace(task, deadline_s=self._messenger.leaves(task.task, task.deadline_s), then=None)

    def lost(self, other: int) -> None:
        """It has no ways to other containers."""

    def drop_arena(self, arena: int) -> None:
        """No message will refer to it again; its host is told by the session."""
        self._known.discard(arena)

    def leave(self) -> None:
        """It is idle and may go."""
        self._messenger.tell(self.number, peer_wire.encode(Stop()))

    def kill(self, reason: str) -> None:
        """End it."""
        self._messenger.tell(self.number, peer_wire.encode(Kill(reason)), urgent=True)

    def close(self) -> None:
        """There are no sockets here."""


def refs_of(value: Value) -> tuple[TensorRef, ...]:
    """Everything that a value refers to."""
    return value.tensors if value.spilled is None else (*value.tensors, value.spilled)


def _refs_of_task(task: RunTask) -> list[TensorRef]:
    refs: list[TensorRef] = []
    for item in task.inputs:
        values = (item.value,) if isinstance(item, Single) else item.values
        for value in values:
            refs.extend(refs_of(value))
    return refs


def refs_from(message: wire.FromContainer) -> list[TensorRef]:
    """Everything that a container's message refers to."""
    if isinstance(message, wire.BatchDone):
        return [ref for result in message.results for ref in refs_from(result)]
    if isinstance(message, (wire.TaskDone, wire.TokenSent)):
        return [ref for value in message.outputs.values() for ref in refs_of(value)]
    return []
