"""Tasks in containers: given out, told to stop, tried again."""

from __future__ import annotations

import abc
import math

from dataflower import wire
from dataflower.core.ahead import PATIENCE_S
from dataflower.core.batching import CostError
from dataflower.core.call import Call
from dataflower.core.commands import Command, Tell
from dataflower.core.config import CoreConfig
from dataflower.core.container import Container
from dataflower.core.devices import Device, Devices
from dataflower.core.dispatch import Batch, BatchPool
from dataflower.core.failures import stand_in
from dataflower.core.fleet import Fleet
from dataflower.core.inputs import at_start
from dataflower.core.instance import Emitter, Instance, Phase
from dataflower.core.ledger import Ledger
from dataflower.core.offloading import Offloading
from dataflower.core.pool import Pool
from dataflower.core.prefetch import FAR_BYTES, MOST_FETCHED, worth_fetching
from dataflower.core.preloading import Preloading
from dataflower.core.priority import ranked
from dataflower.core.recovery import Recovery
from dataflower.core.retry import Jitter, caught_by, next_delay_s
from dataflower.core.starvation import Starvation
from dataflower.core.timers import Timer, Timers
from dataflower.core.turn_pool import TurnPool
from dataflower.errors import Code, Failure

MOST_DISPLACED = 8
"""A task whose containers died this often before they had begun with it is taken to have a hand in that."""
TIMED_OUT = "timeout"
"""Why a task is told to stop whose attempt took too long: it may be tried again, unlike those stopped otherwise."""


