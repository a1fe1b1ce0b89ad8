"""What it takes to make lost data again: which outputs may be lost, what they were made from, and where they went.

Outputs that stay on the host where they were made, or go straight from there to another one, are gone with it. So the
inputs of such a task are kept as long as any of its outputs is needed, and if they are lost the task runs again
(`core.recovery`). Its inputs may have been lost with them: those were made by tasks that are kept in the same way, back
to what came from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dataflower.core.events import Slot
from dataflower.core.instance import Instance, StreamInput
from dataflower.core.ledger import Ledger
from dataflower.core.payload import Payload, drop, hold, refs_of
from dataflower.core.program import OUTPUT, Program, StageProgram
from dataflower.core.retry import matches
from dataflower.core.shared import is_shared
from dataflower.errors import Code, Failure
from dataflower.wire import TensorRef, Value

if TYPE_CHECKING:
    from dataflower.core.matching import Flow

KIND = "DataLost"
"""The kind of failure that `retry.errors` is matched against before a finished task is run again."""
RESULT = -1
"""Index of what a task returned, among what it yielded."""


def staying(program: Program, places: Mapping[str, str], *, lines: bool = True) -> frozenset[int]:
    """The stages whose outputs need not come to the owner. `places`: host by stage, if it is not the owner's.

    Those whose readers are all on other hosts too, and which may be run again if their host is lost. Who reads their
    items on another one of them may have begun when it is lost, and so must be one that may run again as well.
    `lines`: whether other hosts send to each other; else all readers must be where the outputs are made.
    """
    return frozenset(stage.index for stage in program.stages[1:] if _stays(program, stage, places, lines))


def _stays(program: Program, stage: StageProgram, places: Mapping[str, str], lines: bool) -> bool:
    place = places.get(stage.name, "")
    if not place or stage.cases or is_shared(stage.stage) or not may_run_again(stage):
        return False
    for consumers in (*stage.values.values(), *stage.streams.values()):
        for consumer in consumers:
            if consumer.stage == OUTPUT:
                return False
            reader = program.stages[consumer.stage]
            if reader.inputs[consumer.input].is_control:
                continue
            reads_at = places.get(reader.name, "")
            if reader.cases or is_shared(reader.stage) or not reads_at:
                return False
            is_stream = reader.inputs[consumer.input].stream
            if reads_at != place and (not lines or (is_stream and not may_run_again(reader))):
                return False
    return True


def may_run_again(stage: StageProgram) -> bool:
    """Whether a task of the stage may run once more when it was over already.

    Then all items of its stream inputs are kept until that, since it may be tried again anyhow.
    """
    retry = stage.stage.retry
    return retry is not None and retry.max_attempts > 1 and matches(retry.errors, KIND)


def data_lost(stage: str, attempt: int, why: str) -> Failure:
    """Outputs of a stage are gone and can't be made again."""
    message = f"outputs of stage {stage!r} were lost with the memory that they lay in, and {why}"
    return Failure(Code.INTERNAL, KIND, message, stage, attempt)


def slots_in(instance: Instance) -> set[Slot]:
    """Everything that the inputs of a task refer to, what has come of them."""
    found: set[Slot] = set()
    for payload in instance.payloads:
        if payload is not None:
            for value in payload if isinstance(payload, tuple) else (payload,):
                found.update((ref.arena, ref.slot) for ref in refs_of(value))
    for stream in instance.streams.values():
        for value, _ in stream.entries:
            found.update((ref.arena, ref.slot) for ref in refs_of(value))
    return found


def untold_slots_in(instance: Instance) -> set[Slot]:
    """What the items refer to that are held back from a running task."""
    return {(ref.arena, ref.slot) for s in instance.streams.values() for value in s.untold() for ref in refs_of(value)}


def inputs_lost(stage: str, attempt: int, why: str) -> Failure:
    """What a stage is to read is gone and can't be made again."""
    message = f"what stage {stage!r} reads was lost with the memory that it lay in, and {why}"
    return Failure(Code.INTERNAL, KIND, message, stage, attempt)


