"""A host under a cap on memory, whatever happens: what runs stays, weights stay while they are used, calls end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.host import HostCore
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Resources, Scaling, Workflow
from dataflower.testing.payloads import plain
from dataflower.testing.story import stage, workflow

MIB = 1024 * 1024
BACKBONES = {"one": 40 * MIB, "two": 30 * MIB}
FUNCTIONS = {"a": ("one", 10 * MIB), "b": ("one", 20 * MIB), "c": ("two", 10 * MIB), "d": ("two", 15 * MIB)}
"""Backbone and bytes of a container."""
CAP = 90 * MIB
LIBRARY = 8 * MIB


def _library(name: str) -> tuple[str, ...]:
    """Of the fork server of a function."""
    return ("torch", FUNCTIONS[name][0])


@dataclass
class _Container:
    name: str
    is_ready: bool = False
    is_leaving: bool = False
    tasks: set[int] = field(default_factory=set)


class Capped(RuleBasedStateMachine):
    """Four functions on two backbones; two backbones with a container each are all that fits."""

    preload = False
    libraries = False
    """Whether containers come from fork servers with libraries of their own, one for each backbone."""

    def __init__(self) -> None:
        super().__init__()
        config = CoreConfig(
            device_batches=8, device_memory_bytes=CAP, preload=self.preload, preload_memory_bytes=CAP + 30 * MIB
        )
        self.core = HostCore(config)
        self.now, self.wake = 1.0, math.inf
        self.containers: dict[int, _Container] = {}
        self.dropping: list[str] = []
        self.trimming: list[int] = []
        self.measuring: list[int] = []
        self.grown: dict[int, int] = {}
        self.held: set[str] = set()
        """Weights that preloading wants in memory."""
        self.loading: list[str] = []
        self.open: set[str] = set()
        self.calls = 0
        self.importing: list[tuple[str, ...]] = []
        self.zygotes: set[tuple[str, ...]] = set()
        self.unloading: set[tuple[str, ...]] = set()
        """Fork servers that end with their last container."""
        for name, (backbone, nbytes) in FUNCTIONS.items():
            one = stage(
                name,
                {"x": "inputs.x"},
                ["deltas*"],
                model=backbone,
                scaling=Scaling(max_replicas=1, concurrency=2, keep_alive_s=1e6),
                resources=Resources(memory_bytes=nbytes),
                preload=_library(name) if self.libraries else (),
            )
            made = workflow([one], {"deltas": f"{name}.deltas"})
            ready = Workflow(name, made.stages, made.inputs, made.outputs)
            self.tell(events.WorkflowAdded(f"{name}@1", compile_program(ready)))
        for backbone, nbytes in BACKBONES.items():
            self.tell(events.WeightsSized(backbone, nbytes))

    def tell(self, event: events.Event) -> None:
        """An event, and what the core wants then."""
        self.now += 0.001
        for command in self.core.handle(event, self.now):
            match command:
                case commands.StartContainer(number, _, started):
                    self.containers[number] = _Container(started.name)
                    if self.libraries:
                        assert _library(started.name) not in self.unloading, "it may end before this is forked"
                        self._want(_library(started.name))
                case commands.Preload(modules) if modules:
                    self.unloading.discard(modules)
                    self._want(modules)
                case commands.Unload(modules):
                    users = [c for c in self.containers.values() if _library(c.name) == modules]
                    assert all(c.is_leaving for c in users), "a fork server was to end that somebody needs"
                    self.unloading.add(modules)
                case commands.StopContainer(number):
                    assert not self.containers[number].tasks, "a container that runs something was told to stop"
                    assert self.containers[number].is_ready
                    self.containers[number].is_leaving = True
                case commands.KillContainer():
                    raise AssertionError("nobody did anything wrong")
                case commands.DropWeights(model):
                    users = [c for c in self.containers.values() if FUNCTIONS[c.name][0] == model]
                    assert all(c.is_leaving for c in users), "weights were to go that somebody uses"
                    self.dropping.append(model)
                case commands.Tell(number, wire.Trim()):
                    assert not self.containers[number].tasks, "what a running task uses was to be given back"
                    self.trimming.append(number)
                case commands.HoldWeights(models):
                    wanted = {model for model, _ in models}
                    self.loading += [model for model in wanted if model not in self.held]
                    self.held = wanted
                case commands.SizeContainer(number):
                    self.measuring.append(number)
                case commands.Tell(number, wire.RunTask() as message):
                    assert not self.containers[number].is_leaving
                    self.containers[number].tasks.add(message.task)
                case commands.FinishInvocation(invocation, _, _):
                    self.open.discard(invocation)
                case commands.WakeAt(time):
                    self.wake = time
            if isinstance(command, commands.StartContainer):
                others = [c for c in self.containers.values() if c.name != command.stage.name]
                used = self.core.devices()[0].used_bytes
                assert used <= CAP or not others, "it was started although there is no room beside others"
        self.core.check_integrity()

    def _want(self, modules: tuple[str, ...]) -> None:
        if modules not in self.zygotes and modules not in self.importing:
            self.importing.append(modules)

    @precondition(lambda self: self.importing)
    @rule()
    def imported(self) -> None:
        """A fork server has its libraries."""
        modules = self.importing.pop(0)
        self.zygotes.add(modules)
        self.tell(events.ZygoteStarted(modules, 1.0, LIBRARY))

    @precondition(lambda self: self.unloading)
    @rule()
    def unload(self) -> None:
        """Fork servers that may are gone with their last containers."""
        needed = {_library(container.name) for container in self.containers.values()}
        for modules in sorted(self.unloading & self.zygotes - needed):
            self.unloading.discard(modules)
            self.zygotes.discard(modules)
            self.tell(events.ZygoteEnded(modules))

    @rule(name=st.sampled_from(sorted(FUNCTIONS)))
    def call(self, name: str) -> None:
        """A request."""
        self.calls += 1
        self.open.add(f"{name}{self.calls}")
        self.tell(events.InvocationArrived(f"{name}{self.calls}", f"{name}@1", {"x": plain(1)}))

    def _some(self, data: st.DataObject, numbers: list[int]) -> int:
        return data.draw(st.sampled_from(numbers))

    @property
    def starting(self) -> list[int]:
        return [n for n, c in self.containers.items() if not c.is_ready]

    @property
    def busy(self) -> list[int]:
        return [n for n, c in self.containers.items() if c.tasks]

    @property
    def leaving(self) -> list[int]:
        return [n for n, c in self.containers.items() if c.is_leaving]

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def hello(self, data: st.DataObject) -> None:
        """A container is ready."""
        self._hello(self._some(data, self.starting))

    def _hello(self, number: int) -> None:
        container = self.containers[number]
        if self.libraries and _library(container.name) in self.importing:
            self.imported()
        self.grown.pop(number, None)
        container.is_ready = True
        backbone, nbytes = FUNCTIONS[container.name]
        opened = wire.StartPhase(wire.StartKind.WEIGHTS, backbone, 0.1, BACKBONES[backbone])
        self.tell(events.ContainerSaid(number, wire.Hello(wire.VERSION, 1, 0.1, 0.2, (opened,))))
        self.tell(events.ContainerSized(number, nbytes))

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), grown=st.integers(0, 8))
    def end(self, data: st.DataObject, grown: int) -> None:
        """A task is over, and its keys and values have taken memory."""
        number = self._some(data, self.busy)
        self._end(number)
        self.grown[number] = self.grown.get(number, 0) + grown * MIB

    @precondition(lambda self: self.measuring)
    @rule()
    def measure(self) -> None:
        """How much memory a container has by now is known."""
        number = self.measuring.pop(0)
        if number in self.containers:
            nbytes = FUNCTIONS[self.containers[number].name][1] + self.grown.get(number, 0)
            self.tell(events.ContainerSized(number, nbytes))

    @precondition(lambda self: self.trimming)
    @rule(willing=st.booleans())
    def trim(self, willing: bool) -> None:
        """A container has given back what it could, if it can at all."""
        number = self.trimming.pop(0)
        if number in self.containers and not self.containers[number].is_leaving:
            if willing:
                self.grown[number] = 0
            self.tell(events.ContainerSaid(number, wire.Trimmed()))

    def _end(self, number: int) -> None:
        task = self.containers[number].tasks.pop()
        self.tell(events.ContainerSaid(number, wire.TaskDone(task, {}, 0, wire.Times())))

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A container that was told to go is gone."""
        self._exit(self._some(data, self.leaving))

    @precondition(lambda self: self.containers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A container is killed by somebody else."""
        self._exit(self._some(data, sorted(self.containers)))

    def _exit(self, number: int) -> None:
        del self.containers[number]
        self.tell(events.ContainerExited(number, "killed"))

    @precondition(lambda self: self.dropping)
    @rule(gone=st.booleans())
    def drop(self, gone: bool) -> None:
        """The store has let go of weights, or could not: somebody maps them again."""
        self._drop(gone)

    def _drop(self, gone: bool) -> None:
        model = self.dropping.pop(0)
        used = any(FUNCTIONS[c.name][0] == model for c in self.containers.values())
        gone = gone and not used
        if gone and model in self.held:
            self.held.discard(model)
            self.tell(events.WeightsSized(model, 0))
        self.tell(events.WeightsDropped(model, gone))

    @precondition(lambda self: self.loading)
    @rule()
    def load(self) -> None:
        """Weights are in memory ahead of calls."""
        model = self.loading.pop(0)
        if model in self.held:
            self.tell(events.WeightsSized(model, BACKBONES[model], 0.1, held=True))

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        end = self.now + seconds
        while self.wake <= end:
            self.now, self.wake = max(self.now, self.wake), math.inf
            self.tell(events.Woke())
        self.now = max(self.now, end)

    @invariant()
    def books_agree_with_what_there_is(self) -> None:
        """What the core thinks is used covers all containers, and weights that are mapped, once each."""
        mapped = {FUNCTIONS[c.name][0] for c in self.containers.values() if c.is_ready}
        least = sum(FUNCTIONS[c.name][1] for c in self.containers.values()) + sum(BACKBONES[m] for m in mapped)
        (state,) = self.core.devices()
        assert state.used_bytes >= least + LIBRARY * len(self.zygotes)

    def teardown(self) -> None:
        """When everybody does what they should, all calls come to an end."""
        for _ in range(300):
            if not self.open:
                break
            for number in self.leaving:
                self._exit(number)
            self.unload()
            while self.importing:
                self.imported()
            while self.dropping:
                self._drop(True)
            while self.trimming:
                self.trim(True)
            while self.measuring:
                self.measure()
            for number in self.starting:
                self._hello(number)
            for number in self.busy:
                self._end(number)
            self.wait(0.5)
        assert not self.open, "calls that never end"


class CappedWithLibraries(Capped):
    """The same with fork servers that take memory, too."""

    libraries = True


class CappedAndPreloading(Capped):
    """The same where containers and weights are got ready ahead of calls: that makes room for nobody."""

    preload = True


TestCapped = Capped.TestCase
TestCappedWithLibraries = CappedWithLibraries.TestCase
TestCappedAndPreloading = CappedAndPreloading.TestCase
TestCappedWithLibraries.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestCappedAndPreloading.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestCapped.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
