"""A container without a process: it obeys the protocol, and insists that the core does."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any

from dataflower import wire
from dataflower.core.ahead import MOST
from dataflower.core.events import ContainerDied, ContainerExited, ContainerSaid, ContainerSending, Event, Slot
from dataflower.errors import Code
from dataflower.spec.workflow import Stage
from dataflower.testing.behaviour import Behaviour, Emit, End, FakeTensor, Hang, Raised, Read
from dataflower.testing.payloads import pack, slots_of, unpack
from dataflower.testing.slots import FakeSlots
from dataflower.wire import TensorRef, Value

_FAR_BYTES, _FAR_BYTES_PER_S = 1 << 20, 1e8
"""What results take that come from another host, and how fast."""


class Phase(enum.Enum):
    """Life of a container. LEAVING: told to stop; KILLED: about to be seen dead; DYING: dead, and what it said is still
    on its way.
    """

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    KILLED = "killed"
    DYING = "dying"
    GONE = "gone"


class _Inbox:
    """A stream input of a running task."""

    def __init__(self, opened: wire.Opened) -> None:
        self.values = list(opened.values)
        self.ended = opened.ended
        self.read = 0
        self.told = 0

    def reads(self) -> set[Slot]:
        """Slots of the items that were not let go of."""
        return {slot for value in self.values[max(0, self.told - 1) :] for slot in slots_of(value)}


class ScriptedTask:
    """A running task. `request` is what its function waits for; `outcome` how it ended, before that is told."""

    def __init__(self, stage: Stage, behaviour: Behaviour, message: wire.RunTask) -> None:
        self.number = message.task
        self.invocation = message.invocation
        self.tag = message.tag
        self.credit_items = message.credit_items
        self.credit_bytes = message.credit_bytes
        self.cancelled = False
        self.emitted = 0
        self.emitted_bytes = 0
        self.fixed: set[Slot] = set()
        self.inboxes: dict[str, _Inbox] = {}
        inputs: dict[str, Any] = {}
        for item in message.inputs:
            assert item.name not in inputs, f"input {item.name!r} given twice"
            assert item.name not in self.inboxes, f"input {item.name!r} given twice"
            match item:
                case wire.Single(name, value):
                    inputs[name] = unpack(value)
                    self.fixed.update(slots_of(value))
                case wire.Gathered(name, values):
                    inputs[name] = [unpack(value) for value in values]
                    self.fixed.update(slot for value in values for slot in slots_of(value))
                case wire.Opened(name):
                    self.inboxes[name] = _Inbox(item)
        expected = {port.name for port in stage.input_ports if not port.optional}
        assert expected <= inputs.keys() | self.inboxes.keys(), f"inputs missing: {message}"
        for port in stage.input_ports:
            if port.optional:
                inputs.setdefault(port.name, port.default)
            assert port.stream == (port.name in self.inboxes), f"input {port.name!r} comes in the wrong form"
        streams = tuple(port.name for port in stage.input_ports if port.stream)
        self.then = message.then
        self.run = message
        self.steps = behaviour.start(stage, message.tag, inputs, streams, message.attempt)
        self.request: Any = None
        self.outcome: Any = None
        self.is_copying = False
        """Whether its function is over and its place given up."""
        self.proceed(None)

    def proceed(self, answer: Any) -> None:
        """Let the function run to its next request or its end."""
        try:
            self.request = self.steps.send(answer)
        except StopIteration as stop:
            self.outcome = stop.value
            self.request = None
        except Raised as raised:
            self.outcome = raised
            self.request = None

    def reads(self) -> set[Slot]:
        """Slots that user code may look at."""
        return self.fixed.union(*(inbox.reads() for inbox in self.inboxes.values()))


class ScriptedContainer:
    """Plays one container; `moves` are what it could do next."""

    def __init__(
        self,
        number: int,
        stage: Stage,
        behaviour: Behaviour,
        slots: FakeSlots,
        peers: Mapping[int, ScriptedContainer] | None = None,
    ) -> None:
        """`peers`: all containers of the host, for outputs that are handed on directly."""
        self.number = number
        self.started: list[wire.RunTask] = []
        """Tasks that it has begun with, for whoever keeps the books to take."""
        self.relayed = 0
        """Tasks that other containers handed it."""
        self.waiting: deque[wire.RunTask] = deque()
        """Its inbox: what it has not begun with."""
        self._given_back: list[int] = []
        self._peers = {} if peers is None else peers
        self._early: set[int] = set()
        """Promised tasks that were cancelled before they came."""
        self.stage = stage
        self.is_far = False
        """Whether it is on another host: results come late, in order, and its core knows that they will."""
        self._on_way: deque[wire.FromContainer] = deque()
        self._over: set[int] = set()
        """Tasks whose results are on their way."""
        self.stubborn = False
        """Whether its tasks ignore that they were cancelled."""
        self.phase = Phase.STARTING
        self.tasks: dict[int, ScriptedTask] = {}
        self.batches: list[list[ScriptedTask]] = []
        """Tasks that run together, less those that were reported."""
        self.held: set[Slot] = set()
        """Slots that outlived their task or their turn in a stream; each was declared once."""
        self._behaviour = behaviour
        self._slots = slots
        self._arena = 0
        self._reason = ""

    # --- from the core ---

    def receive(self, message: wire.ToContainer) -> None:
        """Take a message; AssertionError if the core may not send it now."""
        match message:
            case wire.RunTask():
                assert self.phase is Phase.READY, f"task for container {self.number} while {self.phase.value}"
                assert self.stage.batch is None, f"stage {self.stage.name} takes batches, not single tasks"
                most = self.stage.scaling.concurrency + MOST
                assert self._seated() + len(self.waiting) < most, f"container {self.number} has no place"
                self.waiting.append(message)
                if any(isinstance(entry, wire.Opened) for entry in message.inputs):
                    self._begin_next()  # what comes for its streams comes after it
            case wire.RunBatch(tasks):
                self._start_batch(tasks)
            case wire.Feed(number, name, values):
                inbox = self._inbox(number, name)
                if inbox is not None:
                    for value in values:
                        for slot in slots_of(value):
                            self._slots.check_readable(slot)
                    inbox.values += values
            case wire.FeedEnd(number, name):
                inbox = self._inbox(number, name)
                if inbox is not None:
                    inbox.ended = True
            case wire.Grant(number, items, nbytes):
                if number in self._over:
                    return
                task = self.tasks[number]
                assert items >= task.credit_items, "credit taken back"
                assert nbytes >= task.credit_bytes, "credit taken back"
                task.credit_items, task.credit_bytes = items, nbytes
            case wire.CancelTask(number):
                if number in self.tasks:
                    self.tasks[number].cancelled = True
                else:
                    self._early.add(number)
            case wire.Withdraw(numbers, reason):
                self._withdraw(numbers, reason)
            case wire.Prefetch(refs):
                for ref in refs:
                    self._slots.check_readable((ref.arena, ref.slot))
            case wire.Trim() | wire.AttachArena() | wire.DetachArena() | wire.ReleaseSlots():
                pass

    def _withdraw(self, numbers: tuple[int, ...], reason: str) -> None:
        back = [message for message in self.waiting if message.task in numbers]
        self.waiting = deque(message for message in self.waiting if message.task not in numbers)
        self._given_back += [message.task for message in back]
        for number in numbers:
            known = number in self.tasks or number in self._given_back or number in self._over
            assert known, f"task {number} was never here"
            if reason and number in self.tasks:
                self.tasks[number].cancelled = True

    def _begin(self, random: Random) -> bool:
        """Begin with what waits, as far as places are free, perhaps not at once; False if with nothing."""
        begun = False
        while self.waiting and self._seated() < self.stage.scaling.concurrency and random.random() < 0.8:
            self._begin_next()
            begun = True
        return begun

    def _seated(self) -> int:
        """Tasks that take a place."""
        return sum(1 for task in self.tasks.values() if not task.is_copying)

    def _begin_next(self) -> None:
        message = self.waiting.popleft()
        self._start(message).cancelled = message.task in self._early

    def _start(self, message: wire.RunTask) -> ScriptedTask:
        assert message.task not in self.tasks, f"task {message.task} started twice"
        self.started.append(message)
        task = ScriptedTask(self.stage, self._behaviour, message)
        for slot in task.reads():
            self._slots.check_readable(slot)
        self.tasks[message.task] = task
        return task

    def _start_batch(self, messages: tuple[wire.RunTask, ...]) -> None:
        """One call for several tasks, which must be such as may share one."""
        assert self.phase is Phase.READY, f"batch for container {self.number} while {self.phase.value}"
        spec = self.stage.batch
        assert spec is not None, f"stage {self.stage.name} takes single tasks"
        assert len(self.batches) < self.stage.scaling.concurrency, f"container {self.number} has no place"
        assert 1 <= len(messages) <= spec.max_size, f"a batch of {len(messages)}"
        assert len(messages) == 1 or all(m.attempt == 1 for m in messages), "a task that is tried again runs alone"
        batch = [self._start(message) for message in messages]
        if spec.same_shape:
            assert len({tensors_of(message) for message in messages}) == 1, "tensors of several shapes in a batch"
        self.batches.append(batch)

    def stop(self) -> None:
        """Told to leave."""
        assert self.phase in (Phase.STARTING, Phase.READY), f"container {self.number} stopped while {self.phase.value}"
        assert not self.tasks, f"container {self.number} stopped while it runs {list(self.tasks)}"
        assert not self.waiting, f"container {self.number} stopped while {list(self.waiting)} wait"
        assert not self._over, f"container {self.number} stopped while results of {self._over} are on their way"
        self.phase = Phase.LEAVING

    def kill(self, reason: str) -> None:
        """About to die."""
        assert self.phase is not Phase.GONE, f"container {self.number} killed when gone"
        self.phase = Phase.KILLED
        self._reason = reason

    def _inbox(self, number: int, name: str) -> _Inbox | None:
        if number in self._over:
            return None
        assert number in self.tasks, f"stream {name!r} fed to task {number}, which does not run"
        inbox = self.tasks[number].inboxes[name]
        assert not inbox.ended, f"stream {name!r} of task {number} fed after its end"
        return inbox

    # --- to the core ---

    def reads(self) -> set[Slot]:
        """Slots that somebody in here may look at."""
        if self.phase is Phase.GONE:
            return set()
        waiting = {slot for message in self.waiting for entry in message.inputs for slot in _slots(entry)}
        return waiting.union(self.held, *(task.reads() for task in self.tasks.values()))

    def moves(self, random: Random) -> list[Callable[[], Event]]:
        """What it could do next."""
        if self._on_way and self.phase in (Phase.LEAVING, Phase.KILLED, Phase.DYING):
            return [self._arrive]
        match self.phase:
            case Phase.GONE:
                return []
            case Phase.LEAVING | Phase.KILLED | Phase.DYING:
                return [partial(self.exit, self._reason or "exited with status 0")]
            case Phase.STARTING:
                return [self._hello]
        while self.waiting and not self._begin(random) and not self.tasks:
            pass
        found: list[Callable[[], Event]] = [self._arrive] if self._on_way else []
        if self._given_back:
            found.append(self._give_back)
        if self.stage.batch is None:
            for task in self.tasks.values():
                found += self._task_moves(task, random)
        for batch in self.batches:
            if not self.stubborn or not all(task.cancelled for task in batch):
                found.append(partial(self._end_batch, batch, random) if self._arena else self._make_arena)
        if self.held:
            found.append(self._unheld)
        return found

    def exit(self, reason: str) -> Event:
        """Die, whatever it was doing."""
        begun = None if self._on_way else self._begun()
        self._on_way.clear()
        self._be_gone(Phase.GONE)
        return ContainerExited(self.number, reason, begun)

    def die(self, reason: str, random: Random) -> Event:
        """The same; perhaps that is known before what it said has come."""
        if not self._on_way or random.random() < 0.5:
            return self.exit(reason)
        owed = frozenset(number for message in self._on_way for number in _concerns(message))
        begun = self._begun()
        self._reason = reason
        self._be_gone(Phase.DYING)
        self._over.update(owed)
        return ContainerDied(self.number, reason, begun, owed)

    def _begun(self) -> frozenset[int]:
        return frozenset(number for number, task in self.tasks.items() if not task.is_copying)

    def _be_gone(self, phase: Phase) -> None:
        self.phase = phase
        self._over.clear()
        self.tasks.clear()
        self.waiting.clear()
        self.batches.clear()
        self.held.clear()

    def _give_back(self) -> Event:
        numbers, self._given_back = tuple(self._given_back), []
        return self._say(wire.Withdrawn(numbers))

    def _say(self, message: wire.FromContainer) -> Event:
        ended = _ends(message)
        if not self.is_far or not (ended or self._on_way):
            return ContainerSaid(self.number, message)
        self._on_way.append(message)
        self._over.update(ended)
        return self._sending(ended)

    def _sending(self, over: tuple[int, ...] = ()) -> Event:
        waiting = len(self._on_way) * _FAR_BYTES
        return ContainerSending(self.number, _FAR_BYTES if over else 0, waiting, _FAR_BYTES_PER_S, over, 0.0001)

    def _arrive(self) -> Event:
        """What was said first comes at last."""
        message = self._on_way.popleft()
        self._over.difference_update(_ends(message))
        return ContainerSaid(self.number, message)

    def _hello(self) -> Event:
        self.phase = Phase.READY
        return self._say(wire.Hello(wire.VERSION, 1000 + self.number))

    def _unheld(self) -> Event:
        slot = min(self.held)
        self.held.remove(slot)
        return self._say(wire.Unheld((slot,)))

    def _task_moves(self, task: ScriptedTask, random: Random) -> list[Callable[[], Event]]:
        found: list[Callable[[], Event]] = []
        if task.cancelled and self.stubborn:
            return found
        # Reading tells nobody anything, so it goes on until it is told, or nothing is there to read.
        while isinstance(task.request, Read):
            inbox = task.inboxes[task.request.name]
            if inbox.read < len(inbox.values):
                inbox.read += 1
                task.proceed(unpack(inbox.values[inbox.read - 1]))
            elif inbox.ended:
                task.proceed(End.END)
            else:
                break
            if inbox.told < inbox.read and random.random() < 0.5:
                break
        for name, inbox in task.inboxes.items():
            if inbox.told < inbox.read:
                found.append(partial(self._taken, task, name, random))
        if task.cancelled and not self.stubborn:
            found.append(partial(self._cancelled, task, random))
        if isinstance(task.request, Emit):
            if not self._arena:
                found.append(self._make_arena)
            elif task.emitted < task.credit_items and task.emitted_bytes < task.credit_bytes:
                found.append(partial(self._emit, task, task.request))
        elif task.request is None:
            found.append(partial(self._end, task, random) if self._arena else self._make_arena)
            if task.run.wanted and not self.is_far and not any(other.is_copying for other in self.tasks.values()):
                found.append(partial(self._compute, task))
        assert not isinstance(task.request, Hang) or task.cancelled or self.stage.timeout_s is not None
        return found

    def _make_arena(self) -> Event:
        self._arena = self._slots.make_arena(self.number)
        return self._say(wire.ArenaMade(self._arena, 1 << 20))

    def _taken(self, task: ScriptedTask, name: str, random: Random) -> Event:
        inbox = task.inboxes[name]
        before = inbox.reads()
        inbox.told = inbox.read
        return self._say(wire.Taken(task.number, name, inbox.read, self._keep(before - inbox.reads(), random)))

    def _emit(self, task: ScriptedTask, request: Emit) -> Event:
        outputs = self._pack_all(dict(request.outputs))
        index = task.emitted
        task.emitted += 1
        task.emitted_bytes += sum(len(v.body) + sum(ref.nbytes for ref in v.tensors) for v in outputs.values())
        task.proceed(None)
        return self._say(wire.TokenSent(task.number, index, outputs))

    def _end_batch(self, batch: list[ScriptedTask], random: Random) -> Event:
        """All tasks of a batch are over, or, where room is short, some before the others."""
        count = random.randint(1, len(batch)) if random.random() < 0.2 else len(batch)
        over, batch[:] = batch[:count], batch[count:]
        if not batch:
            self.batches.remove(batch)
        results = [
            self._stopped(task, random) if task.cancelled and random.random() < 0.5 else self._result(task, random)
            for task in over
        ]
        return self._say(wire.BatchDone(tuple(results)))

    def _compute(self, task: ScriptedTask) -> Event:
        task.is_copying = True
        return self._say(wire.Computed(task.number))

    def _end(self, task: ScriptedTask, random: Random) -> Event:
        return self._say(self._result(task, random))

    def _result(self, task: ScriptedTask, random: Random) -> wire.TaskDone | wire.TaskFailed:
        outcome = task.outcome
        if isinstance(outcome, Raised):
            error = wire.ErrorRecord(Code.INTERNAL, outcome.kind, outcome.message)
            return wire.TaskFailed(task.number, error, wire.Times(), self._leave(task, random))
        outputs = self._pack_all(dict(outcome))
        forwarded = self._forward(task, outputs, random)
        times = wire.Times(started=1.0, ended=1.0001)
        return wire.TaskDone(task.number, outputs, task.emitted, times, self._leave(task, random), forwarded)

    def _forward(self, task: ScriptedTask, outputs: dict[str, Value], random: Random) -> int:
        """Hand the outputs straight to the container that was promised them, if nothing speaks against it."""
        then = task.then
        if then is None or self.is_far or task.cancelled or random.random() < 0.2:
            return 0
        peer = self._peers[then.container]
        if peer.is_far or peer.phase is not Phase.READY or any(port not in outputs for _, port in then.ports):
            return 0
        inputs = tuple(wire.Single(name, outputs[port]) for name, port in then.ports)
        run = task.run
        message = wire.RunTask(
            then.task,
            inputs,
            run.deadline_s,
            then.credit_items,
            then.credit_bytes,
            run.invocation,
            run.tag,
            1,
            then.then,
        )
        peer.receive(message)
        peer.relayed += 1
        return then.task

    def _cancelled(self, task: ScriptedTask, random: Random) -> Event:
        return self._say(self._stopped(task, random))

    def _stopped(self, task: ScriptedTask, random: Random) -> wire.TaskFailed:
        error = wire.ErrorRecord(Code.CANCELLED, "Cancelled", "told to stop")
        return wire.TaskFailed(task.number, error, wire.Times(), self._leave(task, random))

    def _leave(self, task: ScriptedTask, random: Random) -> tuple[Slot, ...]:
        """End a task; now and then user code keeps views of its inputs."""
        del self.tasks[task.number]
        return self._keep(task.reads(), random)

    def _keep(self, slots: set[Slot], random: Random) -> tuple[Slot, ...]:
        """Declare some slots held that were not before."""
        kept = tuple(slot for slot in sorted(slots - self.held) if random.random() < 0.3)
        self.held.update(kept)
        return kept

    def _pack_all(self, payloads: dict[str, Any]) -> dict[str, Value]:
        placed: dict[int, TensorRef] = {}

        def allocate(tensor: FakeTensor) -> TensorRef:
            # One tensor in two ports of a yield lies in one slot.
            if id(tensor) not in placed:
                placed[id(tensor)] = self._slots.allocate(self._arena, tensor)
            return placed[id(tensor)]

        return {port: pack(payload, allocate) for port, payload in payloads.items()}


def _ends(message: wire.FromContainer) -> tuple[int, ...]:
    """The tasks that a message is the end of."""
    if isinstance(message, wire.BatchDone):
        return tuple(result.task for result in message.results)
    return (message.task,) if isinstance(message, wire.TaskDone | wire.TaskFailed) else ()


def _concerns(message: wire.FromContainer) -> tuple[int, ...]:
    """The tasks that a message hands out something of."""
    return (message.task,) if isinstance(message, wire.TokenSent) else _ends(message)


def tensors_of(message: wire.RunTask) -> tuple[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]], ...]:
    """Dtypes and shapes of the tensors of each input."""
    return tuple(
        (entry.name, tuple((ref.dtype, ref.shape) for value in _values(entry) for ref in value.tensors))
        for entry in message.inputs
    )


def _slots(entry: wire.TaskInput) -> set[Slot]:
    return {slot for value in _values(entry) for slot in slots_of(value)}


def _values(entry: wire.TaskInput) -> tuple[Value, ...]:
    return (entry.value,) if isinstance(entry, wire.Single) else entry.values
