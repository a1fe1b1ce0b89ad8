"""The state machine of one host: events in, commands out. No I/O, no clock, no threads.

`HostCore.handle` is all there is. It matches tokens (`matching`), queues, places and runs tasks (`pool`, `tasks`),
listens to containers (`reports`) and keeps them (`fleet`), counts slots (`ledger`) and time (`timers`); the runtime
around it only carries bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msgspec import Struct

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.admission import Admission, hopeless_s
from dataflower.core.call import Call, Deployment
from dataflower.core.commands import Command, FinishInvocation, Tell
from dataflower.core.config import CoreConfig
from dataflower.core.container import ContainerPhase
from dataflower.core.device.preloader import Prepared
from dataflower.core.device.state import DeviceState
from dataflower.core.devices import HERE
from dataflower.core.dispatch import BatchPool
from dataflower.core.events import Slot
from dataflower.core.instance import Emitter, Phase
from dataflower.core.lineage import staying
from dataflower.core.matching import Flow
from dataflower.core.pool import Pool
from dataflower.core.preload import Library, stands_in
from dataflower.core.preloading import families
from dataflower.core.priority import join, ranked
from dataflower.core.program import CALLER
from dataflower.core.sending import Sendings
from dataflower.core.shared import Member, Sharing, is_shared, served
from dataflower.core.starvation import memory_full
from dataflower.core.trace import InvocationTrace
from dataflower.core.turn_pool import TurnPool
from dataflower.core.unread import Unread
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Slo, Stage

QUEUE_FULL_RETRY_S = 1.0
SOONEST_RETRY_S = 0.01
"""Nobody is told to come back sooner than this."""


class CoreStatistics(Struct, frozen=True):
    """Sizes of the core's books."""

    workflows: int
    invocations: int
    tasks: int
    queued: int
    containers: int
    slots: int
    timers: int


class StageCounts(Struct, frozen=True):
    """Containers and queue of a stage.

    `key`, `containers_of`: under which workflow and stage its containers run, which are others where it shares them
    (`is_shared`); `shares`: with which stages, as `workflow/stage`. `run_over_plan`: measured over planned run
    time, or None; `is_slow`: that is clearly too much.
    """

    stage: str
    starting: int
    idle: int
    busy: int
    queued: int
    key: str
    containers_of: str
    is_shared: bool
    shares: tuple[str, ...]
    run_over_plan: float | None = None
    is_slow: bool = False


