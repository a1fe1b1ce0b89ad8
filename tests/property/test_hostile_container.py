"""A container may send anything: whatever it says, the core's books stay right and others are served."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.program import compile_program
from dataflower.errors import Code
from dataflower.spec.workflow import Retry
from dataflower.testing.story import stage, workflow

numbers = st.integers(-3, 6) | st.integers(-(2**63), 2**64 - 1)
small = st.integers(-1, 5)
moments = st.floats(0.0, 100.0) | st.floats(allow_nan=True, allow_infinity=True)
times = st.builds(wire.Times, moments, moments, moments, moments, moments) | st.just(wire.Times())
refs = st.builds(
    wire.TensorRef,
    st.integers(1, 4).map(lambda owner: owner << 16),
    st.sampled_from([0, 64, 4096]),
    numbers,
    numbers,
    st.sampled_from(["FP32", "BYTES", "", "no such type"]),
    st.lists(numbers, max_size=3).map(tuple),
)
bodies = st.binary(max_size=12) | st.sampled_from([b"\x01", b"\xc0", b"\x82\xa3key\x01\xa5value\x02", b"\x91" * 40])
values = st.builds(wire.Value, bodies, st.lists(refs, max_size=2).map(tuple), st.none() | refs)
outputs = st.dictionaries(st.sampled_from(["out", "t", "r", "", "error"]) | st.text(max_size=3), values, max_size=3)
slots = st.lists(st.tuples(st.integers(1, 4).map(lambda owner: owner << 16), st.sampled_from([0, 64])), max_size=4).map(
    tuple
)
errors = st.builds(
    wire.ErrorRecord,
    st.sampled_from(list(Code)),
    st.sampled_from(["ValueError", "Timeout", "ContainerCrashed", "*", ""]),
    st.text(max_size=5) | st.just("x" * 100_000),
)
tasks = st.integers(0, 6) | numbers
results = st.builds(wire.TaskDone, tasks, outputs, small | numbers, times, slots) | st.builds(
    wire.TaskFailed, tasks, errors, times, slots
)
messages = st.one_of(
    st.builds(wire.Hello, st.just(wire.VERSION) | numbers, numbers),
    st.builds(wire.StartFailed, errors),
    st.builds(wire.TokenSent, tasks, small | numbers, outputs),
    results,
    st.builds(wire.BatchDone, st.lists(results, max_size=3).map(tuple)),
    st.builds(wire.Taken, tasks, st.sampled_from(["t", "x", ""]), numbers, slots),
    st.builds(wire.Starved, tasks, numbers),
    st.builds(wire.Computed, tasks),
    st.builds(wire.Unheld, slots),
    st.builds(wire.ArenaMade, numbers, numbers),
    st.builds(wire.Trimmed),
)


def _about(task: int, message: wire.FromContainer) -> wire.FromContainer:
    """The same of a task that the container does run."""
    return msgspec.structs.replace(message, task=task) if hasattr(message, "task") else message


class Bench:
    """A core with containers that do nothing of their own accord, one of them hostile."""

    def __init__(self) -> None:
        again = Retry(max_attempts=3, interval_s=0.0, jitter="none")
        stages = [
            stage("make", {"x": "inputs.x"}, ["t*"], retry=again),
            stage("each", {"t": "each make.t"}, retry=again),
            stage("all", {"t*": "make.t"}),
        ]
        flow = workflow(stages, {"r": "gather each.out", "s": "all.out", "made": "make.t"})
        plain = workflow([stage("only", {"x": "inputs.x"})], {"r": "only.out"})
        self.core = HostCore(CoreConfig(cpus=2, max_containers=12))
        self.now = 0.0
        self.alive: dict[int, str] = {}
        self.fresh: list[int] = []
        self.sent: dict[int, int] = {}
        self.dying: dict[int, str] = {}
        self.given: dict[int, list[int]] = {}
        self.finished: dict[str, Any] = {}
        self.feed(events.WorkflowAdded("w@1", compile_program(flow)))
        self.feed(events.WorkflowAdded("p@1", compile_program(plain)))

    def feed(self, event: events.Event) -> None:
        self.now += 0.001
        for command in self.core.handle(event, self.now):
            if isinstance(command, commands.StartContainer):
                self.alive[command.container] = command.stage.name
                self.fresh.append(command.container)
            elif isinstance(command, commands.KillContainer):
                self.dying[command.container] = command.reason
            elif isinstance(command, commands.StopContainer):
                self.dying.setdefault(command.container, "stopped")
            elif isinstance(command, commands.Tell) and isinstance(command.message, wire.RunTask):
                self.given.setdefault(command.container, []).append(command.message.task)
            elif isinstance(command, commands.FinishInvocation):
                self.finished[command.invocation] = command.failure
        self.core.check_integrity()

    def say(self, container: int, message: wire.FromContainer) -> None:
        self.feed(events.ContainerSaid(container, message))

    def greet(self) -> None:
        """All that were started say Hello."""
        while self.fresh:
            container = self.fresh.pop()
            if container in self.alive and container not in self.dying:
                self.say(container, wire.Hello(wire.VERSION, 1))

    def work(self, container: int, value: wire.Value) -> None:
        """The container does as it should: two items, then the end."""
        for task in self.given.get(container, [])[:1]:
            sent = self.sent.get(task, 0)
            if self.alive[container] == "make" and sent < 2:
                self.sent[task] = sent + 1
                self.say(container, wire.TokenSent(task, sent, {"t": value}))
            else:
                self.given[container].remove(task)
                items = sent if self.alive[container] == "make" else 0
                self.say(container, wire.TaskDone(task, {"out": value}, items, wire.Times()))

    def bury(self) -> None:
        for container, reason in tuple(self.dying.items()):
            del self.dying[container]
            self.alive.pop(container, None)
            self.given.pop(container, None)
            self.feed(events.ContainerExited(container, f"was killed: {reason}"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), messages, st.integers(0, 2)), max_size=30))
def test_the_core_survives_whatever_containers_say(said: list[tuple[int, wire.FromContainer, int]]) -> None:
    bench = Bench()
    value = wire.Value(b"\x01")
    for name in ("a", "b"):
        bench.feed(events.InvocationArrived(name, "w@1", {"x": value}))
    for pick, message, way in said:
        bench.greet()
        known = sorted(bench.alive)
        if not known:
            break
        container = known[pick % len(known)]
        if way == 0:
            bench.work(container, value)
        elif way == 1 and bench.given.get(container):
            bench.say(container, _about(bench.given[container][0], message))
        else:
            bench.say(container, message)
        if pick % 2:
            bench.bury()
    # Whatever that left behind: the others of the host are served, and everything can be brought to its end.
    bench.bury()
    bench.feed(events.InvocationArrived("good", "p@1", {"x": value}))
    for _ in range(4):
        bench.greet()
        for container, of_stage in tuple(bench.alive.items()):
            if of_stage == "only":
                bench.work(container, value)
        bench.bury()
    assert bench.finished.get("good", "not there") is None
    for name in ("a", "b", "good"):
        bench.feed(events.InvocationReleased(name))
    for container in tuple(bench.alive):
        bench.dying[container] = "the end"
    bench.bury()
    for name in ("a", "b"):
        assert name in bench.finished
    assert bench.core.ledger.slots == 0
    assert bench.core.statistics().invocations == 0


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200) | messages.map(wire.encode).flatmap(lambda b: st.binary(max_size=8).map(lambda x: b + x))
)
def test_bytes_are_a_message_or_are_refused(payload: bytes) -> None:
    try:
        message = wire.decode_from_container(payload)
    except msgspec.DecodeError:
        return
    assert wire.decode_from_container(wire.encode(message)) == message or b"\xcb" in payload  # not a number