class Made:
    """A task with outputs that may be lost: what it made, and, when it is over, what it was given.

    Lives until the last slot of its outputs is free, or its invocation is over.
    """

    __slots__ = ("again", "attempt", "flow", "instance", "moved", "outputs", "payloads", "pinned", "slots", "streams")

    def __init__(self, flow: Flow, instance: Instance) -> None:
        self.flow = flow
        self.instance = instance
        self.attempt = instance.attempt
        self.outputs: dict[int, dict[str, Value]] = {}
        """Those that somebody may still read, by index and port: with stage and tag, the identity of a token."""
        self.slots: dict[Slot, int] = {}
        """Slots of its own that are in use, lost ones too, and the index of what lies there."""
        self.moved: dict[Slot, tuple[str, Value, Value]] = {}
        """Lost slots that were made again: the port, the output as it was, and as it is now."""
        self.again: Instance | None = None
        """The task that makes them again."""
        self.pinned = False
        """Whether its inputs are held for that."""
        self.payloads: list[Payload | None] = []
        self.streams: dict[int, list[Value]] = {}

    def pin(self, ledger: Ledger) -> None:
        """Its task is over: keep its inputs."""
        instance = self.instance
        self.attempt = instance.attempt
        if self.pinned or not self.slots:
            return
        self.pinned = True
        self.payloads = list(instance.payloads)
        self.streams = {number: [value for value, _ in s.entries] for number, s in instance.streams.items()}
        for payload in self.payloads:
            if payload is not None:
                hold(ledger, payload)
        for values in self.streams.values():
            hold(ledger, tuple(values))

    def forget(self, slot: Slot) -> None:
        """A slot of its own is free."""
        index = self.slots.pop(slot, None)
        self.moved.pop(slot, None)
        outputs = {} if index is None else self.outputs.get(index, {})
        if not any((ref.arena, ref.slot) in self.slots for value in outputs.values() for ref in refs_of(value)):
            self.outputs.pop(RESULT - 1 if index is None else index, None)

    def unpin(self, ledger: Ledger) -> None:
        """Let go of the inputs. Idempotent."""
        self.pinned = False
        for payload in self.payloads:
            if payload is not None:
                drop(ledger, payload)
        for values in self.streams.values():
            drop(ledger, tuple(values))
        self.payloads, self.streams = [], {}

    def pins(self, container: int) -> bool:
        """Whether it holds memory of a container."""
        for payload in self.payloads:
            if payload is not None:
                for value in payload if isinstance(payload, tuple) else (payload,):
                    if any(ref.arena >> 16 == container for ref in refs_of(value)):
                        return True
        return any(ref.arena >> 16 == container for vs in self.streams.values() for v in vs for ref in refs_of(v))

    def repeat(self, ledger: Ledger) -> Instance:
        """The task once more, with inputs of its own. Its outputs go where the lost ones are, and nowhere else."""
        former = self.instance
        instance = Instance(self.flow, former.program, former.tag)
        instance.attempt = self.attempt
        instance.payloads = list(self.payloads)
        instance.satisfied = [True] * len(instance.satisfied)
        instance.missing = instance.unheard = 0
        instance.repeats = True
        instance.made = self
        for payload in instance.payloads:
            if payload is not None:
                hold(ledger, payload)
        for number, values in self.streams.items():
            stream = instance.streams[number] = StreamInput()
            stream.ended = True
            stream.entries.extend((value, None) for value in values)
            hold(ledger, tuple(values))
        return instance


class Rewrite:
    """Outputs that were made again, and what becomes of the values that refer to the lost ones."""

    __slots__ = ("_ledger", "_places", "_whole")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._whole: dict[int, tuple[Value, Value]] = {}
        self._places: dict[Slot, list[tuple[TensorRef, TensorRef]]] = {}

    def note(self, old: Value, new: Value) -> None:
        """An output as it was, and as it is now."""
        self._whole[id(old)] = (old, new)
        before, after = refs_of(old), refs_of(new)
        if len(before) == len(after):
            for was, now in zip(before, after, strict=True):
                if was.nbytes == now.nbytes and (was.arena, was.slot) != (now.arena, now.slot):
                    self._places.setdefault((was.arena, was.slot), []).append((was, now))

    def value(self, value: Value) -> Value:
        """What to hold from now on instead of a value that is held; the books are kept."""
        found = self._whole.get(id(value))
        new = found[1] if found is not None and found[0] is value else self._moved(value)
        if new is not value:
            self._ledger.hold(new)
            self._ledger.drop(value)
        return new

    def payload(self, payload: Payload) -> Payload:
        """The same for a list of values too."""
        if isinstance(payload, tuple):
            return tuple([self.value(value) for value in payload])
        return self.value(payload)

    def instance(self, instance: Instance) -> None:
        """The same for all inputs of a task."""
        for number, payload in enumerate(instance.payloads):
            if payload is not None:
                instance.payloads[number] = self.payload(payload)
        for stream in instance.streams.values():
            for position, (value, item) in enumerate(stream.entries):
                new = self.value(value)
                if new is not value:
                    stream.entries[position] = (new, item)
        for merge in instance.merges.values():
            merge.rewrite(self.value)

    def untold(self, instance: Instance) -> None:
        """The same for what a running task has not been told of its streams."""
        for stream in instance.streams.values():
            for position in range(stream.sent - stream.base, len(stream.entries)):
                value, item = stream.entries[position]
                stream.entries[position] = (self.value(value), item)

    def made(self, made: Made) -> None:
        """The same for what is kept of a task that is over."""
        made.payloads = [None if payload is None else self.payload(payload) for payload in made.payloads]
        made.streams = {number: [self.value(value) for value in values] for number, values in made.streams.items()}

    def _moved(self, value: Value) -> Value:
        """A value that some other task made of a lost one: a view of it, a part, or the same."""
        if not any((ref.arena, ref.slot) in self._places for ref in refs_of(value)):
            return value
        tensors = tuple([self._place(ref) for ref in value.tensors])
        return replace(value, tensors=tensors, spilled=None if value.spilled is None else self._place(value.spilled))

    def _place(self, ref: TensorRef) -> TensorRef:
        for was, now in self._places.get((ref.arena, ref.slot), ()):
            if was.offset <= ref.offset and ref.offset + ref.nbytes <= was.offset + was.nbytes:
                return replace(ref, arena=now.arena, slot=now.slot, offset=now.offset + ref.offset - was.offset)
        return ref
