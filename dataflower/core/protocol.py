"""What a container may say when: whatever else it says, it is not an honest one, and is ended for it.

References to memory are the host's to check (`host.links`), since only it knows what was handed to whom.
"""

from __future__ import annotations

from dataflower.core.container import Container, ContainerPhase
from dataflower.wire import (
    BatchDone,
    Computed,
    ErrorRecord,
    FromContainer,
    Hello,
    StartFailed,
    TaskDone,
    TaskFailed,
    TokenSent,
    Withdrawn,
)

LONGEST_ERROR = 1 << 16
"""Characters of an error's message and traceback together; containers shorten theirs far below."""
MOST_LOST = 1000
"""Slots that an error may say are lost; an honest container names the first that it could not read."""
MOST_PHASES = 100
"""Parts of a start that a container may tell of; honest ones drop what is beyond."""
_FOREVER = 1e18


def violation(container: Container, message: FromContainer, last_task: int) -> str:
    """What is wrong with the message at this moment; empty if nothing is. `last_task`: the newest that there is.

    Word of a task that is another's by now is no violation: its container was handed it by one that died unheard.
    """
    kind = type(message)
    if kind is TaskDone or kind is TaskFailed:
        return _of_result(container, message, last_task)  # type: ignore[arg-type]
    if kind is TokenSent:
        return _of_item(container, message, last_task)  # type: ignore[arg-type]
    if kind is BatchDone:
        return _of_batch(container, message, last_task)  # type: ignore[arg-type]
    if kind is Computed:
        return _of_end(container, message.task, last_task)  # type: ignore[union-attr]
    if kind is Withdrawn:
        return _of_return(container, message, last_task)  # type: ignore[arg-type]
    if kind is Hello or kind is StartFailed:
        if container.phase not in (ContainerPhase.STARTING, ContainerPhase.LEAVING):
            return "told of its start a second time"
        if kind is StartFailed:
            return _of_error(message.error)  # type: ignore[union-attr]
        return _of_start(message)  # type: ignore[arg-type]
    return ""


def _of_start(message: Hello) -> str:
    if len(message.phases) > MOST_PHASES:
        return f"told of its start in {len(message.phases)} phases"
    durations = (message.import_s, message.setup_s, *(part.seconds for part in message.phases))
    return "" if all(0.0 <= seconds < _FOREVER for seconds in durations) else "told of a start outside of time"


def _of_item(container: Container, message: TokenSent, last_task: int) -> str:
    instance = container.find(message.task)
    if instance is None:
        return _of_stranger(message.task, last_task)
    emitter = instance.emitter
    if emitter is None:
        return "sent an item though its stage has no streams"
    if instance.is_doomed:
        return ""  # nobody counts them any more
    if message.index != emitter.emitted:
        return f"sent item {message.index} where {emitter.emitted} was due"
    return "sent an item without credit" if emitter.is_spent else ""


def _of_end(container: Container, task: int, last_task: int) -> str:
    instance = container.tasks.get(task)
    if instance is None:
        return "gave up a place twice" if task in container.sending else _of_stranger(task, last_task)
    if not instance.is_wanted:
        return f"gave up the place of task {task}, which nobody asked for"
    return "gave up a place while outputs are being copied" if container.sending else ""


def _of_return(container: Container, message: Withdrawn, last_task: int) -> str:
    for task in message.tasks:
        instance = container.tasks.get(task)
        if instance is None:
            if said := _of_stranger(task, last_task):
                return said
        elif not instance.recalled:
            return f"gave back task {task}, which nobody asked for"
    return ""


def _of_stranger(task: int, last_task: int) -> str:
    return "" if 0 < task <= last_task else f"spoke of task {task}, which there is not"


def _of_result(container: Container, message: TaskDone | TaskFailed, last_task: int) -> str:
    instance = container.find(message.task)
    if instance is None:
        return _of_stranger(message.task, last_task)
    times = message.times
    if not (
        0.0 <= times.received < _FOREVER
        and 0.0 <= times.fetched < _FOREVER
        and 0.0 <= times.started < _FOREVER
        and 0.0 <= times.first_output < _FOREVER
        and 0.0 <= times.ended < _FOREVER
    ):
        return "told of a time that there is not"
    return _of_error(message.error) if isinstance(message, TaskFailed) else ""


def _of_batch(container: Container, message: BatchDone, last_task: int) -> str:
    seen: set[int] = set()
    for result in message.results:
        if result.task in seen:
            return f"ended task {result.task} twice"
        seen.add(result.task)
        if said := _of_result(container, result, last_task):
            return said
    return ""


def _of_error(error: ErrorRecord) -> str:
    if len(error.lost) > MOST_LOST or len(error.message) + len(error.traceback) > LONGEST_ERROR:
        return "told of an endless error"
    return ""
