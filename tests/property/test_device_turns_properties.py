"""Turns on shared devices, whatever happens: never more batches than allowed, order by margin, nobody starves."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.device.turns import STARVED, Batch, Rank, Turns, ordered
from dataflower.core.device.window import Latency
from dataflower.core.host import HostCore
from dataflower.core.program import compile_program
from dataflower.errors import Code
from dataflower.spec.workflow import Retry, Scaling, Slo, Workflow
from dataflower.testing.payloads import plain
from dataflower.testing.story import stage, workflow

LATENCIES = st.builds(Latency, st.floats(0.01, 1.0), st.floats(0.0, 0.3))


@st.composite
def devices(draw: st.DrawFn) -> tuple[int, dict[str, tuple[float, Latency | None, int]]]:
    """Slots, and functions: objective, latency, cap."""
    names = [f"f{number}" for number in range(draw(st.integers(1, 4)))]
    each = st.tuples(st.floats(0.1, 3.0), st.none() | LATENCIES, st.integers(1, 8))
    return draw(st.integers(1, 3)), {name: draw(each) for name in names}


@given(devices(), st.data())
def test_what_is_taken_has_the_smallest_margin_of_its_rank(device: Any, data: st.DataObject) -> None:
    slots, functions = device
    turns: Turns[int] = Turns(slots)
    for name, (slo_s, latency, most) in functions.items():
        turns.know(ordered(name, slo_s, latency, most=most))
    now = 0.0
    for number in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.floats(0, 0.5))
        turns.add(data.draw(st.sampled_from(sorted(functions))), number, now)
        rooms = {name: data.draw(st.integers(0, 9)) for name in functions}
        able = list(turns._closed(now, rooms.__getitem__))
        running = turns.running
        batch = turns.take(now, rooms.__getitem__)
        assert (batch is not None) == (bool(able) and running < slots)
        if batch is not None:
            assert (batch.rank, batch.margin_s) == min((b.rank, b.margin_s) for b in able)
            slo_s, latency, most = functions[batch.function]
            assert len(batch.items) <= min(most, rooms[batch.function])
            took = (latency or Latency(0.0, 0.0)).of(len(batch.items))
            assert math.isclose(batch.margin_s, slo_s - (now - batch.since + (running + 1) * took), abs_tol=1e-9)
            check_rank(batch, slo_s, now)
        assert turns.running <= slots
        if turns.running and data.draw(st.booleans()):
            turns.over()


def check_rank(batch: Batch[int], slo_s: float, now: float) -> None:
    """Who has waited for very long is never put behind others."""
    if now - batch.since > STARVED * slo_s:
        assert batch.rank is Rank.STARVED


@settings(max_examples=40)
@given(devices(), st.randoms(use_true_random=False), st.floats(0.5, 3.0))
def test_nobody_waits_for_ever_under_overload(device: Any, chance: Any, load: float) -> None:
    """More comes than can be served, for long: who has waited for ten objectives goes before all who have not."""
    slots, functions = device
    turns: Turns[int] = Turns(slots)
    for name, (slo_s, latency, most) in functions.items():
        turns.know(ordered(name, slo_s, latency, most=most))
    slowest = max((latency or Latency(0.0, 0.0)).of(most) for _, latency, most in functions.values())
    arrived: dict[int, float] = {}
    owned: dict[str, set[int]] = {name: set() for name in functions}
    over: deque[float] = deque()
    now = 0.0
    for number in range(300):
        now += chance.uniform(0.0, 2 * slowest / load + 0.01)
        while over and over[0] <= now:
            turns.over()
            over.popleft()
        name = chance.choice(sorted(functions))
        turns.add(name, number, now)
        arrived[number] = now
        owned[name].add(number)
        while True:
            oldest = {name: min(arrived[item] for item in items) for name, items in owned.items() if items}
            starved = {name for name, at in oldest.items() if now - at > STARVED * functions[name][0]}
            batch = turns.take(now)
            assert batch is not None or turns.running == slots or not starved
            if batch is None:
                break
            assert not starved or batch.function in starved
            assert batch.function not in starved or batch.since == oldest[batch.function]
            owned[batch.function] -= set(batch.items)
            took = turns.running * (functions[batch.function][1] or Latency(0.0, 0.0)).of(len(batch.items))
            over = deque(sorted([*over, now + took]))


@dataclass
class _Task:
    container: int
    message: wire.RunTask
    name: str
    spoke: bool = False


@dataclass
class _Host:
    """A core whose containers are played by hand."""

    core: HostCore
    now: float = 1.0
    wake: float = math.inf
    starting: list[int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    tasks: dict[int, _Task] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    asked: list[float] = field(default_factory=list)

    def tell(self, event: events.Event) -> None:
        self.now += 0.001
        for command in self.core.handle(event, self.now):
            match command:
                case commands.StartContainer(number, _, started):
                    self.starting.append(number)
                    self.names[number] = started.name
                case commands.StopContainer(number) | commands.KillContainer(number):
                    self.leaving.append(number)
                case commands.Tell(number, wire.RunTask() as message):
                    self.tasks[message.task] = _Task(number, message, self.names[number])
                case commands.FinishInvocation(invocation, _, _):
                    self.open.discard(invocation)
                    self.asked.append(self.now)
                case commands.WakeAt(time):
                    self.wake = time
        self.core.check_integrity()


SLOTS, PLACES, NAMES = 2, 3, ("a", "b", "c")


class SharedDevice(RuleBasedStateMachine):
    """Three functions on one device, two batches at a time; containers speak, fail, die; callers leave."""

    def __init__(self) -> None:
        super().__init__()
        config = CoreConfig(device_batches=SLOTS, device_batch_size=4, max_containers=4)
        self.host = _Host(HostCore(config))
        self.calls = 0
        for name, ttft_ms in zip(NAMES, (200.0, 1000.0, None), strict=True):
            one = stage(
                name,
                {"x": "inputs.x"},
                ["deltas*"],
                model="backbone",
                scaling=Scaling(max_replicas=2, concurrency=PLACES),
                retry=Retry(max_attempts=2, interval_s=0.1),
            )
            made = workflow([one], {"deltas": f"{name}.deltas"})
            slo = None if ttft_ms is None else Slo(ttft_ms=ttft_ms)
            ready = Workflow(name, made.stages, made.inputs, made.outputs, slo)
            self.host.tell(events.WorkflowAdded(f"{name}@1", compile_program(ready)))

    @rule(name=st.sampled_from(NAMES), deadline=st.sampled_from([0.0, 0.3]))
    def call(self, name: str, deadline: float) -> None:
        """A request."""
        self.calls += 1
        invocation = f"{name}{self.calls}"
        self.host.open.add(invocation)
        by = self.host.now + deadline if deadline else 0.0
        self.host.tell(events.InvocationArrived(invocation, f"{name}@1", {"x": plain(1)}, (), by))

    @precondition(lambda self: self.host.starting)
    @rule(data=st.data())
    def hello(self, data: st.DataObject) -> None:
        """A container is ready."""
        number = data.draw(st.sampled_from(self.host.starting))
        self.host.starting.remove(number)
        self.host.tell(events.ContainerSaid(number, wire.Hello(wire.VERSION, 1)))

    def _pick(self, data: st.DataObject) -> _Task:
        return self.host.tasks[data.draw(st.sampled_from(sorted(self.host.tasks)))]

    @precondition(lambda self: self.host.tasks)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        """A first token."""
        task = self._pick(data)
        if not task.spoke:
            task.spoke = True
            said = wire.TokenSent(task.message.task, 0, {"deltas": plain("t")})
            self.host.tell(events.ContainerSaid(task.container, said))

    @precondition(lambda self: self.host.tasks)
    @rule(data=st.data(), well=st.booleans())
    def end(self, data: st.DataObject, well: bool) -> None:
        """A task is over."""
        self._over(self._pick(data), well)

    def _over(self, task: _Task, well: bool = True) -> None:
        number = task.message.task
        del self.host.tasks[number]
        if well:
            message: Any = wire.TaskDone(number, {}, int(task.spoke), wire.Times())
        else:
            message = wire.TaskFailed(number, wire.ErrorRecord(Code.INTERNAL, "ValueError", "no"), wire.Times())
        self.host.tell(events.ContainerSaid(task.container, message))

    @precondition(lambda self: self.host.names)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A container is killed, by somebody else."""
        self._exit(data.draw(st.sampled_from(sorted(self.host.names))))

    @precondition(lambda self: self.host.leaving)
    @rule()
    def leave(self) -> None:
        """A container that was told to go is gone."""
        self._exit(self.host.leaving[0])

    def _exit(self, number: int) -> None:
        host = self.host
        del host.names[number]
        host.starting = [n for n in host.starting if n != number]
        host.leaving = [n for n in host.leaving if n != number]
        host.tasks = {t: task for t, task in host.tasks.items() if task.container != number}
        host.tell(events.ContainerExited(number, "killed"))

    @precondition(lambda self: self.host.open)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """A caller leaves."""
        self.host.tell(events.InvocationReleased(data.draw(st.sampled_from(sorted(self.host.open)))))

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        end = self.host.now + seconds
        while self.host.wake <= end:
            self.host.now, self.host.wake = max(self.host.now, self.host.wake), math.inf
            self.host.tell(events.Woke())
        self.host.now = max(self.host.now, end)

    @invariant()
    def never_more_than_allowed(self) -> None:
        """Of batches that compute first tokens, by the core's own books and within what containers can take."""
        for state in self.host.core.devices():
            assert 0 <= state.running <= SLOTS
            for sharer in state.sharers:
                assert sharer.window.size <= min(4, PLACES)
                assert 0 <= sharer.window.wait_s <= sharer.slo_s
        for number in self.host.names:
            assert sum(task.container == number for task in self.host.tasks.values()) <= PLACES

    def teardown(self) -> None:
        """When everybody does what they should, all calls come to an end."""
        for _ in range(400):
            if not self.host.open:
                break
            while self.host.leaving:
                self._exit(self.host.leaving[0])
            while self.host.starting:
                self.host.tell(events.ContainerSaid(self.host.starting.pop(0), wire.Hello(wire.VERSION, 1)))
            for task in list(self.host.tasks.values()):
                if task.message.task in self.host.tasks:
                    self._over(task)
            self.wait(1.0)
        assert not self.host.open, "calls that never end"


TestSharedDevice = SharedDevice.TestCase
TestSharedDevice.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
