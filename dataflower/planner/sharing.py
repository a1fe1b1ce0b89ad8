"""LoRA functions that share a device, served by the very core that runs in production, on a clock that jumps.

The same machine, functions and requests as in `contended`, but here the core decides everything: when a container
starts, whose batch runs, who makes room. Only delays and sizes are made up. What `contended` says of a setting is
thereby held against what a host would do. Times in seconds, sizes in bytes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import replace

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.program import compile_program
from dataflower.planner.contended import LoraFunction, Machine, Outcome, Request
from dataflower.spec.function import Port
from dataflower.spec.workflow import Credit, Edge, Output, PortRef, Resources, Scaling, Slo, Stage, Workflow

_VALUE = wire.Value(b"\xc0")


def served(
    machine: Machine, functions: Iterable[LoraFunction], requests: Iterable[Request], *, preload: bool = True
) -> Outcome:
    """What a host makes of these requests, which are in order of time; costs are not counted.

    Memory of the device is the cap on containers (adapter, kernels) and weights; keys and values are not simulated.
    """
    return _Served(machine, functions, preload).run(tuple(requests))


class _Served:
    def __init__(self, machine: Machine, functions: Iterable[LoraFunction], preload: bool) -> None:
        self._machine = machine
        self._functions = {function.name: function for function in functions}
        config = CoreConfig(
            cpus=1,
            max_containers=1 << 16,
            device_batches=machine.slots,
            device_batch_size=machine.most,
            device_memory_bytes=machine.device_bytes,
            preload=preload,
            preload_memory_bytes=machine.device_bytes // 2,
        )
        self._core = HostCore(config)
        self._now, self._wake = 0.0, math.inf
        self._due: list[tuple[float, int, events.Event]] = []
        self._sequence = 0
        self._names: dict[int, str] = {}
        """Containers that are there -> their functions."""
        self._there: dict[str, float] = {}
        """Weights -> since when they are in memory, or when they will be."""
        self._imported = math.inf
        self._outcome = Outcome([])
        self._at: dict[str, tuple[int, Request]] = {}
        for function in self._functions.values():
            self._tell(events.WorkflowAdded(f"{function.name}@1", compile_program(_workflow(function, machine))))

    def run(self, requests: tuple[Request, ...]) -> Outcome:
        self._outcome = Outcome([math.inf] * len(requests))
        for number, request in enumerate(requests):
            self._settle(request.at)
            function = request.function
            self._outcome.cold += function not in self._names.values()
            self._at[str(number)] = number, request
            self._tell(events.InvocationArrived(str(number), f"{function}@1", {}))
        while self._at and (self._due or self._wake < math.inf):
            self._settle(min(self._due[0][0] if self._due else math.inf, self._wake))
        (state,) = self._core.devices()
        return replace(self._outcome, moved=state.offloaded, batches=state.batches)

    def _settle(self, until: float) -> None:
        """Everything that is due up to and at this time."""
        while min(self._due[0][0] if self._due else math.inf, self._wake) <= until:
            if self._due and self._due[0][0] <= self._wake:
                self._now, _, event = heapq.heappop(self._due)
            else:
                self._now, self._wake, event = max(self._now, self._wake), math.inf, events.Woke()
            self._tell(event)
        self._now = max(self._now, until)

    def _later(self, at: float, event: events.Event) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (at, self._sequence, event))

    def _tell(self, event: events.Event) -> None:
        given: dict[int, list[wire.RunTask]] = {}
        for command in self._core.handle(event, self._now):
            match command:
                case commands.Tell(number, wire.RunTask() as message):
                    given.setdefault(number, []).append(message)
                case commands.StartContainer(number, _, stage):
                    self._start(number, stage.name)
                case commands.StopContainer(number) | commands.KillContainer(number):
                    self._names.pop(number, None)
                    self._later(self._now, events.ContainerExited(number, "left"))
                case commands.SizeWeights(model):
                    nbytes = self._machine.backbones[model].nbytes
                    self._later(self._now, events.WeightsSized(model, nbytes))
                case commands.HoldWeights(models):
                    for model, _ in models:
                        if model not in self._there:
                            nbytes, seconds = self._machine.backbones[model].nbytes, self._load(model)
                            held = events.WeightsSized(model, nbytes, seconds, held=True)
                            self._later(self._now + seconds, held)
                case commands.DropWeights(model):
                    used = any(self._functions[name].backbone == model for name in self._names.values())
                    if not used:
                        self._there.pop(model, None)
                    self._later(self._now, events.WeightsDropped(model, not used))
                case commands.FinishInvocation(invocation, _, _):
                    self._at.pop(invocation, None)
                    self._later(self._now, events.InvocationReleased(invocation))
                case commands.WakeAt(time):
                    self._wake = time
        running = self._core.devices()[0].running if given else 0
        for more, (number, batch) in enumerate(given.items()):
            self._run(number, batch, running - len(given) + 1 + more)

    def _load(self, model: str) -> float:
        """How long it is until weights are there; single flight."""
        weights = self._machine.backbones[model]
        at = self._there.setdefault(model, self._now + weights.disk_s + weights.copy_s)
        return max(0.0, at - self._now)

    def _start(self, number: int, name: str) -> None:
        machine, function = self._machine, self._functions[name]
        self._imported = min(self._imported, self._now + machine.library_s)
        library = max(0.0, self._imported - self._now)
        was_there = self._there.get(function.backbone, math.inf) <= self._now
        weights = self._load(function.backbone)
        waited = max(library, weights)
        nbytes = machine.backbones[function.backbone].nbytes
        opened = wire.StartPhase(wire.StartKind.WEIGHTS, function.backbone, weights, nbytes, was_there)
        setup = waited + machine.adapter_s + machine.kernel_s
        self._names[number] = name
        self._later(self._now + setup, events.ContainerSaid(number, wire.Hello(wire.VERSION, 1, 0.0, setup, (opened,))))
        self._later(self._now + setup, events.ContainerSized(number, function.adapter_bytes + function.kernel_bytes))

    def _run(self, number: int, batch: list[wire.RunTask], together: int) -> None:
        """They have their first tokens after M T(b), and go on beside whatever else runs."""
        function = self._functions[self._names[number]]
        first = self._now + together * function.latency.of(len(batch))
        tokens = max(self._at[message.invocation][1].tokens for message in batch)
        for message in batch:
            index, request = self._at[message.invocation]
            self._outcome.ttft_s[index] = first - request.at
            self._outcome.good += first - request.at <= function.slo_s + 1e-9
            self._later(first, events.ContainerSaid(number, wire.TokenSent(message.task, 0, {"deltas": _VALUE})))
            end = first + function.token_s * max(0, tokens - 1)
            self._later(end, events.ContainerSaid(number, wire.TaskDone(message.task, {}, 1, wire.Times())))


def _workflow(function: LoraFunction, machine: Machine) -> Workflow:
    stage = Stage(
        function.name,
        "simulated:function",
        outputs=(Port("deltas", stream=True),),
        model=function.backbone,
        scaling=Scaling(max_replicas=1, concurrency=machine.most * 4, keep_alive_s=machine.keep_alive_s),
        resources=Resources(memory_bytes=function.adapter_bytes + function.kernel_bytes),
        credit=Credit(items=1 << 20),
        preload=("simulated",),
    )
    deltas = Output("deltas", Edge(PortRef(function.name, "deltas")))
    return Workflow(function.name, {function.name: stage}, (), (deltas,), Slo(ttft_ms=function.slo_s * 1000))
