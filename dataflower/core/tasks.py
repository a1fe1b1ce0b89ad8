"""Tasks in containers: given out, told to stop, tried again, lost; and what containers say about them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

from dataflower import wire
from dataflower.core import events
from dataflower.core.call import Call
from dataflower.core.commands import Command, Tell
from dataflower.core.config import CoreConfig
from dataflower.core.events import Slot
from dataflower.core.failures import crashed, on_attempt, stand_in, timed_out
from dataflower.core.fleet import Fleet
from dataflower.core.inputs import at_start
from dataflower.core.instance import Emitter, Instance, Phase
from dataflower.core.ledger import Ledger
from dataflower.core.pool import Container, ContainerPhase, Pool
from dataflower.core.retry import Jitter, caught_by, next_delay_s
from dataflower.core.starvation import Starvation
from dataflower.core.timers import Timer, Timers
from dataflower.errors import Failure

START_TRIES = 3
"""A container that dies this often in a row before it is ready takes the waiting tasks with it."""


class Tasks(abc.ABC):
    """The part of a host core that runs what matching has made ready. `_settle` and `_finish` are the other part's."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.ledger = Ledger()
        self.timers = Timers()
        self._calls: dict[str, Call] = {}
        self._tasks: dict[int, Instance] = {}
        self._timeouts: dict[int, Timer] = {}
        self._fleet = Fleet(config.max_containers, self.timers, self._say)
        self._containers = self._fleet.containers
        self._starvation = Starvation(self._tasks, self._containers, self._calls, self.timers)
        self._jitter = Jitter(config.seed)
        self._last_task = 0
        self._out: list[Command] = []
        self._sayings: dict[type, Callable[[Container, Any, float], None]] = {
            wire.Hello: self._hello,
            wire.StartFailed: self._start_failed,
            wire.TokenSent: self._token_sent,
            wire.TaskDone: self._task_done,
            wire.TaskFailed: self._task_failed,
            wire.Taken: self._items_taken,
            wire.Starved: self._starved,
            wire.Unheld: self._unheld,
            wire.ArenaMade: self._arena_made,
        }

    @abc.abstractmethod
    def _settle(self, call: Call, now: float) -> None:
        """Carry on what a change in the call's flow brought."""

    @abc.abstractmethod
    def _finish(self, call: Call, failure: Failure | None, now: float) -> None:
        """The call is over."""

    @abc.abstractmethod
    def _deadline_passed(self, call: Call, now: float) -> None:
        """The call took too long."""

    def _say(self, command: Command) -> None:
        self._out.append(command)

    def _forget_if_gone(self, call: Call) -> None:
        if call.is_gone:
            self._calls.pop(call.flow.invocation, None)

    # --- tasks -----------------------------------------------------------------------------------------------

    def _enqueue(self, call: Call, instance: Instance, now: float) -> Pool:
        call.record(instance, now)
        pool = call.deployment.pools[instance.program.index]
        pool.enqueue(instance, call.deadline)
        return pool

    def _dispatch(self, pool: Pool, now: float) -> None:
        """Give queued tasks to free containers, then start as many containers as the rest calls for."""
        while pool.queued and (pair := pool.take()) is not None:
            instance, container = pair
            call = self._calls[instance.flow.invocation]
            if call.deadline and now >= call.deadline:
                pool.enqueue(instance, call.deadline)  # `_finish` withdraws it with the others
                self._deadline_passed(call, now)
                continue
            self._run(call, instance, container, now)
        if not pool.queued and not pool.min_replicas:
            return
        self._fleet.fill(pool, now)

    def _run(self, call: Call, instance: Instance, container: Container, now: float) -> None:
        self._last_task = task = self._last_task + 1
        stage = instance.program.stage
        instance.task = task
        instance.container = container.number
        instance.attempt += 1
        instance.phase = Phase.RUNNING
        items = nbytes = 0
        if instance.program.streams:
            items, nbytes = stage.credit.items, stage.credit.bytes
            instance.emitter = Emitter(items, nbytes, instance)
        self._tasks[task] = container.tasks[task] = instance
        call.running += 1
        trace = instance.trace
        if trace is not None:
            trace.attempt = instance.attempt
            trace.container = container.number
            trace.dispatched = now
            trace.cold = container.ready_at > trace.queued
        if stage.timeout_s is not None:
            self._timeouts[task] = self.timers.at(now + stage.timeout_s, lambda at: self._timed_out(instance, task, at))
        message = wire.RunTask(
            task,
            at_start(instance),
            call.deadline,
            items,
            nbytes,
            call.flow.invocation,
            instance.tag,
            instance.attempt,
        )
        self._out.append(Tell(container.number, message))

    def _timed_out(self, instance: Instance, task: int, now: float) -> None:
        if instance.task == task and task in self._tasks and not instance.is_doomed:
            instance.timed_out = True
            self._stop_task(instance, "timeout", now)

    def _stop_task(self, instance: Instance, reason: str, now: float) -> None:
        task = instance.task
        if instance.container not in self._containers:
            return  # it died just now, and this is one of the tasks that it took along
        self._out.append(Tell(instance.container, wire.CancelTask(task, reason)))
        self.timers.at(now + self.config.cancel_grace_s, lambda at: self._kill_if_deaf(task, reason, at))

    def _kill_if_deaf(self, task: int, reason: str, now: float) -> None:
        """The task was told to stop and hasn't: end its container, once that doesn't hurt others in it."""
        instance = self._tasks.get(task)
        if instance is None:
            return
        container = self._containers[instance.container]
        if all(other.is_doomed for other in container.tasks.values()):
            self._fleet.kill(container, f"did not stop when told ({reason})")
        else:
            container.pool.drain(container)
            self.timers.at(now + self.config.cancel_grace_s, lambda at: self._kill_if_deaf(task, reason, at))

    def _release_task(self, container: Container, task: int, now: float) -> tuple[Instance, Call] | None:
        """A task left its container, one way or the other."""
        instance = container.tasks.pop(task, None)
        if instance is None:
            return None
        del self._tasks[task]
        if (timeout := self._timeouts.pop(task, None)) is not None:
            timeout.cancel()
        call = self._calls[instance.flow.invocation]
        call.running -= 1
        if not container.tasks:
            container.idle_since = now
            if not container.keep_alive_set:
                self._fleet.watch_idle(container, now)
        return instance, call

    def _attempt_failed(self, call: Call, instance: Instance, failure: Failure, now: float) -> None:
        if instance.trace is not None:
            instance.trace.error = failure.kind
        if call.finished:
            call.flow.retire(instance)
            self._forget_if_gone(call)
            return
        instance.phase = Phase.RETRYING
        stage = instance.program.stage
        if instance.emitter is not None:
            instance.emitter.open = False
        delay = next_delay_s(stage.retry, failure, self._jitter)
        if delay is not None and not (call.deadline and now + delay >= call.deadline):
            if delay > 0:
                self.timers.at(now + delay, lambda at: self._try_again(call, instance, at))
            else:
                self._try_again(call, instance, now)
            return
        clause = caught_by(stage.catch, failure)
        if clause is None:
            self._finish(call, failure, now)
            self._forget_if_gone(call)
            return
        call.flow.finish(instance, stand_in(clause.goto, clause.output, failure))
        self._settle(call, now)

    def _try_again(self, call: Call, instance: Instance, now: float) -> None:
        if call.finished or instance.phase is not Phase.RETRYING:
            return
        instance.phase = Phase.QUEUED
        instance.timed_out = False
        self._dispatch(self._enqueue(call, instance, now), now)

    # --- containers ------------------------------------------------------------------------------------------

    def _container_said(self, event: events.ContainerSaid, now: float) -> None:
        container = self._containers.get(event.container)
        if container is not None:
            self._sayings[type(event.message)](container, event.message, now)

    def _hello(self, container: Container, message: wire.Hello, now: float) -> None:
        if message.version != wire.VERSION:
            reason = f"speaks version {message.version} of the wire, not {wire.VERSION}"
            self._fleet.kill(container, reason)
            return
        container.ready_at = container.idle_since = now
        pool = container.pool
        pool.ready(container)
        if pool.closing:
            self._fleet.stop(container)
            return
        self._dispatch(pool, now)
        if not container.tasks:
            self._fleet.watch_idle(container, now)

    def _start_failed(self, container: Container, message: wire.StartFailed, now: float) -> None:
        pool = container.pool
        pool.leave(container)
        error = message.error
        failure = Failure(error.code, error.kind, error.message, pool.stage.name, 1, error.traceback)
        self._note_failed_start(pool, failure, now, at_once=True)

    def _note_failed_start(self, pool: Pool, failure: Failure, now: float, *, at_once: bool) -> None:
        """Waiting tasks fail with it if no container is left that could run them; the next start waits a while."""
        pool.failed_starts += 1
        hopeless = at_once or pool.failed_starts >= START_TRIES
        alone = not pool.size
        if hopeless:
            pool.blocked_until = now + min(30.0, 0.1 * 2.0**pool.failed_starts)
            self.timers.at(pool.blocked_until, lambda at: self._dispatch(pool, at))
        if hopeless and alone:
            for instance in pool.give_up():
                call = self._calls[instance.flow.invocation]
                instance.attempt += 1
                self._attempt_failed(call, instance, on_attempt(failure, instance.attempt), now)
        self._dispatch(pool, now)

    def _token_sent(self, container: Container, message: wire.TokenSent, now: float) -> None:
        values = message.outputs.values()
        for value in values:
            self.ledger.hold(value)
        instance = container.tasks.get(message.task)
        if instance is not None and not instance.is_doomed:
            call = self._calls[instance.flow.invocation]
            call.flow.emit(instance, message.index, message.outputs)
            self._settle(call, now)
        for value in values:
            self.ledger.drop(value)

    def _task_done(self, container: Container, message: wire.TaskDone, now: float) -> None:
        values = message.outputs.values()
        for value in values:
            self.ledger.hold(value)
        self._note_held(container, message.held)
        found = self._release_task(container, message.task, now)
        if found is not None:
            instance, call = found
            self._note_times(instance, message.times, message.items, now)
            container.pool.offer(container)
            if call.finished:
                call.flow.retire(instance)
                self._forget_if_gone(call)
            elif instance.timed_out:
                self._attempt_failed(call, instance, timed_out(instance), now)
            else:
                call.flow.finish(instance, message.outputs)
                self._settle(call, now)
            self._after_task(container, now)
        for value in values:
            self.ledger.drop(value)

    def _task_failed(self, container: Container, message: wire.TaskFailed, now: float) -> None:
        self._note_held(container, message.held)
        found = self._release_task(container, message.task, now)
        if found is None:
            return
        instance, call = found
        self._note_times(instance, message.times, 0, now)
        container.pool.offer(container)
        error = message.error
        failure = Failure(
            error.code, error.kind, error.message, instance.program.name, instance.attempt, error.traceback
        )
        self._attempt_failed(call, instance, timed_out(instance) if instance.timed_out else failure, now)
        self._after_task(container, now)

    def _after_task(self, container: Container, now: float) -> None:
        pool = container.pool
        if pool.queued:
            self._dispatch(pool, now)
        self._fleet.stop_if_unwanted(container)

    @staticmethod
    def _note_times(instance: Instance, times: wire.Times, items: int, now: float) -> None:
        trace = instance.trace
        if trace is not None:
            trace.fetched = times.fetched
            trace.started = times.started
            trace.first_output = times.first_output
            trace.ended = times.ended
            trace.sent = now
            trace.items = items

    def _items_taken(self, container: Container, message: wire.Taken, now: float) -> None:
        self._note_held(container, message.held)
        instance = container.tasks.get(message.task)
        if instance is None:
            return
        call = self._calls[instance.flow.invocation]
        for number, name, _ in instance.program.data_inputs:
            if name == message.name:
                call.flow.taken(instance, number, message.items)
        self._settle(call, now)

    def _note_held(self, container: Container, slots: Iterable[Slot]) -> None:
        for slot in slots:
            if self.ledger.is_held(slot):
                self.ledger.hold_slot(slot)
                container.held[slot] = container.held.get(slot, 0) + 1

    def _starved(self, container: Container, message: wire.Starved, now: float) -> None:
        if message.task in container.tasks:
            self._starvation.note(message.task, message.released)

    def _unheld(self, container: Container, message: wire.Unheld, now: float) -> None:
        for slot in message.slots:
            for _ in range(container.held.pop(slot, 0)):
                self.ledger.drop_slot(slot)

    def _arena_made(self, container: Container, message: wire.ArenaMade, now: float) -> None:
        container.made(message)

    def _container_exited(self, event: events.ContainerExited, now: float) -> None:
        container = self._containers.pop(event.container, None)
        if container is None:
            return
        pool = container.pool
        was_starting = container.phase is ContainerPhase.STARTING
        pool.remove(container)
        lost = [found for task in tuple(container.tasks) if (found := self._release_task(container, task, now))]
        for instance, _ in lost:  # before the first of them ends an invocation that others belong to
            instance.phase = Phase.RETRYING
        for instance, call in lost:
            if instance.trace is not None:
                instance.trace.sent = now
            failure = crashed(instance.program.name, instance.attempt, event.reason)
            self._attempt_failed(call, instance, timed_out(instance) if instance.timed_out else failure, now)
        for slot, count in container.held.items():
            for _ in range(count):
                self.ledger.drop_slot(slot)
        self.ledger.owner_gone(container.arenas)
        if was_starting and not pool.closing:
            failure = crashed(pool.stage.name, 1, f"{event.reason} before it was ready")
            self._note_failed_start(pool, failure, now, at_once=False)
        else:
            self._dispatch(pool, now)
