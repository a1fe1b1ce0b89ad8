"""A caller without a connection: sends inputs, reads outputs at its own pace, lets go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dataflower.core.events import (
    CancelArrived,
    Event,
    InputArrived,
    InputEnded,
    InvocationArrived,
    InvocationReleased,
    OutputTaken,
    Slot,
)
from dataflower.errors import Failure
from dataflower.spec.workflow import Fanout, Workflow
from dataflower.testing.outcome import ABSENT
from dataflower.testing.payloads import pack, slots_of, unpack
from dataflower.testing.scopes import Scopes
from dataflower.testing.slots import FakeSlots
from dataflower.wire import Value


class _Output:
    """What came of one output."""

    def __init__(self, stream: bool) -> None:
        self.stream = stream
        self.values: list[Value] = []
        self.taken = 0
        self.ended = False
        self.absent = False


class ScriptedCaller:
    """One invocation, from the caller's side. `inputs`: a payload per port, a list for a stream port.

    `slots` is the script's, needed only if the inputs hold tensors.
    """

    def __init__(
        self,
        invocation: str,
        key: str,
        workflow: Workflow,
        inputs: Mapping[str, Any],
        *,
        deadline: float = 0.0,
        slots: FakeSlots | None = None,
    ) -> None:
        self.invocation = invocation
        self.deadline = deadline
        self.arrived = False
        self.finished = False
        self.released = False
        self.failure: Failure | None = None
        scopes = Scopes(workflow)
        self.outputs = {
            output.name: _Output(output.edge.fanout is Fanout.GATHER or scopes.is_stream(output.edge.source))
            for output in workflow.outputs
        }
        self._key = key
        streams = {port.name for port in workflow.inputs if port.stream}
        self._slots = slots or FakeSlots()
        self._arena = self._slots.make_arena(0)
        self._values = {name: value for name, value in inputs.items() if name not in streams}
        self._items = {name: inputs[name] for name in inputs if name in streams}
        self._sent = dict.fromkeys(self._items, 0)
        self._allowed = dict.fromkeys(self._items, 0)
        self._open = set(self._items)

    # --- from the core ---

    def take_output(self, port: str, index: int, value: Value) -> None:
        """A result came."""
        output = self.outputs[port]
        assert not self.finished, f"output {port!r} after the end of {self.invocation}"
        assert not output.ended, f"output {port!r} after its end"
        assert index == (len(output.values) if output.stream else -1), f"output {port!r} out of order: {index}"
        assert output.stream or not output.values, f"output {port!r} came twice"
        output.values.append(value)

    def end_output(self, port: str, absent: bool) -> None:
        """An output is complete, or will not come."""
        output = self.outputs[port]
        assert not self.finished, f"end of output {port!r} after the end of {self.invocation}"
        assert not output.ended, f"output {port!r} ended twice"
        assert not (absent and output.values), f"output {port!r} absent after it came"
        output.ended, output.absent = True, absent

    def allow_input(self, port: str, items: int) -> None:
        """The core is ready for so many items in all."""
        assert items >= self._allowed[port], f"leave to send {port!r} taken back"
        self._allowed[port] = items

    def finish(self, failure: Failure | None) -> None:
        """It is over."""
        assert self.arrived, f"{self.invocation} is over before it began"
        assert not self.finished, f"{self.invocation} ended twice"
        self.finished, self.failure = True, failure
        if failure is None:
            for name, output in self.outputs.items():
                assert output.ended or (output.values and not output.stream), f"{name!r} undecided at the end"

    # --- to the core ---

    def reads(self) -> set[Slot]:
        """Slots of results that were not copied out yet."""
        if self.released:
            return set()
        return {
            s for output in self.outputs.values() for value in output.values[output.taken :] for s in slots_of(value)
        }

    def payloads(self) -> dict[str, Any]:
        """The outputs as the reference states them."""
        return {
            name: ABSENT if o.absent else [unpack(v) for v in o.values] if o.stream else unpack(o.values[0])
            for name, o in self.outputs.items()
        }

    def moves(self) -> list[Callable[[], Event]]:
        """What the caller could do next."""
        if not self.arrived:
            return [self._arrive]
        if self.released:
            return []
        found: list[Callable[[], Event]] = []
        for port in sorted(self._open):
            if self._sent[port] == len(self._items[port]):
                found.append(partial(self._end, port))
            elif self._sent[port] < self._allowed[port] or self.finished:
                found.append(partial(self._send, port))
        found += [partial(self._take, port) for port, o in self.outputs.items() if o.taken < len(o.values)]
        if self.finished:
            found.append(self._release)
        return found

    def cancel(self, failure: Failure) -> Event:
        """The caller does not want it any more (perhaps too late)."""
        return CancelArrived(self.invocation, failure)

    def _arrive(self) -> Event:
        self.arrived = True
        open_inputs = tuple(self._items)
        values = {name: self._pack(payload) for name, payload in self._values.items()}
        return InvocationArrived(self.invocation, self._key, values, open_inputs, self.deadline)

    def _send(self, port: str) -> Event:
        self._sent[port] += 1
        return InputArrived(self.invocation, port, self._pack(self._items[port][self._sent[port] - 1]))

    def _pack(self, payload: Any) -> Value:
        return pack(payload, partial(self._slots.allocate, self._arena))

    def _end(self, port: str) -> Event:
        self._open.remove(port)
        return InputEnded(self.invocation, port)

    def _take(self, port: str) -> Event:
        self.outputs[port].taken += 1
        return OutputTaken(self.invocation, port, self.outputs[port].taken)

    def _release(self) -> Event:
        self.released = True
        return InvocationReleased(self.invocation)
