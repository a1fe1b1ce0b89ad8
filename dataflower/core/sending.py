"""Containers whose data units send to other hosts: the function unit goes on meanwhile, unless that piles up bytes."""

from __future__ import annotations

from dataflower.core import events
from dataflower.core.container import Container
from dataflower.core.pressure import Outflow, Pressure, hold
from dataflower.core.reports import Reports


class Sendings(Reports):
    """The part of a host core that hears how far the outputs of containers are on their way to other hosts."""

    def _container_sending(self, event: events.ContainerSending, now: float) -> None:
        container = self._containers.get(event.container)
        if container is None or container.is_disbelieved:
            return
        pool = container.pool
        container.has_sent |= event.bytes_per_s > 0
        if event.over and event.run_s:
            self._note_run(container, event.run_s, len(event.over))
        self._press(container, event, now)
        for task in event.over:
            self._vacate(container, task, now)
        pool.offer(container)
        if pool.backlog:
            self._dispatch(pool, now)

    def _press(self, container: Container, event: events.ContainerSending, now: float) -> None:
        """Hold its places as long as it has so much to send; the last word counts."""
        pool, flow = container.pool, Outflow(event.fresh, event.waiting, event.bytes_per_s)
        if self.config.pressure is Pressure.PAPER and not event.fresh:
            return  # it knows of nothing but what a task has handed over
        found = hold(self.config.pressure, flow, pool.stage.resources, event.run_s or pool.run_s)
        if container.relief is not None:
            container.relief.cancel()
            container.relief = None
        if not found.seconds:
            pool.relieve(container)
            return
        pool.press(container, found, now + found.seconds)
        container.relief = self.timers.at(now + found.seconds, lambda at: self._relieve(container, at))

    def _container_died(self, event: events.ContainerDied, now: float) -> None:
        """What it said comes behind its bytes and counts; nothing else of it is waited for."""
        container = self._containers.get(event.container)
        if container is None or container.is_disbelieved:
            return
        pool = container.pool
        if container.relief is not None:
            container.relief.cancel()
            container.relief = None
        pool.leave(container)
        pool.relieve(container)
        for task in event.owed:
            self._vacate(container, task, now)
        freed = self._take_along(container, tuple(container.tasks), event.reason, event.begun, now)
        self._dispatch(pool, now)
        for other in freed:
            self._after_task(other, now)

    def _relieve(self, container: Container, now: float) -> None:
        container.relief = None
        container.pool.relieve(container)
        if container.pool.backlog:
            self._dispatch(container.pool, now)

    def _vacate(self, container: Container, task: int, now: float) -> None:
        """A task's function is over: it gives its place up, and can't be late any more."""
        instance = container.pool.vacate(container, task, now)
        if instance is None:
            return
        instance.is_sent = True
        if (timeout := self._timeouts.pop(task, None)) is not None:
            timeout.cancel()
        self._leave_batch(container, task, now)
        for other in self._break(instance, now):
            self._after_task(other, now)
