"""Traffic against the very core that runs in production, on a clock that jumps from event to event.

Containers are numbers here: a batch takes as long as the profile says, a start as long as it is told. What the core
answers is carried out by the simulation; there is no second copy of any policy. Arrivals come from outside, so a
simulation is repeatable to the last event.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.plan import DispatchPlan
from dataflower.core.program import compile_program
from dataflower.errors import Code, Failure
from dataflower.planner.profile import Profiles
from dataflower.planner.tempo import Tempo, steady
from dataflower.spec.workflow import Stage, Workflow

Duration = Callable[[str, int, str], float]
"""Seconds that a batch takes, by stage, number of tasks and kind of device."""

_VALUE = wire.Value(b"\xc0")


@dataclass(frozen=True, slots=True)
class Simulated:
    """A workflow and how it behaves.

    Attributes:
        workflow: stages whose functions are never called.
        duration: how long they would take.
        plan: what it is run by; None for what the file says.
        items: stage -> stream port -> items for one task, on the average.
        sends: stage -> bytes of a task's outputs, where it runs on another host; they come at `resources.bandwidth`.
    """

    workflow: Workflow
    duration: Duration
    plan: DispatchPlan | None = None
    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sends: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class StageFigures:
    """What was seen of a stage. `batches` by size; `busy_s` of all its containers; `longest_s` from queued to done."""

    tasks: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    busy_s: float = 0.0
    longest_s: float = 0.0
    containers: int = 0


@dataclass(slots=True)
class Figures:
    """What became of the invocations.

    Attributes:
        latency_s: of each that succeeded, in order of their ends; with `arrived_s`, when it had arrived.
        refused: by admission or full queues, at once.
        failed: otherwise, deadlines included.
        stages: by workflow key and stage.
        events: how many the core has handled.
        ended_s: when the last one was over.
    """

    latency_s: list[float] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    refused: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    stages: dict[tuple[str, str], StageFigures] = field(default_factory=dict)
    events: int = 0
    ended_s: float = 0.0

    def within(self, slo_s: float) -> float:
        """Share of the accepted invocations that succeeded within the SLO; 1 if there were none."""
        accepted = len(self.latency_s) + sum(self.failed.values())
        good = sum(1 for seconds in self.latency_s if seconds <= slo_s * (1 + 1e-6) + 1e-5)
        return good / accepted if accepted else 1.0


def profiled(profiles: Profiles, models: Mapping[str, str]) -> Duration:
    """Durations by profile, straight between measured batches. `models`: stage -> model."""
    known: dict[tuple[str, int, str], float] = {}

    def duration(stage: str, batch: int, hardware: str) -> float:
        key = (stage, batch, hardware)
        if key not in known:
            known[key] = profiles.find(models[stage], hardware).estimate(batch).duration_s
        return known[key]

    return duration


def planned(plan: DispatchPlan) -> Duration:
    """Every batch takes as long as a full one of the smallest group that would take it: the safe side."""
    groups = {stage.stage: sorted((g.batch, g.hardware, g.duration_s) for g in stage.groups) for stage in plan.stages}

    def duration(stage: str, batch: int, hardware: str) -> float:
        own = groups.get(stage, ())
        return next((d for b, h, d in own if b >= batch and h == hardware), own[-1][2] if own else 0.0)

    return duration


class _Container:
    """`waiting`: tasks that it was given while as many as it may `running` at a time were there."""

    __slots__ = ("given", "hardware", "key", "rate", "running", "sent_at", "stage", "waiting")

    def __init__(self, key: str, stage: Stage, hardware: str, given: Simulated) -> None:
        self.key = key
        self.stage = stage
        self.hardware = hardware
        self.given = given
        self.running = 0
        self.waiting: deque[wire.RunTask] = deque()
        self.sent_at = 0.0
        """When all that its tasks have handed over will be where it belongs."""
        self.rate = 0.0
        """Bytes per second at which its last outputs came."""


class Simulation:
    """A host whose containers exist only as times. One `run` for each instance."""

    def __init__(
        self,
        workflows: Mapping[str, Simulated],
        *,
        start_s: float = 0.0,
        max_containers: int = 1 << 20,
        deadline_s: float | None = None,
        config: CoreConfig | None = None,
        line_bytes_per_s: float = math.inf,
        tempo: Tempo | None = None,
    ) -> None:
        """`workflows` by key; `start_s`: how long a container takes to start; `deadline_s` of each invocation.

        `line_bytes_per_s`: what all containers together can send from other hosts. `tempo`: a machine that is
        not as fast as `duration` says (`planner.tempo`).
        """
        self.core = HostCore(config or CoreConfig(cpus=1 << 16, max_containers=max_containers))
        self.figures = Figures()
        self._workflows = workflows
        self._inputs = {
            key: {port.name: _VALUE for port in given.workflow.inputs if not port.stream}
            for key, given in workflows.items()
        }
        self._start_s = start_s
        self._tempo = tempo or steady(1.0)
        self._deadline_s = deadline_s
        self._now = 0.0
        self._due: list[tuple[float, int, events.Event | Callable[[], None]]] = []
        self._sequence = 0
        self._wake_at = math.inf
        self._containers: dict[int, _Container] = {}
        self._running: dict[int, tuple[int, tuple[wire.RunTask, ...], wire.Times]] = {}
        """First task of a run -> container, tasks, begin and end."""
        self._leads: dict[int, int] = {}
        """Task -> first task of its run."""
        self._cancelled: set[int] = set()
        self._emitted: dict[tuple[str, str], int] = {}
        self._arrivals: dict[str, float] = {}
        self._line_bytes_per_s = line_bytes_per_s
        self._line_at = 0.0
        self._number = 0
        self._arriving = True
        for key, given in workflows.items():
            self._tell(events.WorkflowAdded(key, compile_program(given.workflow)))
            if given.plan is not None:
                self._tell(events.PlanChanged(key, given.plan))

    def run(self, arrivals: Iterable[tuple[float, str]], until_s: float = math.inf) -> Figures:
        """Play arrivals (time, workflow key), in order of time, to the end of the last invocation or `until_s`.

        Containers that are to be there from the start are ready before the first arrival.
        """
        due = self._due
        self._settle(self._start_s)
        begin = self._now
        self._arriving = True
        for time, key in arrivals:
            at = begin + time
            if at - begin > until_s:
                break
            self._settle(at)
            self._arrive(at, key)
        self._arriving = False
        while due or self._wake_at < math.inf:
            at = min(due[0][0] if due else math.inf, self._wake_at)
            if at - begin > until_s or not self._arrivals:
                break
            self._settle(at)
        self.figures.ended_s = self._now - begin
        return self.figures

    @property
    def now(self) -> float:
        """The simulated time, in seconds."""
        return self._now

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call back again and again as long as there are invocations."""

        def tick() -> None:
            call()
            if self._arrivals or self._arriving:
                self._later(seconds, tick)

        self._later(seconds, tick)

    def change_plan(self, key: str, plan: DispatchPlan | None) -> None:
        """Run a workflow by another plan from now on."""
        self._tell(events.PlanChanged(key, plan))

    def _settle(self, until: float) -> None:
        """Everything that is due up to and at this time."""
        due = self._due
        while True:
            at = due[0][0] if due else math.inf
            if self._wake_at < at:
                if self._wake_at > until:
                    break
                self._now, self._wake_at = max(self._now, self._wake_at), math.inf
                self._tell(events.Woke())
            elif at <= until:
                self._now = max(self._now, at)
                self._deliver(heapq.heappop(due)[2])
            else:
                break
        self._now = max(self._now, until)

    def _arrive(self, at: float, key: str) -> None:
        self._number += 1
        name = str(self._number)
        self._arrivals[name] = at
        deadline = at + self._deadline_s if self._deadline_s is not None else 0.0
        self._tell(events.InvocationArrived(name, key, dict(self._inputs[key]), (), deadline))

    def _later(self, delay_s: float, event: events.Event | Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (self._now + delay_s, self._sequence, event))

    def _tell(self, event: events.Event) -> None:
        pending = [event]
        for given in pending:
            self.figures.events += 1
            for command in self.core.handle(given, self._now):
                answer = self._do(command)
                if answer is not None:
                    pending.append(answer)

    # --- what the core wants ---------------------------------------------------------------------------------

    def _do(self, command: commands.Command) -> events.Event | None:
        kind = type(command)
        if kind is commands.Tell:
            self._message(command.container, command.message)  # type: ignore[union-attr]
        elif isinstance(command, commands.FinishInvocation):
            return self._finished(command)
        elif isinstance(command, commands.WakeAt):
            self._wake_at = command.time
        elif isinstance(command, commands.StartContainer):
            given = self._workflows[command.key]
            self._containers[command.container] = _Container(command.key, command.stage, command.hardware, given)
            figures = self._of(command.key, command.stage.name)
            figures.containers += 1
            self._later(self._start_s, events.ContainerSaid(command.container, wire.Hello(wire.VERSION, 1)))
        elif isinstance(command, commands.StopContainer | commands.KillContainer):
            gone = self._containers.pop(command.container, None)
            if gone is not None:
                self._of(gone.key, gone.stage.name).containers -= 1
                self._later(0.0, events.ContainerExited(command.container, "left"))
        return None

    def _of(self, key: str, stage: str) -> StageFigures:
        found = self.figures.stages.get((key, stage))
        if found is None:
            found = self.figures.stages[key, stage] = StageFigures()
        return found

    def _message(self, number: int, message: wire.ToContainer) -> None:
        if isinstance(message, wire.RunBatch):
            self._start(number, message.tasks)
        elif isinstance(message, wire.RunTask):
            container = self._containers[number]
            container.waiting.append(message)
            self._begin_waiting(number, container)
        elif isinstance(message, wire.Withdraw):
            self._withdraw(number, message)
        elif isinstance(message, wire.CancelTask):
            lead = self._leads.get(message.task)
            if lead is None:
                return
            self._cancelled.add(message.task)
            _, tasks, _ = self._running[lead]
            if all(task.task in self._cancelled for task in tasks):  # nobody wants it any more
                self._later(0.0, self._ended(lead))

    def _begin_waiting(self, number: int, container: _Container) -> None:
        while container.waiting and container.running < at_a_time(container.stage):
            container.running += 1
            self._start(number, (container.waiting.popleft(),))

    def _withdraw(self, number: int, message: wire.Withdraw) -> None:
        container = self._containers[number]
        back = tuple(task.task for task in container.waiting if task.task in message.tasks)
        container.waiting = deque(task for task in container.waiting if task.task not in back)
        if back:
            self._later(0.0, events.ContainerSaid(number, wire.Withdrawn(back)))
        for task in message.tasks if message.reason else ():
            self._message(number, wire.CancelTask(task, message.reason))

    def _start(self, number: int, tasks: tuple[wire.RunTask, ...]) -> None:
        container = self._containers[number]
        stage, lead = container.stage.name, tasks[0].task
        seconds = container.given.duration(stage, len(tasks), container.hardware) * self._tempo(
            self._now - self._start_s
        )
        figures = self._of(container.key, stage)
        figures.tasks += len(tasks)
        figures.busy_s += seconds
        figures.batches[len(tasks)] = figures.batches.get(len(tasks), 0) + 1
        self._running[lead] = (number, tasks, wire.Times(started=self._now, ended=self._now + seconds))
        for task in tasks:
            self._leads[task.task] = lead
        if stage in container.given.items:
            self._emit(number, container, lead)
        self._later(seconds, self._ended(lead))

    def _emit(self, number: int, container: _Container, task: int) -> None:
        """Items of a fan-out, as evenly as whole numbers can be: floor(n r) - floor((n - 1) r) of the n-th task."""
        key, stage = container.key, container.stage.name
        n = self._emitted[key, stage] = self._emitted.get((key, stage), 0) + 1
        counts = {
            port: math.floor(n * ratio + 1e-9) - math.floor((n - 1) * ratio + 1e-9)
            for port, ratio in container.given.items[stage].items()
        }
        for index in range(max(counts.values())):
            outputs = {port: _VALUE for port, count in counts.items() if index < count}
            self._later(0.0, events.ContainerSaid(number, wire.TokenSent(task, index, outputs)))

    def _ended(self, lead: int) -> events.Event:
        """What the container will say; which tasks are wanted is looked up when its time has come."""
        number, tasks, times = self._running[lead]
        outputs = {port.name: _VALUE for port in self._containers[number].stage.outputs if not port.stream}
        results = tuple(wire.TaskDone(task.task, outputs, 0, times) for task in tasks)
        if self._containers[number].stage.batch is None:
            return events.ContainerSaid(number, results[0])
        return events.ContainerSaid(number, wire.BatchDone(results))

    def _deliver(self, event: events.Event | Callable[[], None]) -> None:
        if callable(event):
            event()
            return
        if isinstance(event, events.ContainerSaid):
            if event.container not in self._containers:
                return  # it was killed meanwhile
            message = event.message
            if isinstance(message, wire.BatchDone | wire.TaskDone):
                results = message.results if isinstance(message, wire.BatchDone) else (message,)
                if self._running.pop(results[0].task, None) is None:
                    return  # it was told of before
                number, container = event.container, self._containers[event.container]
                event = self._told(event, results)
                if container.stage.batch is None:
                    container.running -= 1
                    self._begin_waiting(number, container)
                if nbytes := container.given.sends.get(container.stage.name, 0):
                    self._send(number, container, nbytes * len(results), event, results)
                    return
        self._tell(event)

    def _send(
        self,
        number: int,
        container: _Container,
        nbytes: int,
        report: events.Event,
        results: tuple[wire.TaskDone | wire.TaskFailed, ...],
    ) -> None:
        """A report comes behind the outputs; that the function is over is known at once."""
        own = container.stage.resources.bandwidth or math.inf
        begins = max(container.sent_at, self._now)
        self._line_at = max(self._line_at, self._now) + nbytes / self._line_bytes_per_s
        container.sent_at = max(begins + nbytes / own, self._line_at)
        took, arrives = container.sent_at - begins, container.sent_at - self._now
        times = results[0].times
        over = tuple(result.task for result in results)
        waiting = self._unsent(container)
        self._tell(events.ContainerSending(number, nbytes, waiting, container.rate, over, times.ended - times.started))

        def arrive() -> None:
            container.rate = nbytes / took if took > 0 else 0.0
            self._tell(report)
            self._tell(events.ContainerSending(number, 0, self._unsent(container), container.rate))

        self._later(arrives, arrive)

    def _unsent(self, container: _Container) -> int:
        rate = min(container.stage.resources.bandwidth or math.inf, self._line_bytes_per_s)
        return max(0, int((container.sent_at - self._now) * rate)) if rate < math.inf else 0

    def _told(self, event: events.ContainerSaid, results: tuple[wire.TaskDone | wire.TaskFailed, ...]) -> events.Event:
        for result in results:
            del self._leads[result.task]
        if not self._cancelled:
            return event
        error = wire.ErrorRecord(Code.CANCELLED, "Cancelled", "told to stop")
        said = tuple(wire.TaskFailed(r.task, error, r.times) if r.task in self._cancelled else r for r in results)
        self._cancelled.difference_update(result.task for result in results)
        message = wire.BatchDone(said) if isinstance(event.message, wire.BatchDone) else said[0]
        return events.ContainerSaid(event.container, message)

    def _finished(self, command: commands.FinishInvocation) -> events.Event | None:
        arrived = self._arrivals.pop(command.invocation)
        failure, figures = command.failure, self.figures
        if failure is None:
            figures.latency_s.append(self._now - arrived)
            figures.arrived_s.append(arrived)
        elif _is_refusal(failure, command):
            figures.refused += 1
            return None
        else:
            figures.failed[failure.kind] = figures.failed.get(failure.kind, 0) + 1
        key = command.trace.key
        for task in command.trace.tasks:
            own = self._of(key, task.stage)
            own.longest_s = max(own.longest_s, task.sent - task.queued)
        return events.InvocationReleased(command.invocation)


def at_a_time(stage: Stage) -> int:
    """Tasks that a container of the stage works on at a time: a runner may have others in front of it, who wait."""
    written = stage.params.get("max_sequences")
    concurrency = stage.scaling.concurrency
    return min(written, concurrency) if isinstance(written, int) and not isinstance(written, bool) else concurrency


def _is_refusal(failure: Failure, command: commands.FinishInvocation) -> bool:
    return failure.code is Code.RESOURCE_EXHAUSTED and not command.trace.tasks


def simulate(
    given: Simulated,
    arrivals: Iterable[float],
    *,
    start_s: float = 0.0,
    deadline_s: float | None = None,
    tempo: Tempo | None = None,
) -> Figures:
    """One workflow, alone: `arrivals` in seconds, in order."""
    simulation = Simulation({"w@1": given}, start_s=start_s, deadline_s=deadline_s, tempo=tempo)
    return simulation.run((time, "w@1") for time in arrivals)
