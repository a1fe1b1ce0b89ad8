"""Relays: a stage's outputs go straight from its container to the container of the next stage.

A hop by way of the host costs two wake-ups. So when a task is given out whose stage takes next to no time, and the
next stage needs nothing but its outputs, the core picks the next container at once and reserves a place in it: a
*promise*. The first container hands the inputs on itself and then reports; the core learns from the report whether the
promise was kept, and goes on by the usual way where it was not (no room, a port left out, an error, a death).
Where the host shares its only core with its containers and nobody waits for that report, it may be *posted* instead of
sent: then it is found when the next container speaks.

The promised instance waits like any other until the report comes; but its task has a number and a place from the
beginning, so that cancelling reaches it wherever it is.
"""

from __future__ import annotations

import abc

from dataflower import wire
from dataflower.core.call import Call
from dataflower.core.container import Container
from dataflower.core.instance import Emitter, Instance, Phase
from dataflower.core.ledger import Ledger

WITHIN_S = 0.005
"""No promise while the task before takes longer: a place is not kept free for that."""
MOST_POSTING = 8
"""With more invocations of the workflow than this, somebody soon waits for the place that a report sets free."""


class Relays(abc.ABC):
    """The part of a host core that makes promises and learns what became of them."""

    ledger: Ledger
    _tasks: dict[int, Instance]
    _containers: dict[int, Container]
    _last_task: int
    _posts: bool
    """Whether there is one core only. With more, the host does its part of a hop beside the containers."""

    @abc.abstractmethod
    def _release_task(self, container: Container, task: int, now: float) -> tuple[Instance, Call] | None:
        """A task left its container, one way or the other."""

    def _promise(self, call: Call, instance: Instance, now: float) -> wire.Next | None:
        """The task is about to be given out: where its outputs may go, and theirs, as far as places are free."""
        follower = instance.program.follower
        if follower is None or follower.stage in call.deployment.served:  # it is to be told whose task it is
            return None
        pools = call.deployment.pools
        own = pools[instance.program.index]
        if not 0 < own.run_s < WITHIN_S:
            return None
        pool = pools[follower.stage]
        container = pool.spare()
        after = None if container is None else call.flow.expect(follower.stage, instance.tag)
        if container is None or after is None:
            return None
        self._last_task = task = self._last_task + 1
        after.task = task
        after.container = container.number
        after.promised = True
        after.ahead = after.recalled = after.is_sent = after.is_wanted = False
        self._tasks[task] = after
        pool.seat(container, after, now)
        call.running += 1
        instance.promise = after
        credit = pool.stage.credit
        items, nbytes = (credit.items, credit.bytes) if after.program.streams else (0, 0)
        may_post = self._posts and follower.is_sole and not own.queued and call.deployment.calls <= MOST_POSTING
        then = self._promise(call, after, now)
        return wire.Next(container.number, task, follower.ports, items, nbytes, then, may_post)

    def _keep(self, call: Call, after: Instance, message: wire.TaskDone, now: float) -> None:
        """The inputs were handed on: the promised task is where it was to be. Matching tells it so in a moment."""
        after.attempt = 1
        stage = after.program.stage
        if call.finished and after.lost:
            after.promised = after.unbegun = False
            after.lost = ""
            return
        if after.program.streams:
            after.emitter = Emitter(stage.credit.items, stage.credit.bytes, after)
        if call.finished:  # abandoned meanwhile, but its inputs are read until it is heard of
            call.record(after, handed_at(message, now))  # if it runs all the same its trace says so
            after.promised = False
            after.phase = Phase.RUNNING
            after.flow.active += 1
            after.payloads = list(message.outputs.values())
            for value in message.outputs.values():
                self.ledger.hold(value)
            return
        handed = handed_at(message, now)
        call.record(after, handed)
        trace = after.trace
        if trace is not None:
            trace.attempt = 1
            trace.container = after.container
            trace.dispatched = handed

    def _break(self, instance: Instance, now: float) -> list[Container]:
        """The inputs were not handed on: places are free again (of the containers returned), instances wait on."""
        freed: list[Container] = []
        after, instance.promise = instance.promise, None
        while after is not None:
            container = self._containers.get(after.container)
            if container is not None and self._release_task(container, after.task, now) is not None:
                container.pool.offer(container)
                freed.append(container)
            after.promised = False
            after.lost = ""
            after.unbegun = False
            after.task = 0
            following, after.promise = after.promise, None
            after = following
        return freed


def handed_at(message: wire.TaskDone, now: float) -> float:
    """When the outputs left; the host may hear of it later. Containers can't be later than now."""
    ended = message.times.ended
    return ended if 0.0 < ended < now else now
