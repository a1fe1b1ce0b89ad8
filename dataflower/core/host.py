"""The state machine of one host: events in, commands out. No I/O, no clock, no threads.

`HostCore.handle` is all there is. It matches tokens (`matching`), queues and places tasks (`pool`), counts slots
(`ledger`) and keeps time (`timers`); the runtime around it only carries bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.call import Call, Deployment
from dataflower.core.commands import Command, FinishInvocation, Tell
from dataflower.core.events import Slot
from dataflower.core.instance import Emitter, Instance, Phase
from dataflower.core.ledger import Ledger
from dataflower.core.matching import Flow
from dataflower.core.pool import Container, ContainerPhase, Pool
from dataflower.core.preload import zygote_kinds
from dataflower.core.program import CALLER, goto_port
from dataflower.core.retry import Jitter, caught_by, next_delay_s
from dataflower.core.timers import Timer, Timers
from dataflower.core.trace import InvocationTrace
from dataflower.core.values import EMPTY, constant
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import ERROR_PORT
from dataflower.wire import Value

START_TRIES = 3
"""A container that dies this often in a row before it is ready takes the waiting tasks with it."""
QUEUE_FULL_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Limits of a host.

    `cpus`: the default for `max_replicas`. `cancel_grace_s`: how long a task that was told to stop may go on before its
    container is killed.
    """

    cpus: int = 2
    max_containers: int = 64
    cancel_grace_s: float = 2.0
    seed: int = 0


class CoreStatistics(Struct, frozen=True):
    """Sizes of the core's books."""

    workflows: int
    invocations: int
    tasks: int
    queued: int
    containers: int
    slots: int
    timers: int