class HostCore(Sendings):
    """All decisions of one host."""

    def __init__(self, config: CoreConfig | None = None) -> None:
        super().__init__(config or CoreConfig())
        self._deployments: dict[str, Deployment] = {}
        self._sharing = Sharing()
        self._libraries: dict[Library, None] = {}
        """Of the fork servers that are kept for stages that can be called."""
        self._over: list[Call] = []
        """Calls that ended just now and of which nobody keeps anything."""
        self._wake = float("inf")
        self._unread = Unread(self.timers, self.config.output_ttl_s, self._expire)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            events.WorkflowAdded: self._workflow_added,
            events.WorkflowRemoved: self._workflow_removed,
            events.PlanChanged: self._plan_changed,
            events.InvocationArrived: self._invocation_arrived,
            events.InputArrived: self._input_arrived,
            events.InputEnded: self._input_ended,
            events.CancelArrived: self._cancel_arrived,
            events.OutputTaken: self._output_taken,
            events.InvocationReleased: self._invocation_released,
            events.ContainerSaid: self._container_said,
            events.ContainerExited: self._container_exited,
            events.ContainerDied: self._container_died,
            events.MemoryLost: self._memory_lost,
            events.ZygoteStarted: self._zygote_started,
            events.ZygoteEnded: self._zygote_ended,
            events.ContainerSized: self._container_sized,
            events.WeightsSized: self._weights_sized,
            events.WeightsDropped: self._weights_dropped,
            events.ContainerSending: self._container_sending,
            events.Woke: self._woke,
        }

    def handle(self, event: events.Event, now: float) -> list[Command]:
        """Take in one event; `now` is CLOCK_MONOTONIC and never goes back. Returns what to do, in order."""
        out: list[Command] = []
        self._out = out
        if type(event) is events.ContainerSaid:  # nearly all; called straight away where this is compiled
            self._container_said(event, now)
        else:
            self._handlers[type(event)](event, now)
        if self._devices is not None and self._devices.due:
            self._take_turns(self._devices, now)
        if self._fleet.starved:
            self._fleet.place_starved(now)
        ledger = self.ledger
        if ledger.unwatched:
            self._forget_unmade()
        if ledger.due:
            self._release_slots()
        if self._starvation:
            self._end_starvation(event, now)
        if self._over:
            self._forget_over()
        if ledger.orphans:
            out.extend(commands.DropArena(arena) for arena in ledger.orphans)
            ledger.orphans = []
        wake = self.timers.next
        if wake != self._wake:
            self._wake = wake
            out.append(commands.WakeAt(wake))
        return out

    def _forget_over(self) -> None:
        for call in self._over:
            call.released = True  # no sooner: what goes on with this event still finds it
            self._forget_if_gone(call)
        self._over.clear()

    def _release_slots(self) -> None:
        by_owner: dict[int, list[Slot]] = {}
        for slot in self.ledger.due:
            by_owner.setdefault(slot[0] >> 16, []).append(slot)
        self.ledger.due = []
        for owner, slots in by_owner.items():
            container = self._containers.get(owner)
            if container is not None:
                container.released += len(slots)
            if owner == 0 or container is not None:
                is_idle = container is not None and container.is_idle
                self._out.append(Tell(owner, wire.ReleaseSlots(tuple(slots)), is_idle))

    def _end_starvation(self, event: events.Event, now: float) -> None:
        if isinstance(event, events.ContainerSaid) and isinstance(event.message, wire.TokenSent):
            self._starvation.forget(event.message.task)
        victim = self._starvation.victim(now, moved=not isinstance(event, events.Woke))
        if victim is not None:
            self._finish(self._calls[victim.flow.invocation], memory_full(victim), now)
            self._forget_unmade()
            self._release_slots()

    # --- workflows -------------------------------------------------------------------------------------------

    def _workflow_added(self, event: events.WorkflowAdded, now: float) -> None:
        workflow = event.program.workflow
        stages = [stage for stage in event.program.stages[1:] if not stage.stage.is_switch]
        deployment = Deployment(event.key, event.program, {})
        for stage in stages:
            if stage.stage.batch is not None:
                deployment.pools[stage.index] = BatchPool(event.key, stage, self.config.cpus)
            elif is_shared(stage.stage):
                owner = workflow.owner or workflow.name
                deployment.pools[stage.index] = self._sharing.join(
                    owner, Member(event.key, stage.stage), lambda key, common: self._pool(key, common, workflow.slo)
                )
                deployment.served[stage.index] = served(event.key, stage.stage)
            else:
                deployment.pools[stage.index] = self._pool(event.key, stage.stage, workflow.slo)
        join(workflow, named := deployment.named_pools())
        self._deployments[event.key] = deployment
        pools = dict.fromkeys(deployment.pools.values())
        for name in event.places:
            if name in named:
                named[name].is_far = True
        if event.places:
            deployment.staying = staying(event.program, event.places, lines=self.config.lines)
            for index in deployment.staying:
                deployment.pools[index].stays = True
        found = families(pools)
        deployment.libraries = tuple(found)
        if self._offloading is not None:
            for library, members in found.items():
                for pool in members:
                    if isinstance(pool, TurnPool) and self._devices is not None and self._devices.is_here(pool):
                        self._offloading.deployed(pool, library)
                    else:
                        self._offloading.uses(pool, library)
        if self._preloading.follows:
            self._preloading.deployed(event.key, pools, now)
        else:
            self._out.extend(commands.Preload(*library) for library in found)
            self._libraries.update(dict.fromkeys(found))
        for pool in pools:
            self._dispatch(pool, now)

    def _pool(self, key: str, stage: Stage, slo: Slo | None) -> Pool:
        if self._devices is not None and self._devices.shares(stage):
            return self._devices.pool(key, stage, self.config.cpus, slo)
        return Pool(key, stage, self.config.cpus)

    def _workflow_removed(self, event: events.WorkflowRemoved, now: float) -> None:
        deployment = self._deployments.get(event.key)
        if deployment is not None:
            deployment.removed = True
            self._preloading.removed(event.key, now)
            self._close_if_unused(deployment)

    def _plan_changed(self, event: events.PlanChanged, now: float) -> None:
        """Containers are kept: what they are collects differently, what lacks is started, what is too many leaves."""
        deployment = self._deployments.get(event.key)
        if deployment is None:
            return
        plan = event.plan
        stages = {} if plan is None else {stage.stage: stage for stage in plan.stages}
        pools = deployment.named_pools()
        former, deployment.admission = deployment.admission, None
        if plan is not None and plan.admission:
            program = deployment.program
            streams = any(output.stream for output in program.outputs)
            deployment.admission = Admission(plan, program.workflow, pools, streams=streams)
            if former is not None:
                deployment.admission.take_over(former, now)
        for name, pool in pools.items():
            member = Member(event.key, deployment.program.workflow.stages[name])
            if not self._sharing.follow(pool, member, stages.get(name)):
                pool.follow(stages.get(name))
        for name, pool in pools.items():
            if isinstance(pool, BatchPool) and name in stages and stages[name].behind:
                pool.let_in_by_turn([pools[before] for before in stages[name].behind if before in pools])
        self._preloading.planned(event.key, pools, stages, 0.0 if plan is None else plan.rate, now)
        for pool in pools.values():
            for container in pool.idle:
                self._fleet.watch_idle(container, now)
            self._dispatch(pool, now)

    def _close_if_unused(self, deployment: Deployment) -> None:
        if not deployment.removed or deployment.calls:
            return
        if self._deployments.get(deployment.key) is deployment:  # else it was applied again meanwhile
            del self._deployments[deployment.key]
        for index, pool in deployment.pools.items():
            if self._sharing.leave(pool, Member(deployment.key, deployment.program.stages[index].stage)):
                continue
            self._fleet.close(pool)
            if self._devices is not None and isinstance(pool, TurnPool):
                self._devices.forget(pool)
            if self._offloading is not None:
                self._offloading.removed(pool)
        if not self._preloading.follows:
            self._let_libraries_go()

    def _let_libraries_go(self) -> None:
        """Fork servers that no stage needs any more need not be kept."""
        needed = dict.fromkeys(library for other in self._deployments.values() for library in other.libraries)
        gone = [one for one in self._libraries if one not in needed and not any(stands_in(one, n) for n in needed)]
        for library in gone:
            del self._libraries[library]
            self._out.append(commands.Unload(*library))
        for library in needed:  # perhaps their containers came from one of those
            if any(library[1] is other[1] and set(library[0]).issubset(other[0]) for other in gone):
                self._out.append(commands.Preload(*library))

    # --- preloading ------------------------------------------------------------------------------------------

    def _zygote_started(self, event: events.ZygoteStarted, now: float) -> None:
        if self._offloading is not None:
            self._offloading.zygote_started(event.modules, event.seconds, event.nbytes)
        self._preloading.zygote_started(event, now)

    def _zygote_ended(self, event: events.ZygoteEnded, now: float) -> None:
        if self._offloading is not None:
            self._offloading.zygote_ended(event.modules)
        self._preloading.zygote_ended(event)

    def _container_sized(self, event: events.ContainerSized, now: float) -> None:
        container = self._containers.get(event.container)
        if container is None:
            return
        if self._offloading is not None:
            self._offloading.container_sized(container, event.nbytes, now)
        self._preloading.container_sized(container, event.nbytes, now)

    def _weights_sized(self, event: events.WeightsSized, now: float) -> None:
        if self._offloading is not None:
            self._offloading.weights_sized(event.model, event.nbytes, event.seconds, event.held)
        self._preloading.weights_sized(event, now)

    def _weights_dropped(self, event: events.WeightsDropped, now: float) -> None:
        if self._offloading is not None:
            self._offloading.weights_dropped(event.model, event.gone)

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
        if not event.accepted and self._is_refused(event, deployment, now):
            return
        flow = Flow(event.invocation, deployment.program, self.ledger)
        call = Call(flow, deployment, event.deadline, now)
        self._calls[event.invocation] = call
        deployment.calls += 1
        if self._preloading.follows:
            self._preloading.called(event.key, now)
        if self._offloading is not None:
            self._offloading.called(dict.fromkeys(deployment.pools.values()), now)
        if event.deadline:
            call.deadline_timer = self.timers.at(event.deadline, lambda at: self._deadline_passed(call, at))
        flow.start(event.inputs, event.open_inputs)
        for port, emitter in flow.caller.items():
            self._out.append(commands.TakeInput(event.invocation, port, emitter.granted))
        self._settle(call, now)

    def _is_refused(self, event: events.InvocationArrived, deployment: Deployment, now: float) -> bool:
        """Whether there is no room for it, or no time."""
        for index, pool in deployment.pools.items():
            stage = deployment.program.stages[index].stage
            if pool.backlog >= stage.scaling.max_queued:
                message = f"the queue of stage {stage.name!r} is full ({pool.backlog} tasks)"
                failure = Failure(Code.RESOURCE_EXHAUSTED, "QueueFull", message, retry_after_s=QUEUE_FULL_RETRY_S)
                self._refuse(event, now, failure)
                return True
        late = 0.0
        if deployment.admission is not None:
            late = deployment.admission.consider(now, event.deadline, alone=not deployment.calls, inputs=event.inputs)
        elif event.deadline:
            late = hopeless_s(deployment.pools.values(), self._fleet.starved, now, event.deadline)
        if late > 0:
            message = f"it would be late by {late:.3f} s: more has been accepted than can be served in time"
            failure = Failure(Code.RESOURCE_EXHAUSTED, "Overloaded", message, retry_after_s=max(late, SOONEST_RETRY_S))
            self._refuse(event, now, failure)
        return late > 0

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
            if call.finished:
                self._unread.note(call, now)
            self._settle(call, now)

    def _invocation_released(self, event: events.InvocationReleased, now: float) -> None:
        call = self._calls.get(event.invocation)
        if call is None:
            return
        if not call.finished:
            self._finish(call, Failure(Code.CANCELLED, "Cancelled", "released by its caller"), now)
        call.flow.outputs.release()
        call.released = True
        self._unread.forget(call)
        self._forget_if_gone(call)

    def _deadline_passed(self, call: Call, now: float) -> None:
        if not call.finished:
            allowed = max(call.deadline - call.trace.arrived, 0.0)
            limit = f"{allowed:.3f} s" if allowed >= 0.01 else f"{allowed * 1000:.3f} ms"
            message = f"not finished within its {limit}{call.flow.whereabouts()}"
            failure = Failure(Code.DEADLINE_EXCEEDED, "DeadlineExceeded", message)
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
            if instance.phase is Phase.RUNNING:
                self._feed(call, instance, now)
        if flow.over:
            return
        if flow.granted:
            for emitter in flow.granted:
                self._grant(call, emitter)
            flow.granted.clear()
        if flow.is_stuck and not call.finished:
            failure = Failure(Code.INTERNAL, "StuckInvocation", "no task can run and outputs are missing")
            self._finish(call, failure, now)
            return
        for pool in ranked(pools) if self._fleet.is_full else pools:
            self._dispatch(pool, now)

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
        self._let_go_of_made(call)
        for instance in call.flow.abandon():
            if instance.phase is Phase.RUNNING:
                instance.cancelled = True
                reason = "cancelled" if failure is None else failure.kind
                self._stop_task(instance, reason, now)
                self._warn(instance.promise, reason)
            else:
                call.deployment.pools[instance.program.index].withdraw(instance)
        call.trace.finished = now
        admission = call.deployment.admission
        if admission is not None and (failure is None or failure.code is Code.DEADLINE_EXCEEDED):
            admission.ended(call.trace.arrived, now)
        is_kept = self._unread.note(call, now)
        self._out.append(FinishInvocation(call.flow.invocation, failure, call.trace, is_kept))
        if not is_kept:
            self._over.append(call)
        call.deployment.calls -= 1
        self._close_if_unused(call.deployment)

    def _expire(self, call: Call) -> None:
        self._out.append(commands.ExpireOutputs(call.flow.invocation))

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
            queued=sum(p.queued for p in {p for d in self._deployments.values() for p in d.pools.values()}),
            containers=len(self._containers),
            slots=self.ledger.slots,
            timers=len(self.timers),
        )

    def stages(self, key: str) -> tuple[StageCounts, ...]:
        """Of each stage of a workflow that runs in containers; those that share have what is there for all of them."""
        deployment = self._deployments.get(key)
        if deployment is None:
            return ()
        rows = []
        for name, pool in deployment.named_pools().items():
            ready = [c for c in pool.containers.values() if c.phase is ContainerPhase.READY]
            busy = sum(1 for c in ready if not c.is_idle)
            others = [f"{m.key.rpartition('@')[0]}/{m.stage.name}" for m in self._sharing.members(pool)]
            own = f"{key.rpartition('@')[0]}/{name}"
            counts = (pool.starting, len(ready) - busy, busy, pool.backlog)
            shares = tuple(sorted({other for other in others if other != own}))
            pace = (None, False) if pool.slowdown is None else (pool.slowdown.factor, pool.slowdown.is_slow)
            rows.append(StageCounts(name, *counts, pool.key, pool.stage.name, bool(others), shares, *pace))
        return tuple(rows)

    def prepared(self, now: float) -> tuple[tuple[Prepared, bool], ...]:
        """What could be ready ahead and whether it is, the densest first: with preloading of all workflows, else what
        plans count on; without preloading but under a cap on memory, what is there.
        """
        if self._offloading is None or self._preloading.follows:
            return self._preloading.prepared(now)
        return self._offloading.prepared(now)

    def devices(self) -> tuple[DeviceState, ...]:
        """Devices on which stages with weights take turns; none where they don't."""
        if self._devices is None:
            return ()
        memory = self._offloading
        states = self._devices.states()
        if memory is None:
            return states
        cap, used, moved = memory.cap_bytes, memory.used(), memory.moved
        return tuple(
            replace(state, cap_bytes=cap, used_bytes=used, offloaded=moved) if state.name == HERE else state
            for state in states
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books disagree with each other."""
        self.ledger.check_integrity()
        if self._devices is not None:
            self._devices.check_integrity()
        for deployment in self._deployments.values():
            for pool in deployment.pools.values():
                pool.check_integrity(lambda i: (i.phase is Phase.RUNNING or i.promised) and i.task in self._tasks)
        running: dict[str, int] = {}
        for task, instance in self._tasks.items():
            assert instance.task == task
            assert self._containers[instance.container].find(task) is instance
            running[instance.flow.invocation] = running.get(instance.flow.invocation, 0) + 1
        for name, call in self._calls.items():
            assert call.running == running.get(name, 0)
            call.flow.check_integrity()


__all__ = ["CoreConfig", "CoreStatistics", "HostCore", "StageCounts"]
