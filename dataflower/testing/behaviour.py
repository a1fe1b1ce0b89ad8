"""Functions without code: what a stage of a generated workflow does, as data.

A behaviour is a pure function of the task's inputs, tag and attempt, so every execution of a workflow must lead to the
same values whatever the order of events. It is written as a generator of requests (`Read`, `Emit`, `Hang`), which the
reference executor drives to the end in one go and the scripted containers step by step.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflower.spec.function import Port
from dataflower.spec.workflow import Stage
from dataflower.wire import Tag, TensorRef


@dataclass(frozen=True, slots=True)
class FakeTensor:
    """A tensor in a payload: its content is its size. `ref` is where it lies, in an execution that has slots."""

    size: int
    ref: TensorRef | None = field(default=None, compare=False, repr=False)


class Shape(enum.Enum):
    """What an output port hands out: an int, an int with a tensor, the tensor of the input again, or keyed items."""

    INT = "int"
    TENSOR = "tensor"
    FORWARD = "forward"
    KEYED = "keyed"


class End(enum.Enum):
    """Answer to `Read` after the last item of a stream."""

    END = "end"


@dataclass(frozen=True, slots=True)
class Read:
    """Wants the next item of a stream input; answered with it, or with `End.END`."""

    name: str


@dataclass(frozen=True, slots=True)
class Emit:
    """A `yield` of the function: port -> payload."""

    outputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hang:
    """Does nothing more until it is cancelled."""


Request = Read | Emit | Hang
Steps = Generator[Request, Any, Mapping[str, Any]]


class Raised(Exception):
    """User code raised; `kind` is the class of its exception."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"{kind} on purpose")
        self.kind = kind
        self.message = f"{kind} on purpose"


@dataclass(frozen=True, slots=True)
class Fault:
    """An attempt raises `kind` once it has emitted `after` items (or at its end).

    It does if the task's digest is 0 modulo `one_in`. An empty `kind` means that it hangs instead of raising.
    """

    kind: str
    after: int = 0
    one_in: int = 1


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a function does. `faults` by attempt, counted from 1; an attempt not named succeeds.

    `counts`: how many items a generator emits of its own accord, picked by the digest of its inputs. `reads`: it
    stops reading a stream after so many items (None: at the end). `per_item`: it emits once per item read. `absent`:
    port -> n, it is left out whenever its digest is 0 modulo n.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    counts: tuple[int, ...] = (1,)
    reads: int | None = None
    per_item: bool = True
    absent: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[int, Fault] = field(default_factory=dict)

    def start(self, stage: Stage, tag: Tag, inputs: Mapping[str, Any], streams: tuple[str, ...], attempt: int) -> Steps:
        """Begin a task. `inputs`: payloads of everything but the stream inputs, whose names are `streams`."""
        state = digest([stage.name, tag, sorted(inputs.items())])
        fault = self.faults.get(attempt)
        if fault is not None and state % fault.one_in:
            fault = None
        newest = kept = _tensor_in(list(inputs.values()))
        stream_ports = [port for port in stage.outputs if port.stream]
        emitted = 0
        reading, reads = list(streams), dict.fromkeys(streams, 0)
        while reading:
            for name in tuple(reading):
                item = End.END if reads[name] == self.reads else (yield Read(name))
                if item is End.END:
                    reading.remove(name)
                    continue
                reads[name] += 1
                state = digest([state, name, item])
                newest = _tensor_in(item) or kept  # older items have been let go
                if self.per_item and stream_ports:
                    yield from _fail_if(fault, emitted)
                    yield Emit(self._outputs(stream_ports, state, emitted, newest))
                    emitted += 1
        if stream_ports:
            for _ in range(self.counts[state % len(self.counts)]):
                yield from _fail_if(fault, emitted)
                yield Emit(self._outputs(stream_ports, state, emitted, newest))
                emitted += 1
        if fault is not None:
            yield from _fail_if(fault, fault.after)
        return self._outputs([port for port in stage.outputs if not port.stream], state, -1, newest)

    def _outputs(self, ports: list[Port], state: int, index: int, newest: FakeTensor | None) -> dict[str, Any]:
        fresh: FakeTensor | None = None
        outputs: dict[str, Any] = {}
        for port in ports:
            x = digest([state, port.name, index])
            if port.name in self.absent and x % self.absent[port.name] == 0:
                continue
            match self.shapes.get(port.name, Shape.INT):
                case Shape.INT:
                    outputs[port.name] = x
                case Shape.KEYED:
                    fresh = fresh or FakeTensor(state % 97 + 1)
                    outputs[port.name] = {"key": ("a", "b", 3)[x % 3], "value": [x, fresh] if x % 2 else x}
                case Shape.FORWARD if newest is not None:
                    outputs[port.name] = [x, newest]
                case _:
                    # Ports of one yield share the tensor, as a function may hand out one array twice.
                    fresh = fresh or FakeTensor(state % 97 + 1)
                    outputs[port.name] = [x, fresh]
        return outputs


def _fail_if(fault: Fault | None, emitted: int) -> Generator[Request, Any, None]:
    if fault is not None and emitted == fault.after:
        if fault.kind:
            raise Raised(fault.kind)
        while True:
            yield Hang()


def digest(value: Any) -> int:
    """A number that depends on everything in `value`, the same in every process."""
    return zlib.crc32(repr(canonical(value)).encode())


def canonical(value: Any) -> Any:
    """`value` in a form whose `repr` is the same however it travelled. Error records lose their message."""
    if isinstance(value, dict):
        keep = value.keys() - {"message"} if {"kind", "message", "stage"} <= value.keys() else value.keys()
        return {key: canonical(value[key]) for key in sorted(keep, key=repr)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def _tensor_in(value: Any) -> FakeTensor | None:
    if isinstance(value, FakeTensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _tensor_in(item)) is not None), None)
    return None
