"""Which tasks containers may hand to each other, as long as the host has not heard whether they did.

A container may speak of such a task before its giver's report is read: from two sockets nothing comes in order. What it
says waits then (`Peer.stalled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from dataflower import wire
from dataflower.host.links import ProtocolViolation
from dataflower.wire import Next, TaskDone, Value


class Party(Protocol):
    """A container that hands on, or is handed (`links.Peer`)."""

    number: int
    promises: dict[int, Next]
    orphans: set[int]

    def was_given(self, outputs: Mapping[str, Value], then: Next) -> None:
        """Another container handed it these outputs."""
        ...


class Promises:
    """The book of promises of one engine."""

    def __init__(self, peers: Mapping[int, Party]) -> None:
        self._peers = peers
        self._open: dict[int, int] = {}
        """Giver by task."""
        self.kept = 0
        self.may_post = False
        """Whether any giver was ever allowed to post its report: else no board need be looked at."""
        self.moves = 0
        """How often promises were made or kept."""

    def __bool__(self) -> bool:
        return bool(self._open)

    def note(self, giver: int, then: Next | None) -> bool:
        """A task goes out to container `giver` with this promise. Gives whether a report may be posted."""
        may_post = False
        self.moves += 1
        while then is not None:
            self._open[then.task] = giver
            may_post |= then.may_post
            giver, then = then.container, then.then
        self.may_post |= may_post
        return may_post

    def giver(self, task: int) -> int:
        """The container that is to hand on the inputs of a task, of which nothing was heard yet; 0 if there is none."""
        return self._open.get(task, 0)

    def givers(self) -> set[int]:
        """The containers of which it is not known whether they handed something on."""
        return set(self._open.values())

    def is_early(self, message: wire.FromContainer) -> bool:
        """Whether a message is about a task that the host doesn't know to have been handed on."""
        return getattr(message, "task", 0) in self._open

    def settle(self, peer: Party, message: TaskDone | wire.TaskFailed) -> tuple[int, ...]:
        """A task is over: was the promise kept? Gives the containers that may speak again.

        Raises ProtocolViolation if it says that it handed on what it could not have.
        """
        then = peer.promises.get(message.task)
        forwarded = message.forwarded if type(message) is TaskDone else 0
        if then is None:
            if forwarded:
                raise ProtocolViolation("handed on a task that it was not to hand on")
            return ()
        if not forwarded:
            del peer.promises[message.task]
            return self._void(then)
        assert type(message) is TaskDone
        outputs = message.outputs
        if forwarded != then.task:
            raise ProtocolViolation("handed on what it does not have")
        for _, port in then.ports:
            if port not in outputs:
                raise ProtocolViolation("handed on what it does not have")
        del peer.promises[message.task]  # not of a liar, whose end makes it void
        del self._open[then.task]
        self.kept += 1
        self.moves += 1
        receiver = self._peers.get(then.container)
        if receiver is None:
            return self._abandon(then.then)  # it is gone, and may have handed on what it was handed
        receiver.was_given(outputs, then)
        if then.then is not None:
            receiver.promises[then.task] = then.then
        return (then.container,)

    def void_all(self, peer: Party) -> tuple[int, ...]:
        """A container is gone, and its promises with it. Gives the containers that may speak again."""
        return tuple(number for promised in peer.promises.values() for number in self._abandon(promised))

    def _abandon(self, promised: Next | None) -> tuple[int, ...]:
        """The giver died: whether it kept its promise nobody will ever say."""
        then = promised
        while then is not None:
            receiver = self._peers.get(then.container)
            if receiver is not None:
                receiver.orphans.add(then.task)
            then = then.then
        return self._void(promised)

    @staticmethod
    def orphaned(peer: Party, message: wire.FromContainer) -> wire.FromContainer:
        """What counts of a message about a task that was handed on by a container which died before it could say so.

        Nobody waits for what the task gives, and nobody keeps for it what it was given: all that is left is memory of
        its own container, to be given back.
        """
        kind = type(message)
        if kind is TaskDone or kind is wire.TaskFailed:
            peer.orphans.discard(message.task)  # type: ignore[union-attr]
        if kind is TaskDone or kind is wire.TokenSent:
            outputs = message.outputs  # type: ignore[union-attr]
            own = {port: value for port, value in outputs.items() if _is_of(peer.number, value)}
            if kind is TaskDone:
                return TaskDone(message.task, own, 0, wire.Times())  # type: ignore[union-attr]
            return wire.TokenSent(message.task, message.index, own)  # type: ignore[union-attr]
        if kind is wire.TaskFailed:
            return wire.TaskFailed(message.task, message.error, wire.Times())  # type: ignore[union-attr]
        if kind is wire.Taken:
            return wire.Taken(message.task, message.name, message.items)  # type: ignore[union-attr]
        return message

    def _void(self, then: Next | None) -> tuple[int, ...]:
        freed = []
        while then is not None:
            self._open.pop(then.task, None)
            freed.append(then.container)
            then = then.then
        return tuple(freed)


def _is_of(container: int, value: wire.Value) -> bool:
    spilled = value.spilled is None or value.spilled.arena >> 16 == container
    return spilled and all(ref.arena >> 16 == container for ref in value.tensors)
