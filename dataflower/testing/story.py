"""Short synchronous stories about the core: a workflow in a few lines, then what happens, then what follows.

story = Story(workflow([stage("a", {"x": "inputs.x"}, ["frames*"]), ...], inputs=["x"], outputs={"n": "b.out"}))
story.invoke(x=1)
story.emit("a", frames=10)
assert story.inputs_of("b", 0) == {"frame": 10}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.instance import Instance
from dataflower.core.ledger import Ledger
from dataflower.core.matching import Flow
from dataflower.core.program import compile_program
from dataflower.errors import Code, Failure
from dataflower.spec.function import Port
from dataflower.spec.workflow import Edge, Fanout, Input, Output, PortRef, Stage, Workflow
from dataflower.testing.clock import FakeClock
from dataflower.testing.payloads import plain, unpack


def edge(text: str) -> Edge:
    """`a.port`, `each a.port`, `keyed a.port` or `gather a.port`."""
    *way, ref = text.split()
    stage_name, _, port_name = ref.rpartition(".")
    return Edge(PortRef(stage_name, port_name), Fanout(way[0]) if way else Fanout.ALL)


def port(text: str) -> Port:
    """`name`, or `name*` for a stream."""
    return Port(text.rstrip("*"), stream=text.endswith("*"))


def stage(
    name: str,
    inputs: Mapping[str, str | Input] | None = None,
    outputs: Sequence[str] = ("out",),
    **fields: Any,
) -> Stage:
    """A stage whose inputs are edges by port; a port `name*` is read as an iterator. `fields` as of `Stage`."""
    ports = [port(text) for text in inputs or ()]
    feeds = [
        given if isinstance(given, Input) else Input(own.name, (edge(given),))
        for own, given in zip(ports, (inputs or {}).values(), strict=True)
    ]
    function = "" if fields.get("cases") else f"functions:{name}"
    own_outputs = () if fields.get("cases") else tuple(port(text) for text in outputs)
    return Stage(name, function, inputs=tuple(feeds), input_ports=tuple(ports), outputs=own_outputs, **fields)


def workflow(stages: Sequence[Stage], outputs: Mapping[str, str], inputs: Sequence[str] = ("x",)) -> Workflow:
    """A workflow of these stages; outputs are edges by name."""
    results = tuple(Output(name, edge(text)) for name, text in outputs.items())
    return Workflow("w", {s.name: s for s in stages}, tuple(port(text) for text in inputs), results)


def some_task() -> Instance:
    """A task of a workflow with one stage, for books that only count tasks."""
    program = compile_program(workflow([stage("a", {"x": "inputs.x"})], {"r": "a.out"}))
    return Instance(Flow("i", program, Ledger()), program.stages[1], ())


class Story:
    """One host, told by hand. Containers answer `Hello` at once (unless `deaf`) and keep nothing.

    Workflow number n has the key `{name}{n}@1`, the first `{name}@1`. `starting`, `leaving`: containers that were not
    heard of since they were told to start, or to stop.
    """

    def __init__(self, *workflows: Workflow, config: CoreConfig | None = None, deaf: bool = False) -> None:
        self.core = HostCore(config or CoreConfig())
        self.clock = FakeClock()
        self.said: list[commands.Command] = []
        self.wake_at = math.inf
        self.outputs: dict[str, Any] = {}
        self.ended: dict[str, bool] = {}
        self.finished: dict[str, Failure | None] = {}
        self.stages: dict[int, str] = {}
        self.running: dict[tuple[str, wire.Tag], tuple[int, wire.RunTask]] = {}
        self.ran: list[str] = []
        self.batches: list[list[wire.Tag]] = []
        """Tags of the tasks that were given out together, in order."""
        self.emitted: dict[int, int] = {}
        self.starting: list[int] = []
        self.leaving: list[int] = []
        self.gone: list[int] = []
        self._deaf = deaf
        for number, item in enumerate(workflows):
            self.tell(events.WorkflowAdded(f"{item.name}{number or ''}@1", compile_program(item)))

    def tell(self, event: events.Event) -> list[commands.Command]:
        """An event and all that it leads to; the commands of this event only."""
        answer = self.core.handle(event, self.clock.advance(0.001))
        self.core.check_integrity()
        self.said += answer
        for command in answer:
            self._note(command)
        if not self._deaf:
            self.hello()
        return answer

    def _note(self, command: commands.Command) -> None:
        match command:
            case commands.StartContainer(number, _, started):
                self.stages[number] = started.name
                self.starting.append(number)
            case commands.StopContainer(number) | commands.KillContainer(number):
                self.leaving.append(number)
            case commands.Tell(number, wire.RunTask() as message):
                self.running[self.stages[number], message.tag] = (number, message)
                self.ran.append(self.stages[number])
            case commands.Tell(number, wire.RunBatch(tasks)):
                for message in tasks:
                    self.running[self.stages[number], message.tag] = (number, message)
                self.ran += [self.stages[number]] * len(tasks)
                self.batches.append([message.tag for message in tasks])
            case commands.EmitOutput(_, name, index, value):
                if index < 0:
                    self.outputs[name] = unpack(value)
                else:
                    self.outputs.setdefault(name, []).append(unpack(value))
            case commands.EndOutput(_, name, absent):
                self.ended[name] = absent
            case commands.FinishInvocation(invocation, failure, _):
                self.finished[invocation] = failure
            case commands.WakeAt(time):
                self.wake_at = time

    # --- what happens ---

    def invoke(
        self,
        invocation: str = "i",
        *,
        key: str = "w@1",
        deadline: float = 0.0,
        streams: Sequence[str] = (),
        **inputs: Any,
    ) -> None:
        """A call arrives; `streams` names the inputs that will be fed."""
        self.tell(events.InvocationArrived(invocation, key, _values(inputs), tuple(streams), deadline))

    def feed(self, name: str, *items: Any, invocation: str = "i") -> None:
        """The caller sends items of a stream input."""
        for item in items:
            self.tell(events.InputArrived(invocation, name, plain(item)))

    def end(self, name: str, *, invocation: str = "i") -> None:
        """The caller ends a stream input."""
        self.tell(events.InputEnded(invocation, name))

    def hello(self) -> None:
        """All containers that were started become ready."""
        while self.starting:
            self.tell(events.ContainerSaid(self.starting.pop(0), wire.Hello(wire.VERSION, 1)))

    def start_failed(self, kind: str = "ImportError") -> None:
        """The container that was started first says that it can't, and leaves."""
        number = self.starting.pop(0)
        error = wire.ErrorRecord(Code.FAILED_PRECONDITION, kind, "on purpose")
        self.tell(events.ContainerSaid(number, wire.StartFailed(error)))
        self.exit(number)

    def die_starting(self) -> None:
        """The container that was started first dies before it is ready."""
        self.exit(self.starting.pop(0))

    def exit(self, number: int) -> None:
        """A container is gone."""
        self.gone.append(number)
        self.tell(events.ContainerExited(number, "was killed by signal 9"))

    def leave(self) -> None:
        """All containers that were told to stop are gone."""
        while self.leaving:
            number = self.leaving.pop(0)
            if number in self.starting:
                self.starting.remove(number)
            self.exit(number)

    def emit(self, stage_name: str, *tag: int, **outputs: Any) -> None:
        """A running task yields once."""
        number, message = self.running[stage_name, tag]
        index = self.emitted.get(message.task, 0)
        self.emitted[message.task] = index + 1
        self.tell(events.ContainerSaid(number, wire.TokenSent(message.task, index, _values(outputs))))

    def done(
        self, stage_name: str, *tag: int, held: Sequence[events.Slot] = (), took: float = 0.0, **outputs: Any
    ) -> None:
        """A running task returns after `took` seconds; its container keeps views of the slots `held`."""
        number, message = self.running.pop((stage_name, tag))
        items = self.emitted.get(message.task, 0)
        times = wire.Times(started=1.0, ended=1.0 + took) if took else wire.Times()
        self.tell(
            events.ContainerSaid(number, wire.TaskDone(message.task, _values(outputs), items, times, tuple(held)))
        )

    def hand_on(self, stage_name: str, *tag: int, ended: float = 0.0, **outputs: Any) -> None:
        """A running task returns; its container has given the outputs to the container that was promised them.

        `ended`: when that was, if the host hears of it later.
        """
        number, message = self.running.pop((stage_name, tag))
        then = message.then
        assert then is not None, f"{stage_name} was not told whom to give its outputs to"
        values = _values(outputs)
        inputs = tuple(wire.Single(name, values[port]) for name, port in then.ports if port in values)
        given = wire.RunTask(then.task, inputs, message.deadline_s, tag=message.tag, then=then.then)
        self.running[self.stages[then.container], tag] = (then.container, given)
        said = wire.TaskDone(message.task, values, 0, wire.Times(ended=ended), (), then.task)
        self.tell(events.ContainerSaid(number, said))

    def done_together(self, stage_name: str, *tags: wire.Tag, out: Any = 0) -> None:
        """Tasks of one batch return; `out` for each of them."""
        entries = [self.running.pop((stage_name, tag)) for tag in tags]
        results = tuple(wire.TaskDone(m.task, _values({"out": out}), 0, wire.Times()) for _, m in entries)
        self.tell(events.ContainerSaid(entries[0][0], wire.BatchDone(results)))

    def fail(self, stage_name: str, *tag: int, kind: str = "ValueError", code: Code = Code.INTERNAL) -> None:
        """A running task raises."""
        number, message = self.running.pop((stage_name, tag))
        error = wire.ErrorRecord(code, kind, "on purpose")
        self.tell(events.ContainerSaid(number, wire.TaskFailed(message.task, error, wire.Times())))

    def crash(self, stage_name: str, *tag: int) -> None:
        """The container of a running task dies."""
        number, _ = self.running.pop((stage_name, tag))
        self.exit(number)

    def taken(self, stage_name: str, *tag: int, name: str, items: int, held: Sequence[events.Slot] = ()) -> None:
        """A running task has read so many items of a stream input."""
        number, message = self.running[stage_name, tag]
        self.tell(events.ContainerSaid(number, wire.Taken(message.task, name, items, tuple(held))))

    def take(self, name: str, items: int, invocation: str = "i") -> None:
        """The caller has copied out so many items of an output."""
        self.tell(events.OutputTaken(invocation, name, items))

    def release(self, invocation: str = "i") -> None:
        """The caller is done with the outputs."""
        self.tell(events.InvocationReleased(invocation))

    def wake(self) -> None:
        """Time passes until the core's alarm."""
        self.clock.advance_to(self.wake_at)
        self.wake_at = math.inf
        self.tell(events.Woke())

    def wait(self, seconds: float) -> None:
        """So much time passes, with all the alarms in it."""
        end = self.clock.monotonic() + seconds
        while self.wake_at <= end:
            self.wake()
        self.clock.advance_to(end)

    # --- what follows ---

    def is_running(self, stage_name: str, *tag: int) -> bool:
        """Whether that task is with a container and has not ended."""
        return (stage_name, tag) in self.running

    def tags_of(self, stage_name: str) -> list[wire.Tag]:
        """Tags of the stage's running tasks, in order."""
        return sorted(tag for name, tag in self.running if name == stage_name)

    def inputs_of(self, stage_name: str, *tag: int) -> dict[str, Any]:
        """Inputs of a running task as they were when it began (lists for streams)."""
        _, message = self.running[stage_name, tag]
        seen: dict[str, Any] = {}
        for item in message.inputs:
            if isinstance(item, wire.Single):
                seen[item.name] = unpack(item.value)
            else:
                seen[item.name] = [unpack(value) for value in item.values]
        return seen

    def told(self, kind: type[Any]) -> list[Any]:
        """All messages of one kind to containers so far."""
        return [c.message for c in self.said if isinstance(c, commands.Tell) and isinstance(c.message, kind)]

    def granted(self, stage_name: str, *tag: int) -> int:
        """Items that a running task may have emitted in all."""
        task = self.running[stage_name, tag][1]
        grants: list[wire.Grant] = self.told(wire.Grant)
        return max([task.credit_items, *(grant.items for grant in grants if grant.task == task.task)])

    def granted_bytes(self, stage_name: str, *tag: int) -> int:
        """Bytes that a running task may have emitted in all."""
        task = self.running[stage_name, tag][1]
        grants: list[wire.Grant] = self.told(wire.Grant)
        return max([task.credit_bytes, *(grant.bytes for grant in grants if grant.task == task.task)])

    def containers_of(self, stage_name: str) -> list[int]:
        """Containers of a stage that are not gone."""
        return [n for n, name in self.stages.items() if name == stage_name and n not in self.gone]

    @property
    def given_back(self) -> list[events.Slot]:
        """Slots that their owners may use again, in order."""
        return [slot for message in self.told(wire.ReleaseSlots) for slot in message.slots]

    @property
    def failure(self) -> Failure | None:
        """Why the invocation `i` failed; KeyError while it runs."""
        return self.finished["i"]


def _values(payloads: Mapping[str, Any]) -> dict[str, wire.Value]:
    return {name: p if isinstance(p, wire.Value) else plain(p) for name, p in payloads.items()}
