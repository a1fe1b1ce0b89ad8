"""Memory that is full of what waits for each other: noticed, and ended with an error instead of a hang.

A task that needs room in its container's arena waits until readers let go of what is in there. A gather holds every
item until the last has come; if the last finds no room, both wait for ever.
"""

from __future__ import annotations

from collections.abc import Mapping

from dataflower.core.call import Call
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.instance import Instance, Phase
from dataflower.core.timers import Timer, Timers
from dataflower.errors import Code, Failure

PATIENCE_S = 30.0
"""How long nothing may happen before tasks that may be computing, or waiting for a stream, are taken to wait."""


class Starvation:
    """The tasks that wait for room: `victim` names one to end when nothing else can happen any more."""

    def __init__(
        self,
        tasks: Mapping[int, Instance],
        containers: Mapping[int, Container],
        calls: Mapping[str, Call],
        timers: Timers,
    ) -> None:
        self._tasks = tasks
        self._containers = containers
        self._calls = calls
        self._timers = timers
        self._starving: dict[int, int] = {}
        """Task -> slots that its container had been given back when it found no room."""
        self._quiet_since = 0.0
        self._timer: Timer | None = None

    def __bool__(self) -> bool:
        return bool(self._starving)

    def note(self, task: int, released: int) -> None:
        """The task waits for room."""
        self._starving[task] = released

    def forget(self, task: int) -> None:
        """The task sent something: it found room."""
        self._starving.pop(task, None)

    def victim(self, now: float, *, moved: bool) -> Instance | None:
        """A task to fail, if nothing will ever give it room. `moved`: something has just happened."""
        if moved:
            self._quiet_since = now
        sure = self._is_standstill()
        if sure is None:
            return None
        due = self._quiet_since + PATIENCE_S
        if not sure and now < due:
            if self._timer is None or self._timer.at != due:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._timers.at(due, lambda at: None)  # to be asked again then
            return None
        return self._tasks[next(iter(self._starving))]

    def _is_standstill(self) -> bool | None:
        """True: for sure. False: unless a task computes that looks as if it waited. None: something will happen."""
        for task in [task for task in self._starving if task not in self._tasks]:
            del self._starving[task]
        if not self._starving or any(c.phase is ContainerPhase.STARTING for c in self._containers.values()):
            return None
        sure = True
        for task, instance in self._tasks.items():
            if instance.promised:
                continue  # it waits for the one that promised
            if instance.is_doomed or instance.is_sent:
                return None
            if self._starving.get(task) == self._containers[instance.container].released:
                continue
            if task in self._starving or not instance.may_wait:
                return None  # room is on its way to it, or it computes
            sure = False
        return None if any(_may_move(call) for call in self._calls.values()) else sure


def _may_move(call: Call) -> bool:
    """Whether the call's caller, a retry or a container to come may change something."""
    if call.flow.outputs.untaken:
        return True
    if call.finished:
        return False
    if call.flow.caller:
        return True
    retrying = any(i.phase is Phase.RETRYING and i not in call.lacking for i in call.flow.everyone())
    pools = call.deployment.pools.values()
    return retrying or any(p.will_move or (p.backlog and p.size < p.max_replicas and not p.closing) for p in pools)


def memory_full(instance: Instance) -> Failure:
    """The task can't get room any more."""
    message = (
        "there is no room in the memory of its container, and all that is in there waits for others "
        "(a gather keeps every item until the last has come): raise container_arena_bytes, "
        "or let it go on on disk (spill_dir)"
    )
    return Failure(Code.RESOURCE_EXHAUSTED, "MemoryFull", message, instance.program.name, instance.attempt)