class Tasks(Recovery):
    """The part of a host core that runs what matching has made ready. The rest is in `reports` and `host`."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.ledger = Ledger()
        self.timers = Timers()
        self._calls: dict[str, Call] = {}
        self._tasks: dict[int, Instance] = {}
        self._timeouts: dict[int, Timer] = {}
        self._fleet = Fleet(
            config.max_containers,
            self.timers,
            self._say,
            self._start_is_late,
            config.start_timeout_s,
            recall=lambda container: self._recall(container.pool.unbegun(container)),
        )
        self._containers = self._fleet.containers
        self._preloading = Preloading(
            config.preload_memory_bytes,
            self._fleet,
            self.timers,
            self._say,
            follows=config.preload,
            device_bytes=config.preload_device_bytes,
        )
        self._devices = Devices(config, self.timers) if config.device_batches else None
        """Set where stages with weights take turns on the devices that they share."""
        self._offloading: Offloading | None = None
        """Set where their memory is limited."""
        if self._devices is not None and config.device_memory_bytes:
            self._offloading = Offloading(
                config.device_memory_bytes,
                self._fleet,
                self.timers,
                self._say,
                first_s=self._devices.first_s,
                refuse=lambda pool, why, now: self._note_failed_start(pool, why, now, at_once=True),
            )
            self._fleet.memory = self._offloading
        self._starvation = Starvation(self._tasks, self._containers, self._calls, self.timers)
        self._jitter = Jitter(config.seed)
        self._last_task = 0
        self._posts = config.cpus == 1
        self._made = {}
        self._batches: dict[int, Batch] = {}
        """By task, of those that run together with others."""
        self._deferred: dict[BatchPool, None] | None = None
        """While a batch is told of: pools to dispatch from when all of its tasks are over."""
        self._out: list[Command] = []

    @abc.abstractmethod
    def _settle(self, call: Call, now: float) -> None:
        """Carry on what a change in the call's flow brought."""

    @abc.abstractmethod
    def _finish(self, call: Call, failure: Failure | None, now: float) -> None:
        """The call is over."""

    @abc.abstractmethod
    def _deadline_passed(self, call: Call, now: float) -> None:
        """The call took too long."""

    @abc.abstractmethod
    def _start_is_late(self, container: Container, limit_s: float, now: float) -> None:
        """A container takes too long to start."""

    @abc.abstractmethod
    def _note_failed_start(self, pool: Pool, failure: Failure, now: float, *, at_once: bool) -> None:
        """A pool gets no container."""

    def _say(self, command: Command) -> None:
        self._out.append(command)

    def _forget_if_gone(self, call: Call) -> None:
        if call.is_gone:
            self._calls.pop(call.flow.invocation, None)

    # --- tasks -----------------------------------------------------------------------------------------------

    def _enqueue(self, call: Call, instance: Instance, now: float) -> Pool:
        pool = call.deployment.pools[instance.program.index]
        if self.ledger.lost and self._must_wait(call, instance, now):
            return pool
        call.record(instance, now)
        if pool.underway is not None:
            pool.underway.add(instance, call.trace.arrived)
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
        if isinstance(pool, TurnPool):
            if self._devices is not None:
                self._devices.stir(pool)  # `_take_turns` follows when all that has happened is known
            return
        while pool.queued and (pair := pool.take(now)) is not None:
            instance, container = pair
            call = self._calls[instance.flow.invocation]
            if call.deadline and now >= call.deadline:
                pool.enqueue(instance, call.deadline)  # `_finish` withdraws it with the others
                self._deadline_passed(call, now)
                continue
            self._run(call, instance, container, now)
        if pool.queued:
            self._prefetch(pool, now)
        if pool.backlog or pool.min_replicas:
            self._fleet.fill(pool, now)

    def _take_turns(self, devices: Devices, now: float) -> None:
        """Give tasks to containers wherever something may begin, in the order of their devices."""
        while devices.due:
            device, _ = devices.due.popitem()
            while (turn := devices.take(device, now)) is not None:
                for instance in turn.instances:
                    turn.pool.chosen(instance)
                    call = self._calls[instance.flow.invocation]
                    if call.deadline and now >= call.deadline and not call.finished:
                        self._deadline_passed(call, now)
                live = [instance for instance in turn.instances if instance.phase is Phase.QUEUED]
                if not live:
                    devices.passed(device)
                    continue
                for instance in live:
                    self._run(self._calls[instance.flow.invocation], instance, turn.container, now)
                    if instance.trace is not None:
                        instance.trace.batch = len(live)
                devices.began(device, turn, [instance.task for instance in live], now)
            self._fill_device(device, now)

    def _fill_device(self, device: Device, now: float) -> None:
        for pool in ranked(device.pools.values()):
            if pool.backlog or pool.min_replicas:
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
        if pool.queued:
            self._prefetch(pool, now)
        if pool.queued or pool.min_replicas:
            self._fleet.fill(pool, now)

    def _prefetch(self, pool: Pool, now: float) -> None:
        """Have containers that are busy fetch what the next tasks will read (`core.prefetch`)."""
        if pool.ahead and pool.is_moving(now):
            return  # they will have more tasks ahead in a moment
        upcoming = pool.upcoming(min(MOST_FETCHED, pool.size))
        near = len(upcoming)
        if pool.is_far:
            upcoming = pool.upcoming(pool.size * MOST_FETCHED)
        for position, instance in enumerate(upcoming):
            if not instance.is_fetched:
                refs = worth_fetching(instance)
                if position >= near and sum([ref.nbytes for ref in refs]) > FAR_BYTES:
                    break
                instance.is_fetched = True
                if refs and (targets := pool.soonest_free()):
                    self._out.append(Tell(targets[position % len(targets)].number, wire.Prefetch(refs)))

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
            batch.last = instance.task
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
        self._tasks[task] = instance
        pool = container.pool
        instance.ahead = not pool.batches and len(container.tasks) >= pool.concurrency
        instance.recalled = instance.is_sent = instance.is_fetched = False
        instance.is_wanted = pool.may_copy_on and pool.backlog > 0
        pool.seat(container, instance, now)
        if instance.ahead and pool.watch is None:
            pool.watch = self.timers.at(now + PATIENCE_S, lambda at: self._look_after(pool, at))
        call.running += 1
        trace = instance.trace
        if trace is not None:
            trace.attempt = instance.attempt
            trace.container = container.number
            trace.dispatched = now
            trace.cold = container.ready_at > trace.queued
            if trace.cold:
                trace.start = container.start
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
            self._promise(call, instance, now) if relay and not instance.ahead else None,
            call.deployment.served.get(instance.program.index) if call.deployment.served else None,
            instance.is_wanted,
        )

    def _look_after(self, pool: Pool, now: float) -> None:
        """Tasks were given ahead: have those back that others could run now, because their container does not move."""
        pool.watch = None
        if pool.beyond:
            pool.watch = self.timers.at(now + PATIENCE_S, lambda at: self._look_after(pool, at))
            self._recall(pool.stalled(now))
            for container in pool.standing(now):
                for instance in pool.unbegun(container)[:MOST_FETCHED]:
                    if not instance.is_fetched:
                        instance.is_fetched = True
                        if refs := worth_fetching(instance):
                            self._out.append(Tell(container.number, wire.Prefetch(refs)))
            if pool.queued:
                self._prefetch(pool, now)

    def _recall(self, instances: list[Instance]) -> None:
        """Have these tasks back from their containers, unless they have begun."""
        by_container: dict[int, list[int]] = {}
        for instance in instances:
            instance.recalled = True
            by_container.setdefault(instance.container, []).append(instance.task)
        for number, tasks in by_container.items():
            self._out.append(Tell(number, wire.Withdraw(tuple(tasks))))

    def _give_back(self, call: Call, instance: Instance, now: float) -> None:
        """A task has left its container before it began (its phase is RETRYING): it waits as if nothing had been."""
        instance.attempt -= 1
        instance.timed_out = False
        if call.finished:
            call.flow.retire(instance)
            self._forget_if_gone(call)
            return
        instance.phase = Phase.QUEUED
        pool = call.deployment.pools[instance.program.index]
        if self.ledger.lost and self._must_wait(call, instance, now):
            return
        if isinstance(pool, BatchPool):
            pool.enlist(instance, call.deadline, call.trace.arrived, now)  # what it costs was found out before
        else:
            pool.put_back(instance, call.deadline)

    def _timed_out(self, instance: Instance, task: int, now: float) -> None:
        if instance.task == task and task in self._tasks and not instance.is_doomed:
            instance.timed_out = True
            self._stop_task(instance, TIMED_OUT, now)

    def _stop_task(self, instance: Instance, reason: str, now: float) -> None:
        task = instance.task
        if instance.container not in self._containers:
            return  # it died just now, and this is one of the tasks that it took along
        if instance.is_sent:  # its function is over, but bytes that nobody wants need not come
            self._out.append(Tell(instance.container, wire.CancelTask(task, reason)))
            return
        if instance.ahead:
            instance.recalled = True
            self._out.append(Tell(instance.container, wire.Withdraw((task,), reason)))
        else:
            self._out.append(Tell(instance.container, wire.CancelTask(task, reason)))
        batch = self._batches.get(task)
        if batch is not None and not batch.is_doomed:
            return  # it runs on for the others
        self._end_soon(task, reason, now)

    def _end_soon(self, task: int, reason: str, now: float) -> None:
        self.timers.at(now + self.config.cancel_grace_s, lambda at: self._kill_if_deaf(task, reason, at))

    def _warn(self, promised: Instance | None, reason: str) -> None:
        """Tell promised tasks to stop: some may be on their way without our knowing yet."""
        while promised is not None:
            promised.cancelled = True
            if not promised.lost:
                self._out.append(Tell(promised.container, wire.CancelTask(promised.task, reason)))
            promised = promised.promise

    def _kill_if_deaf(self, task: int, reason: str, now: float) -> None:
        """The task was told to stop and hasn't: end its container, once that doesn't hurt others in it."""
        instance = self._tasks.get(task)
        if instance is None or instance.is_sent:
            return
        container = self._containers[instance.container]
        pool = container.pool
        running = list(container.tasks.values())
        if not pool.batches:
            del running[pool.concurrency :]  # the rest waits behind these and has not begun
        running += container.sending.values()
        if instance in running and all(other.is_doomed for other in running):
            self._fleet.kill(container, f"did not stop when told ({reason})")
        else:
            if instance in running:
                pool.drain(container)
                self._recall(pool.unbegun(container))
            self.timers.at(now + self.config.cancel_grace_s, lambda at: self._kill_if_deaf(task, reason, at))

    def _release_task(self, container: Container, task: int, now: float) -> tuple[Instance, Call] | None:
        """A task left its container, one way or the other."""
        instance = container.pool.unseat(container, task, now)
        if instance is None:
            return None
        del self._tasks[task]
        if self._devices is not None:
            self._devices.left(task, now)
        if (timeout := self._timeouts.pop(task, None)) is not None:
            timeout.cancel()
        if container.batches:
            self._leave_batch(container, task, now)
        call = self._calls[instance.flow.invocation]
        call.running -= 1
        if container.is_idle:
            container.idle_since = now
            if self._offloading is not None:
                self._offloading.idle(container, now)
            if not container.keep_alive_set:
                self._fleet.watch_idle(container, now)
        return instance, call

    def _leave_batch(self, container: Container, task: int, now: float) -> None:
        batch = self._batches.pop(task, None)
        if batch is None:
            return
        del batch.members[task]
        if not batch.members:
            del container.batches[batch.number]
        elif batch.is_doomed:  # it ran on for this one only
            self._end_soon(next(iter(batch.members)), "nobody wants the rest of its batch", now)

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
        clause = None if instance.repeats else caught_by(stage.catch, failure)
        if clause is None:
            self._finish(call, failure, now)
            self._forget_if_gone(call)
            return
        call.flow.finish(instance, stand_in(clause.goto, clause.output, failure))
        if instance.made is not None:
            self._see_to_rest(call, instance.made, now)
        self._settle(call, now)

    def _try_again(self, call: Call, instance: Instance, now: float) -> None:
        if call.finished or instance.phase is not Phase.RETRYING or instance in call.lacking:
            return
        instance.phase = Phase.QUEUED
        instance.timed_out = False
        self._dispatch(self._enqueue(call, instance, now), now)
