"""A container that this host runs for another, and what its messages are about."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from dataflower import wire
from dataflower.core.lineage import KIND
from dataflower.errors import Code
from dataflower.host.links import Peer
from dataflower.host.remote_peer import refs_of
from dataflower.wire import BatchDone, ErrorRecord, RunTask, TaskDone, TaskFailed, TensorRef, Withdrawn

LATE = "DeadlineExceeded"
"""What a task is told that has to stop because its deadline has passed."""

LOST = "what it was to read was lost with the host that had it"


@dataclass(slots=True)
class Guest:
    """A container. `process`: its number here."""

    peer: Peer
    process: int
    stays: bool = False
    """Whether what it makes is not read by its owner, so that its reports need not wait for bytes."""
    readers: tuple[str, ...] = ()
    """The neighbours on which it is read."""
    deadlines: dict[int, float] = field(default_factory=dict)
    """Of the tasks that it has, by this host's clock, where they have one."""
    late: set[int] = field(default_factory=set)
    """Those of them that were told to stop because it has passed."""
    unwanted: set[int] = field(default_factory=set)
    """Tasks that were told to stop and will not be tried again: nothing of them is read any more."""
    bereft: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Tasks that were told to stop because slots are lost that they were to read."""
    behind: set[int] = field(default_factory=set)
    """Streams that what it has said waits for, as far as they are under way."""


def refs_to(message: wire.ToContainer) -> list[TensorRef]:
    """The memory that a message for a container names."""
    tasks = (message,) if isinstance(message, RunTask) else message.tasks if isinstance(message, wire.RunBatch) else ()
    values = [
        value
        for task in tasks
        for item in task.inputs
        for value in ((item.value,) if isinstance(item, wire.Single) else item.values)
    ]
    if isinstance(message, wire.Feed):
        values.extend(message.values)
    return [ref for value in values for ref in refs_of(value)]


def tasks_of(message: wire.FromContainer) -> tuple[int, ...]:
    """The tasks that a message hands out something of."""
    if isinstance(message, BatchDone):
        return tuple([result.task for result in message.results])
    return (message.task,) if isinstance(message, (TaskDone, TaskFailed, wire.TokenSent)) else ()


def forget_ended(guest: Guest, message: wire.FromContainer) -> wire.FromContainer:
    """Its tasks that are over need no deadline any more. Returns what to say: one that was stopped for it says so."""
    if isinstance(message, Withdrawn):
        for task in message.tasks:
            guest.deadlines.pop(task, None)
            guest.late.discard(task)
    elif isinstance(message, BatchDone):
        said = tuple([_forget_result(guest, result) for result in message.results])
        return BatchDone(said)
    elif isinstance(message, (TaskDone, TaskFailed)):
        return _forget_result(guest, message)
    return message


def _forget_result(guest: Guest, result: TaskDone | TaskFailed) -> TaskDone | TaskFailed:
    lost = guest.bereft.pop(result.task, ())
    if lost and isinstance(result, TaskFailed) and result.error.code is Code.CANCELLED:
        result = msgspec.structs.replace(result, error=lost_error(lost))
    if guest.deadlines.pop(result.task, None) is None or result.task not in guest.late:
        return result
    guest.late.discard(result.task)
    if isinstance(result, TaskDone) or result.error.code is not Code.CANCELLED:
        return result
    return msgspec.structs.replace(result, error=ErrorRecord(Code.DEADLINE_EXCEEDED, LATE, "its deadline passed"))


def lost_error(lost: tuple[tuple[int, int], ...]) -> ErrorRecord:
    """Of a task that was to read these slots, which are gone."""
    return ErrorRecord(Code.INTERNAL, KIND, LOST, lost=lost)
