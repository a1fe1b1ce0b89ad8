"""What containers say about their tasks and about themselves, and what their end leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dataflower import wire
from dataflower.core import events
from dataflower.core.call import Call
from dataflower.core.commands import StagePace, Tell
from dataflower.core.config import CoreConfig
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.events import Slot
from dataflower.core.failures import crashed, late_start, on_attempt, timed_out
from dataflower.core.instance import Instance, Phase
from dataflower.core.pool import Pool
from dataflower.core.protocol import violation
from dataflower.core.relay import handed_at
from dataflower.core.tasks import MOST_DISPLACED, Tasks
from dataflower.errors import Code, Failure

CLOCKS_APART_S = 1.0
"""How far the clocks of two hosts may come apart while they are connected."""
START_TRIES = 3
"""A container that dies this often in a row before it is ready takes the waiting tasks with it."""


class Reports(Tasks):
    """The part of a host core that listens to containers."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        self._sayings: dict[type, Callable[[Container, Any, float], None]] = {
            wire.Hello: self._hello,
            wire.StartFailed: self._start_failed,
            wire.TokenSent: self._token_sent,
            wire.Computed: self._computed,
            wire.TaskDone: self._task_done,
            wire.TaskFailed: self._task_failed,
            wire.BatchDone: self._batch_done,
            wire.Withdrawn: self._withdrawn,
            wire.Taken: self._items_taken,
            wire.Starved: self._starved,
            wire.Unheld: self._unheld,
            wire.ArenaMade: self._arena_made,
            wire.Trimmed: self._trimmed,
        }

    def _container_said(self, event: events.ContainerSaid, now: float) -> None:
        container = self._containers.get(event.container)
        if container is None or container.is_disbelieved:
            return
        message = event.message
        if wrong := violation(container, message, self._last_task):
            container.is_disbelieved = True
            self._fleet.kill(container, f"it broke the protocol: it {wrong}")
            return
        if type(message) is wire.TaskDone:
            self._task_done(container, message, now)
        else:
            self._sayings[type(message)](container, message, now)

    def _hello(self, container: Container, message: wire.Hello, now: float) -> None:
        if message.version != wire.VERSION:
            reason = f"speaks version {message.version} of the wire, not {wire.VERSION}"
            self._fleet.kill(container, reason)
            return
        container.ready_at = container.idle_since = now
        container.start = _phases(message)
        pool = container.pool
        pool.start_s = message.import_s + message.setup_s
        pool.ready(container)
        if pool.closing:
            self._fleet.stop(container)
            return
        if self._offloading is not None:  # before anybody asks it whether there is room for more
            self._offloading.started(container, message)
        self._preloading.started(container, message, now)
        self._dispatch(pool, now)
        if container.is_idle:
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
        instance = container.find(message.task)
        if instance is not None and self._devices is not None:
            self._devices.spoke(message.task, now)
        if instance is not None and not instance.is_doomed:
            call = self._calls[instance.flow.invocation]
            if instance.trace is not None:
                instance.trace.came(now)
            self._note_made(call, instance, message.index, message.outputs, now)
            call.flow.emit(instance, message.index, message.outputs)
            self._settle(call, now)
        for value in values:
            self.ledger.drop(value)

    def _computed(self, container: Container, message: wire.Computed, now: float) -> None:
        """A function is over, its outputs are being copied: its place is free, and all else is as before."""
        if container.pool.vacate(container, message.task, now) is not None:
            container.pool.offer(container)
            self._after_task(container, now)

    def _task_done(self, container: Container, message: wire.TaskDone, now: float) -> None:
        values = [v for v in message.outputs.values() if v.tensors or v.spilled is not None]
        for value in values:
            self.ledger.hold(value)
        if message.held:
            self._note_held(container, message.held)
        if self._devices is not None and container.find(message.task) is not None:
            self._devices.spoke(message.task, now)
        found = self._release_task(container, message.task, now)
        if found is not None:
            instance, call = found
            pool = container.pool
            pool.offer(container)
            if message.times.started and not instance.is_sent:
                self._note_run(container, message.times.ended - message.times.started, 1)
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
            if after.unbegun:
                after.unbegun = False
                after.phase = Phase.RETRYING
                self._give_back(call, after, now)
                self._dispatch(call.deployment.pools[after.program.index], now)
            else:
                self._attempt_failed(call, after, crashed(after.program.name, 1, reason), now)
        elif was_over and after.phase is Phase.RUNNING:
            self._stop_task(after, "cancelled", now)

    def _conclude(self, instance: Instance, call: Call, message: wire.TaskDone, now: float) -> None:
        """The task has left its container with results."""
        sent = handed_at(message, now) if message.forwarded else now
        self._note_times(instance, message.times, message.items, sent)
        if call.finished:
            call.flow.retire(instance)
            self._forget_if_gone(call)
        elif instance.timed_out:
            self._attempt_failed(call, instance, timed_out(instance), now)
        elif instance.repeats:
            self._note_end(call, instance, message.outputs, now)
            self._made_again(call, instance, now)
            self._settle(call, now)
        else:
            self._note_end(call, instance, message.outputs, now)
            call.flow.finish(instance, message.outputs)
            if instance.made is not None:
                self._see_to_rest(call, instance.made, now)
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
        self._note_times(instance, message.times, 0 if instance.trace is None else instance.trace.items, now)
        error = message.error
        if error.lost and self._is_loss(call, instance, error, now):
            return
        near = call.deadline and call.deadline - now < CLOCKS_APART_S and not call.finished
        if near and error.code is Code.DEADLINE_EXCEEDED and error.kind == "DeadlineExceeded":
            instance.phase = Phase.RETRYING
            self._deadline_passed(call, now)  # by the clock of another host it has
            self._forget_if_gone(call)
            return
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
        if over and over[-1][0].times.started and not over[-1][1].is_sent:
            times = over[-1][0].times
            self._note_run(container, times.ended - times.started, len(message.results))
        deferred, self._deferred = self._deferred, None
        for other in deferred:
            self._dispatch_batches(other, now)
        self._after_task(container, now)
        for value in values:
            self.ledger.drop(value)

    def _withdrawn(self, container: Container, message: wire.Withdrawn, now: float) -> None:
        """Tasks come back unbegun: somebody asked for them."""
        given: list[tuple[Instance, Call]] = []
        for task in message.tasks:
            found = None if task in container.sending else self._release_task(container, task, now)
            if found is not None:
                given.append(found)
        for instance, _ in given:  # before the first of them ends an invocation that others belong to
            instance.phase = Phase.RETRYING
        container.pool.offer(container)
        for instance, call in given:
            self._give_back(call, instance, now)
        self._after_task(container, now)

    def _after_task(self, container: Container, now: float) -> None:
        pool = container.pool
        if pool.queued:
            self._dispatch(pool, now)
        for letting in pool.letting:  # it may have been what others waited for there
            if letting.turnstile:
                self._dispatch(letting, now)
        self._fleet.stop_if_unwanted(container)

    def _note_run(self, container: Container, seconds: float, tasks: int) -> None:
        """So many tasks ran together for so long."""
        pool = container.pool
        slowdown = pool.slowdown
        if slowdown is None:
            pool.ran(seconds)
            return
        was_slow = slowdown.is_slow
        pool.ran(seconds, container, tasks)
        if slowdown.is_slow is not was_slow:
            factor = slowdown.factor or 1.0
            self._out.append(StagePace(pool.key, pool.stage.name, factor, slowdown.is_slow))

    @staticmethod
    def _note_times(instance: Instance, times: wire.Times, items: int, sent: float) -> None:
        trace = instance.trace
        if trace is not None:
            trace.fetched = times.fetched
            trace.started = times.started
            trace.first_output = times.first_output
            trace.ended = times.ended
            trace.sent = sent
            trace.items = items

    def _items_taken(self, container: Container, message: wire.Taken, now: float) -> None:
        self._note_held(container, message.held)
        instance = container.find(message.task)
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
            container.stuck = message.task
            self._unpin(container.number)
            self._recall(container.pool.unbegun(container))

    def _unheld(self, container: Container, message: wire.Unheld, now: float) -> None:
        for slot in message.slots:
            for _ in range(container.held.pop(slot, 0)):
                self.ledger.drop_slot(slot)

    def _trimmed(self, container: Container, message: wire.Trimmed, now: float) -> None:
        if self._offloading is not None:
            self._offloading.trimmed(container)

    def _arena_made(self, container: Container, message: wire.ArenaMade, now: float) -> None:
        container.made(message)
        if message.on_disk:
            self.ledger.on_disk.add(message.arena)

    def _is_loss(self, call: Call, instance: Instance, error: wire.ErrorRecord, now: float) -> bool:
        """Whether a task failed only because what it was to read is gone: then it waits until that is made again."""
        ledger = self.ledger
        lost = tuple(slot for slot in error.lost if slot in self._made or slot[0] in ledger.on_disk)
        if call.finished or instance.is_doomed or not any(ledger.is_held(slot) for slot in lost):
            return False
        instance.phase = Phase.RETRYING
        self._lose(lost, now)
        if call.flow.over:  # it can't be
            self._forget_if_gone(call)
            return True
        self._give_back(call, instance, now)
        self._dispatch(call.deployment.pools[instance.program.index], now)
        return True

    @staticmethod
    def _had_not_begun(instance: Instance, begun: frozenset[int] | None) -> bool:
        """Whether its container died before it began with it, so that this was no attempt."""
        if begun is None or instance.task in begun or instance.displaced >= MOST_DISPLACED:
            return False
        instance.displaced += 1
        return True

    def _container_exited(self, event: events.ContainerExited, now: float) -> None:
        container = self._containers.pop(event.container, None)
        if container is None:
            return
        pool = container.pool
        was_starting = container.phase is ContainerPhase.STARTING
        pool.remove(container)
        if self._offloading is not None:
            self._offloading.ended(container)
        if container.relief is not None:
            container.relief.cancel()
        tasks = (*container.tasks, *container.sending)
        freed = self._take_along(container, tasks, event.reason, event.begun, now)
        for slot, count in container.held.items():
            for _ in range(count):
                self.ledger.drop_slot(slot)
        self.ledger.owner_gone(container.arenas)
        if was_starting and not pool.closing:
            failure = crashed(pool.stage.name, 1, f"{event.reason} before it was ready")
            self._note_failed_start(pool, failure, now, at_once=False)
        else:
            self._dispatch(pool, now)
        self._preloading.ended(container, now)
        for other in freed:
            self._after_task(other, now)

    def _take_along(
        self, container: Container, tasks: Iterable[int], reason: str, told: frozenset[int] | None, now: float
    ) -> list[Container]:
        """A dead container takes these tasks along; `told`: what it had begun with. Returns where places are free."""
        begun = _all_begun(container, told)
        gone = [found for task in tasks if (found := self._release_task(container, task, now))]
        freed: list[Container] = []
        for instance, _ in gone:
            freed += self._break(instance, now)
            if instance.promised:
                instance.lost = reason  # what becomes of it is known when its inputs are
                instance.unbegun = self._had_not_begun(instance, begun)
        over = [found for found in gone if not found[0].promised]
        for instance, _ in over:  # before the first of them ends an invocation that others belong to
            instance.phase = Phase.RETRYING
        lost: list[tuple[Instance, Call]] = []
        for instance, call in over:
            if self._had_not_begun(instance, begun):
                self._give_back(call, instance, now)
            else:
                lost.append((instance, call))
        for instance, call in lost:
            if instance.trace is not None:
                instance.trace.sent = now
            failure = crashed(instance.program.name, instance.attempt, reason)
            self._attempt_failed(call, instance, timed_out(instance) if instance.timed_out else failure, now)
        return freed


def _all_begun(container: Container, begun: frozenset[int] | None) -> frozenset[int] | None:
    """The tasks that a dead container had begun with, by the last that each of its threads had; None: any of them."""
    if begun is None or container.is_disbelieved:
        return None
    over = container.sending
    started = [b for b in container.batches.values() if any(b.number < task <= b.last for task in begun)]
    return begun.union(over, *(batch.members for batch in started))


def _phases(message: wire.Hello) -> dict[str, float]:
    """Seconds of a start by phase; those of `setup` stand in the order in which they began, added up by kind."""
    found = {"import": message.import_s, "setup": message.setup_s}
    for part in message.phases:
        found[part.kind.value] = found.get(part.kind.value, 0.0) + part.seconds
    return found
