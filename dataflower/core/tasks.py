"""Tasks in containers: given out, told to stop, tried again, lost; and what containers say about them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from typing import Any

from dataflower import wire
from dataflower.core import events
from dataflower.core.batching import CostError
from dataflower.core.call import Call
from dataflower.core.commands import Command, Tell
from dataflower.core.config import CoreConfig
from dataflower.core.dispatch import Batch, BatchPool
from dataflower.core.events import Slot
from dataflower.core.failures import crashed, late_start, on_attempt, stand_in, timed_out
from dataflower.core.fleet import Fleet
from dataflower.core.inputs import at_start
from dataflower.core.instance import Emitter, Instance, Phase
from dataflower.core.ledger import Ledger
from dataflower.core.pool import Container, ContainerPhase, Pool
from dataflower.core.protocol import violation
from dataflower.core.relay import Relays
from dataflower.core.retry import Jitter, caught_by, next_delay_s
from dataflower.core.starvation import Starvation
from dataflower.core.timers import Timer, Timers
from dataflower.errors import Code, Failure

START_TRIES = 3
"""A container that dies this often in a row before it is ready takes the waiting tasks with it."""


class Tasks(Relays):
    """The part of a host core that runs what matching has made ready. `_settle` and `_finish` are the other part's."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.ledger = Ledger()
        self.timers = Timers()
        self._calls: dict[str, Call] = {}
        self._tasks: dict[int, Instance] = {}
        self._timeouts: dict[int, Timer] = {}
        self._fleet = Fleet(config.max_containers, self.timers, self._say, self._start_is_late, config.start_timeout_s)
        self._containers = self._fleet.containers
        self._starvation = Starvation(self._tasks, self._containers, self._calls, self.timers)
        self._jitter = Jitter(config.seed)
        self._last_task = 0
        self._batches: dict[int, Batch] = {}
        """By task, of those that run together with others."""
        self._deferred: dict[BatchPool, None] | None = None
        """While a batch is told of: pools to dispatch from when all of its tasks are over."""
        self._out: list[Command] = []
        self._sayings: dict[type, Callable[[Container, Any, float], None]] = {
            wire.Hello: self._hello,
            wire.StartFailed: self._start_failed,
            wire.TokenSent: self._token_sent,
            wire.TaskDone: self._task_done,
            wire.TaskFailed: self._task_failed,
            wire.BatchDone: self._batch_done,
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
        if isinstance(pool, BatchPool):
            try:
                pool.enlist(instance, call.deadline, call.trace.arrived, now)
            except CostError as error:
                failure = Failure(Code.INVALID_ARGUMENT, "CostError", str(error), pool.stage.name, instance.attempt + 1)
                self._finish(call, failure, now)
            return pool
        pool.enqueue(instance, call.deadline)
        return pool

    def _dispatch(self, pool: Pool, now: float) -> None:
        """Give queued tasks to free containers, then start as many containers as the rest calls for."""
        if isinstance(pool, BatchPool):
            self._dispatch_batches(pool, now)
            return
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

    def _dispatch_batches(self, pool: BatchPool, now: float) -> None:
        """The same for a stage whose tasks run in batches."""
        if self._deferred is not None:
            self._deferred[pool] = None
            return
        while pool.queued and (found := pool.take_batch(now)) is not None:
            members, container = found
            for instance in members:
                call = self._calls[instance.flow.invocation]
                if call.deadline and now >= call.deadline and not call.finished:
                    self._deadline_passed(call, now)
            live = [instance for instance in members if instance.phase is Phase.QUEUED]
            if live:
                self._run_batch(pool, live, container, now)
        if pool.queued and (pool.timer is None or pool.alarm < pool.timer.at):
            self._set_alarm(pool)
        if pool.queued or pool.min_replicas:
            self._fleet.fill(pool, now)

    def _set_alarm(self, pool: BatchPool) -> None:
        """Look at the queue again when its next batch has waited long enough; an earlier alarm is left to find that."""
        if pool.timer is not None:
            pool.timer.cancel()
        pool.timer = None
        if pool.alarm < math.inf:
            pool.timer = self.timers.at(pool.alarm, lambda at: self._look_again(pool, at))

    def _look_again(self, pool: BatchPool, now: float) -> None:
        pool.timer = None
        self._dispatch_batches(pool, now)

    def _run_batch(self, pool: BatchPool, members: list[Instance], container: Container, now: float) -> None:
        self._last_task = number = self._last_task + 1
        batch = Batch(number, {})
        waited_since = now if container.tasks else container.idle_since
        pool.occupy(container, batch)
        messages = []
        for instance in members:
            messages.append(self._begin(self._calls[instance.flow.invocation], instance, container, now))
            batch.members[instance.task] = instance
            self._batches[instance.task] = batch
            if instance.trace is not None:
                instance.trace.batch = len(members)
                instance.trace.batch_wait_s = now - max(instance.trace.queued, waited_since)
        self._out.append(Tell(container.number, wire.RunBatch(tuple(messages))))

    def _run(self, call: Call, instance: Instance, container: Container, now: float) -> None:
        self._out.append(Tell(container.number, self._begin(call, instance, container, now, relay=True)))

    def _begin(
        self, call: Call, instance: Instance, container: Container, now: float, *, relay: bool = False
    ) -> wire.RunTask:
        """The task is in the container from now on; its inputs and limits for it."""
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
        return wire.RunTask(
            task,
            at_start(instance),
            call.deadline,
            items,
            nbytes,
            call.flow.invocation,
            instance.tag,
            instance.attempt,
            self._promise(call, instance) if relay and instance.program.follower is not None else None,
        )

    def _timed_out(self, instance: Instance, task: int, now: float) -> None:
        if instance.task == task and task in self._tasks and not instance.is_doomed:
            instance.timed_out = True
            self._stop_task(instance, "timeout", now)

    def _stop_task(self, instance: Instance, reason: str, now: float) -> None:
        task = instance.task
        if instance.container not in self._containers:
            return  # it died just now, and this is one of the tasks that it took along
        self._out.append(Tell(instance.container, wire.CancelTask(task, reason)))
        batch = self._batches.get(task)
        if batch is not None and not batch.is_doomed:
            return  # it runs on for the others
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
        if container.batches:
            batch = self._batches.pop(task)
            del batch.members[task]
            if not batch.members:
                del container.batches[batch.number]
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
        if container is None or container.is_disbelieved:
            return
        message = event.message
        if wrong := violation(container, message, self._last_task):
            container.is_disbelieved = True
            self._fleet.kill(container, f"it broke the protocol: it {wrong}")
            return
        self._sayings[type(message)](container, message, now)

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

    def _start_is_late(self, container: Container, limit_s: float, now: float) -> None:
        pool = container.pool
        container.start_limit = None
        self._fleet.kill(container, f"it was not ready within start_timeout_s = {limit_s:g}")
        if not pool.closing:
            self._note_failed_start(pool, late_start(pool.stage.name, limit_s), now, at_once=True)

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
            pool = container.pool
            pool.offer(container)
            if message.times.started:
                pool.ran(message.times.ended - message.times.started)
            if instance.promise is None:
                self._conclude(instance, call, message, now)
            else:
                self._conclude_relay(instance, call, message, now)
            self._after_task(container, now)
        for value in values:
            self.ledger.drop(value)

    def _conclude_relay(self, instance: Instance, call: Call, message: wire.TaskDone, now: float) -> None:
        """The task has left its container with results, and there was a promise."""
        after = instance.promise
        assert after is not None
        if message.forwarded != after.task:
            freed = self._break(instance, now)
            self._conclude(instance, call, message, now)
            for container in freed:
                self._after_task(container, now)
            return
        instance.promise = None
        instance.timed_out = False  # too late for that: its results are being read
        was_over = call.finished
        self._keep(call, after, message, now)
        self._conclude(instance, call, message, now)
        if after.promised:  # a lie: not all of its inputs were there
            self._out.append(Tell(after.container, wire.CancelTask(after.task, "a promise was broken")))
            instance.promise = after
            for container in self._break(instance, now):
                self._after_task(container, now)
        elif after.lost:
            reason, after.lost = after.lost, ""
            self._attempt_failed(call, after, crashed(after.program.name, 1, reason), now)
        elif was_over and after.phase is Phase.RUNNING:
            self._stop_task(after, "cancelled", now)

    def _warn(self, promised: Instance | None, reason: str) -> None:
        """Tell promised tasks to stop: some may be on their way without our knowing yet."""
        while promised is not None:
            promised.cancelled = True
            if not promised.lost:
                self._out.append(Tell(promised.container, wire.CancelTask(promised.task, reason)))
            promised = promised.promise

    def _conclude(self, instance: Instance, call: Call, message: wire.TaskDone, now: float) -> None:
        """The task has left its container with results."""
        self._note_times(instance, message.times, message.items, now)
        if call.finished:
            call.flow.retire(instance)
            self._forget_if_gone(call)
        elif instance.timed_out:
            self._attempt_failed(call, instance, timed_out(instance), now)
        else:
            call.flow.finish(instance, message.outputs)
            self._settle(call, now)

    def _task_failed(self, container: Container, message: wire.TaskFailed, now: float) -> None:
        self._note_held(container, message.held)
        found = self._release_task(container, message.task, now)
        if found is None:
            return
        container.pool.offer(container)
        freed = [container, *self._break(found[0], now)] if found[0].promise is not None else [container]
        self._conclude_failed(*found, message, now)
        for other in freed:
            self._after_task(other, now)

    def _conclude_failed(self, instance: Instance, call: Call, message: wire.TaskFailed, now: float) -> None:
        """The task has left its container without results."""
        self._note_times(instance, message.times, 0, now)
        error = message.error
        failure = Failure(
            error.code, error.kind, error.message, instance.program.name, instance.attempt, error.traceback
        )
        self._attempt_failed(call, instance, timed_out(instance) if instance.timed_out else failure, now)

    def _batch_done(self, container: Container, message: wire.BatchDone, now: float) -> None:
        """Several tasks are over at once: what they set free is given out when all of them are done with."""
        over: list[tuple[wire.TaskDone | wire.TaskFailed, Instance, Call]] = []
        values: list[wire.Value] = []
        for result in message.results:
            if isinstance(result, wire.TaskDone):
                values.extend(result.outputs.values())
        for value in values:
            self.ledger.hold(value)
        for result in message.results:
            self._note_held(container, result.held)
            found = self._release_task(container, result.task, now)
            if found is not None:
                found[0].phase = Phase.RETRYING  # one of them may end an invocation that others belong to
                over.append((result, *found))
        pool, self._deferred = container.pool, {}
        pool.offer(container)
        for result, instance, call in over:
            if isinstance(result, wire.TaskDone):
                self._conclude(instance, call, result, now)
            else:
                self._conclude_failed(instance, call, result, now)
        if over and over[-1][0].times.started:
            pool.ran(over[-1][0].times.ended - over[-1][0].times.started)
        deferred, self._deferred = self._deferred, None
        for other in deferred:
            self._dispatch_batches(other, now)
        self._after_task(container, now)
        for value in values:
            self.ledger.drop(value)

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
        gone = [found for task in tuple(container.tasks) if (found := self._release_task(container, task, now))]
        freed: list[Container] = []
        for instance, _ in gone:
            freed += self._break(instance, now)
            if instance.promised:
                instance.lost = event.reason  # what becomes of it is known when its inputs are
        lost = [found for found in gone if not found[0].promised]
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
        for other in freed:
            self._after_task(other, now)