class HostCore:
    """All decisions of one host."""

    def __init__(self, config: CoreConfig | None = None) -> None:
        self.config = config or CoreConfig()
        self.ledger = Ledger()
        self.timers = Timers()
        self._deployments: dict[str, Deployment] = {}
        self._calls: dict[str, Call] = {}
        self._tasks: dict[int, Instance] = {}
        self._timeouts: dict[int, Timer] = {}
        self._containers: dict[int, Container] = {}
        self._starved: dict[Pool, None] = {}
        """Pools that wait for the host to have room for another container."""
        self._jitter = Jitter(self.config.seed)
        self._last_task = 0
        self._last_container = 0
        self._wake = float("inf")
        self._out: list[Command] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            events.WorkflowAdded: self._workflow_added,
            events.WorkflowRemoved: self._workflow_removed,
            events.InvocationArrived: self._invocation_arrived,
            events.InputArrived: self._input_arrived,
            events.InputEnded: self._input_ended,
            events.CancelArrived: self._cancel_arrived,
            events.OutputTaken: self._output_taken,
            events.InvocationReleased: self._invocation_released,
            events.ContainerSaid: self._container_said,
            events.ContainerExited: self._container_exited,
            events.Woke: self._woke,
        }
        self._sayings: dict[type, Callable[[Container, Any, float], None]] = {
            wire.Hello: self._hello,
            wire.StartFailed: self._start_failed,
            wire.TokenSent: self._token_sent,
            wire.TaskDone: self._task_done,
            wire.TaskFailed: self._task_failed,
            wire.Taken: self._items_taken,
            wire.Unheld: self._unheld,
            wire.ArenaMade: self._arena_made,
        }

    def handle(self, event: events.Event, now: float) -> list[Command]:
        """Take in one event; `now` is CLOCK_MONOTONIC and never goes back. Returns what to do, in order."""
        out: list[Command] = []
        self._out = out
        self._handlers[type(event)](event, now)
        if self._starved:
            self._place_starved(now)
        ledger = self.ledger
        if ledger.due:
            self._release_slots()
        if ledger.orphans:
            out.extend(commands.DropArena(arena) for arena in ledger.orphans)
            ledger.orphans = []
        wake = self.timers.next
        if wake != self._wake:
            self._wake = wake
            out.append(commands.WakeAt(wake))
        return out

    def _release_slots(self) -> None:
        by_owner: dict[int, list[Slot]] = {}
        for slot in self.ledger.due:
            by_owner.setdefault(slot[0] >> 16, []).append(slot)
        self.ledger.due = []
        for owner, slots in by_owner.items():
            if owner == 0 or owner in self._containers:
                self._out.append(Tell(owner, wire.ReleaseSlots(tuple(slots))))

    # --- workflows -------------------------------------------------------------------------------------------

    def _workflow_added(self, event: events.WorkflowAdded, now: float) -> None:
        pools = {
            stage.index: Pool(event.key, stage.stage, self.config.cpus)
            for stage in event.program.stages[1:]
            if not stage.stage.is_switch
        }
        self._deployments[event.key] = Deployment(event.key, event.program, pools)
        for modules in zygote_kinds(pool.stage.preload for pool in pools.values()):
            self._out.append(commands.Preload(modules))
        for pool in pools.values():
            self._dispatch(pool, now)

    def _workflow_removed(self, event: events.WorkflowRemoved, now: float) -> None:
        deployment = self._deployments.get(event.key)
        if deployment is not None:
            deployment.removed = True
            self._close_if_unused(deployment)

    def _close_if_unused(self, deployment: Deployment) -> None:
        if not deployment.removed or deployment.calls:
            return
        if self._deployments.get(deployment.key) is deployment:  # else it was applied again meanwhile
            del self._deployments[deployment.key]
        for pool in deployment.pools.values():
            pool.closing = True
            self._starved.pop(pool, None)
            for container in tuple(pool.containers.values()):
                if container.phase is not ContainerPhase.LEAVING and not container.tasks:
                    self._stop(container)

    # --- invocations -----------------------------------------------------------------------------------------

    def _invocation_arrived(self, event: events.InvocationArrived, now: float) -> None:
        values = event.inputs.values()
        for value in values:
            self.ledger.hold(value)
        self._admit(event, now)
        for value in values:
            self.ledger.drop(value)

    def _admit(self, event: events.InvocationArrived, now: float) -> None:
        deployment = self._deployments.get(event.key)
        if deployment is None or deployment.removed:
            self._refuse(event, now, Failure(Code.NOT_FOUND, "NotFound", f"no workflow {event.key!r}"))
            return
        for pool in deployment.pools.values():
            if pool.queued >= pool.stage.scaling.max_queued:
                message = f"the queue of stage {pool.stage.name!r} is full ({pool.queued} tasks)"
                failure = Failure(Code.RESOURCE_EXHAUSTED, "QueueFull", message, retry_after_s=QUEUE_FULL_RETRY_S)
                self._refuse(event, now, failure)
                return
        flow = Flow(event.invocation, deployment.program, self.ledger)
        call = Call(flow, deployment, event.deadline, now)
        self._calls[event.invocation] = call
        deployment.calls += 1
        if event.deadline:
            call.deadline_timer = self.timers.at(event.deadline, lambda at: self._deadline_passed(call, at))
        flow.start(event.inputs, event.open_inputs)
        for port, emitter in flow.caller.items():
            self._out.append(commands.TakeInput(event.invocation, port, emitter.granted))
        self._settle(call, now)

    def _refuse(self, event: events.InvocationArrived, now: float, failure: Failure) -> None:
        trace = InvocationTrace(event.invocation, event.key, now, now, deadline=event.deadline, tasks=[])
        self._out.append(FinishInvocation(event.invocation, failure, trace))

    def _input_arrived(self, event: events.InputArrived, now: float) -> None:
        call = self._calls.get(event.invocation)
        self.ledger.hold(event.value)
        if call is not None and not call.finished and call.flow.feed_caller(event.port, event.value):
            self._settle(call, now)
        self.ledger.drop(event.value)

    def _input_ended(self, event: events.InputEnded, now: float) -> None:
        call = self._calls.get(event.invocation)
        if call is not None and not call.finished:
            call.flow.end_caller(event.port)
            self._settle(call, now)

    def _cancel_arrived(self, event: events.CancelArrived, now: float) -> None:
        call = self._calls.get(event.invocation)
        if call is not None and not call.finished:
            self._finish(call, event.failure, now)

    def _output_taken(self, event: events.OutputTaken, now: float) -> None:
        call = self._calls.get(event.invocation)
        if call is not None:
            call.flow.outputs.taken(event.port, event.items)
            self._settle(call, now)

    def _invocation_released(self, event: events.InvocationReleased, now: float) -> None:
        call = self._calls.get(event.invocation)
        if call is None:
            return
        if not call.finished:
            self._finish(call, Failure(Code.CANCELLED, "Cancelled", "released by its caller"), now)
        call.flow.outputs.release()
        call.released = True
        self._forget_if_gone(call)

    def _deadline_passed(self, call: Call, now: float) -> None:
        if not call.finished:
            late = call.deadline - call.trace.arrived
            failure = Failure(Code.DEADLINE_EXCEEDED, "DeadlineExceeded", f"not finished within its {late:.3f} s")
            self._finish(call, failure, now)

    def _settle(self, call: Call, now: float) -> None:
        """Carry on what a change in the flow brought: outputs, feeds, credit, ready tasks, perhaps the end."""
        flow = call.flow
        outputs = flow.outputs
        if outputs.said:
            if not call.trace.first_output:
                call.trace.first_output = now
            self._out.extend(outputs.said)
            outputs.said = []
        if call.finished:
            flow.granted.clear()
            return
        if flow.failure is not None:
            self._finish(call, flow.failure, now)
            return
        if flow.is_complete:
            self._finish(call, None, now)
            return
        pools: dict[Pool, None] = {}
        ready, flow.ready = flow.ready, []
        for instance in ready:
            if instance.phase is Phase.QUEUED:
                pools[self._enqueue(call, instance, now)] = None
        fed, flow.fed = flow.fed, []
        for instance in fed:
            self._feed(instance)
        if flow.granted:
            for emitter in flow.granted:
                self._grant(call, emitter)
            flow.granted.clear()
        if flow.is_stuck:
            failure = Failure(Code.INTERNAL, "StuckInvocation", "no task can run and outputs are missing")
            self._finish(call, failure, now)
            return
        for pool in pools:
            self._dispatch(pool, now)

    def _enqueue(self, call: Call, instance: Instance, now: float) -> Pool:
        call.record(instance, now)
        pool = call.deployment.pools[instance.program.index]
        pool.enqueue(instance, call.deadline)
        return pool

    def _feed(self, instance: Instance) -> None:
        if instance.phase is not Phase.RUNNING:
            return
        for number, name, is_stream in instance.program.data_inputs:
            if not is_stream:
                continue
            stream = instance.streams[number]
            values = stream.unsent()
            if values:
                self._out.append(Tell(instance.container, wire.Feed(instance.task, name, values)))
            if stream.ended and not stream.reported:
                stream.reported = True
                self._out.append(Tell(instance.container, wire.FeedEnd(instance.task, name)))

    def _grant(self, call: Call, emitter: Emitter) -> None:
        if not emitter.open or not emitter.wants_grant():
            return
        emitter.granted, emitter.granted_bytes = emitter.limits()
        if emitter.owner.program.index == CALLER:
            self._out.append(commands.TakeInput(call.flow.invocation, emitter.port, emitter.granted))
        else:
            grant = wire.Grant(emitter.owner.task, emitter.granted, emitter.granted_bytes)
            self._out.append(Tell(emitter.owner.container, grant))

    def _finish(self, call: Call, failure: Failure | None, now: float) -> None:
        """End the invocation: nothing of it starts any more, what runs is told to stop."""
        call.finished = True
        if call.deadline_timer is not None:
            call.deadline_timer.cancel()
        for instance in call.flow.abandon():
            if instance.phase is Phase.RUNNING:
                instance.cancelled = True
                self._stop_task(instance, "cancelled" if failure is None else failure.kind, now)
            else:
                call.deployment.pools[instance.program.index].withdraw(instance)
        call.trace.finished = now
        self._out.append(FinishInvocation(call.flow.invocation, failure, call.trace))
        call.deployment.calls -= 1
        self._close_if_unused(call.deployment)

    def _forget_if_gone(self, call: Call) -> None:
        if call.is_gone:
            self._calls.pop(call.flow.invocation, None)

    # --- tasks -----------------------------------------------------------------------------------------------

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
        for _ in range(pool.wanted(now)):
            if not self._has_room(pool):
                self._starved[pool] = None
                break
            self._start(pool)

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
            self._inputs(instance),
            call.deadline,
            items,
            nbytes,
            call.flow.invocation,
            instance.tag,
            instance.attempt,
        )
        self._out.append(Tell(container.number, message))

    @staticmethod
    def _inputs(instance: Instance) -> tuple[wire.TaskInput, ...]:
        inputs: list[wire.TaskInput] = []
        for number, name, is_stream in instance.program.data_inputs:
            if is_stream:
                stream = instance.streams[number]
                stream.sent = stream.taken = stream.base
                values = stream.unsent()
                stream.reported = stream.ended
                inputs.append(wire.Opened(name, values, stream.ended))
                continue
            payload = instance.payloads[number]
            assert payload is not None
            inputs.append(wire.Gathered(name, payload) if isinstance(payload, tuple) else wire.Single(name, payload))
        return tuple(inputs)

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
            self._kill(container, f"did not stop when told ({reason})")
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
                self._watch_idle(container, now)
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
        call.flow.finish(instance, self._stand_in(clause.goto, clause.output, failure))
        self._settle(call, now)

    @staticmethod
    def _stand_in(goto: str | None, output: Any, failure: Failure) -> dict[str, Value]:
        """What a caught failure puts on the stage's value ports."""
        values = {port: constant(value) for port, value in (output or {}).items()}
        if goto is not None:
            values[goto_port(goto)] = EMPTY
            values[ERROR_PORT] = constant(
                {"kind": failure.kind, "message": failure.message, "stage": failure.stage, "attempt": failure.attempt}
            )
        return values

    def _try_again(self, call: Call, instance: Instance, now: float) -> None:
        if call.finished or instance.phase is not Phase.RETRYING:
            return
        instance.phase = Phase.QUEUED
        instance.timed_out = False
        self._dispatch(self._enqueue(call, instance, now), now)

    # --- containers ------------------------------------------------------------------------------------------

    def _start(self, pool: Pool) -> None:
        self._last_container += 1
        container = Container(self._last_container, pool)
        self._containers[container.number] = container
        pool.add(container)
        self._out.append(commands.StartContainer(container.number, pool.key, pool.stage))

    def _stop(self, container: Container) -> None:
        container.pool.leave(container)
        self._out.append(commands.StopContainer(container.number))

    def _kill(self, container: Container, reason: str) -> None:
        container.pool.leave(container)
        self._out.append(commands.KillContainer(container.number, reason))

    def _has_room(self, pool: Pool) -> bool:
        """Whether the host can take one more container; if not, another pool's longest idle one is sent away.

        The limit gives way where keeping it would mean to wait for ever: nothing moves, and a queue has no container.
        """
        if len(self._containers) < self.config.max_containers:
            return True
        if any(c.phase is ContainerPhase.LEAVING for c in self._containers.values()):
            return False
        pools = {c.pool: None for c in self._containers.values() if c.pool is not pool}
        spare = [p.idle[0] for p in pools if p.surplus() > 0 and not p.queued and p.idle]
        if spare:
            self._stop(min(spare, key=lambda c: c.idle_since))
            return False
        return bool(pool.queued) and not pool.size and self._is_standstill

    @property
    def _is_standstill(self) -> bool:
        """Whether no container will do anything of its own accord: they are idle, or their tasks wait for others."""
        return all(
            c.phase is not ContainerPhase.STARTING and all(i.may_wait for i in c.tasks.values())
            for c in self._containers.values()
        )

    def _place_starved(self, now: float) -> None:
        """Something happened: try again for the pools that wait for room, those with the fewest containers first."""
        starved = sorted(self._starved, key=lambda p: p.size)
        self._starved.clear()
        for pool in starved:
            self._dispatch(pool, now)

    def _watch_idle(self, container: Container, now: float) -> None:
        container.keep_alive_set = True
        due = container.idle_since + container.pool.stage.scaling.keep_alive_s
        self.timers.at(max(due, now), lambda at: self._stop_if_idle(container, at))

    def _stop_if_idle(self, container: Container, now: float) -> None:
        container.keep_alive_set = False
        pool = container.pool
        if container.phase is not ContainerPhase.READY or container.tasks:
            return
        if now < container.idle_since + pool.stage.scaling.keep_alive_s:
            self._watch_idle(container, now)
        elif pool.surplus() > 0:
            self._stop(container)

    def _container_said(self, event: events.ContainerSaid, now: float) -> None:
        container = self._containers.get(event.container)
        if container is not None:
            self._sayings[type(event.message)](container, event.message, now)

    def _hello(self, container: Container, message: wire.Hello, now: float) -> None:
        if message.version != wire.VERSION:
            reason = f"speaks version {message.version} of the wire, not {wire.VERSION}"
            self._kill(container, reason)
            return
        container.ready_at = container.idle_since = now
        pool = container.pool
        pool.ready(container)
        if pool.closing:
            self._stop(container)
            return
        self._dispatch(pool, now)
        if not container.tasks and not container.keep_alive_set:
            self._watch_idle(container, now)

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
                self._attempt_failed(call, instance, _on_attempt(failure, instance.attempt), now)
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
                self._attempt_failed(call, instance, _timeout(instance), now)
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
        self._attempt_failed(call, instance, _timeout(instance) if instance.timed_out else failure, now)
        self._after_task(container, now)

    def _after_task(self, container: Container, now: float) -> None:
        pool = container.pool
        if pool.queued:
            self._dispatch(pool, now)
        if container.tasks:
            return
        if container.phase is ContainerPhase.DRAINING or (pool.closing and container.phase is ContainerPhase.READY):
            self._stop(container)

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
            message = f"the container of stage {instance.program.name!r} {event.reason}"
            failure = Failure(Code.INTERNAL, "ContainerCrashed", message, instance.program.name, instance.attempt)
            self._attempt_failed(call, instance, _timeout(instance) if instance.timed_out else failure, now)
        for slot, count in container.held.items():
            for _ in range(count):
                self.ledger.drop_slot(slot)
        self.ledger.owner_gone(container.arenas)
        if was_starting and not pool.closing:
            message = f"the container of stage {pool.stage.name!r} {event.reason} before it was ready"
            failure = Failure(Code.INTERNAL, "ContainerCrashed", message, pool.stage.name, 1)
            self._note_failed_start(pool, failure, now, at_once=False)
        else:
            self._dispatch(pool, now)

    def _woke(self, event: events.Woke, now: float) -> None:
        self._wake = float("inf")
        self.timers.fire(now)

    # --- for people ------------------------------------------------------------------------------------------

    def statistics(self) -> CoreStatistics:
        """Sizes of the core's books, now."""
        return CoreStatistics(
            workflows=len(self._deployments),
            invocations=len(self._calls),
            tasks=len(self._tasks),
            queued=sum(p.queued for d in self._deployments.values() for p in d.pools.values()),
            containers=len(self._containers),
            slots=self.ledger.slots,
            timers=len(self.timers),
        )

    def stages(self, key: str) -> tuple[tuple[str, int, int, int, int], ...]:
        """(stage, starting, idle, busy, queued) for each stage of a workflow that runs in containers."""
        deployment = self._deployments.get(key)
        if deployment is None:
            return ()
        rows = []
        for pool in deployment.pools.values():
            ready = [c for c in pool.containers.values() if c.phase is ContainerPhase.READY]
            busy = sum(1 for c in ready if c.tasks)
            rows.append((pool.stage.name, pool.starting, len(ready) - busy, busy, pool.queued))
        return tuple(rows)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books disagree with each other."""
        self.ledger.check_integrity()
        for deployment in self._deployments.values():
            for pool in deployment.pools.values():
                pool.check_integrity(lambda i: i.phase is Phase.RUNNING and i.task in self._tasks)
        running: dict[str, int] = {}
        for task, instance in self._tasks.items():
            assert instance.task == task
            assert task in self._containers[instance.container].tasks
            running[instance.flow.invocation] = running.get(instance.flow.invocation, 0) + 1
        for name, call in self._calls.items():
            assert call.running == running.get(name, 0)
            call.flow.check_integrity()


def _timeout(instance: Instance) -> Failure:
    limit = instance.program.stage.timeout_s
    message = f"the task took longer than timeout_s = {limit:g}"
    return Failure(Code.DEADLINE_EXCEEDED, "Timeout", message, instance.program.name, instance.attempt)


def _on_attempt(failure: Failure, attempt: int) -> Failure:
    return Failure(failure.code, failure.kind, failure.message, failure.stage, attempt, failure.traceback)
