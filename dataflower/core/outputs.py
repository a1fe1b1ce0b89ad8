"""Results on their way to the caller: what is decided, and what the caller has not copied out yet."""

from __future__ import annotations

from dataflower.core.commands import EmitOutput, EndOutput
from dataflower.core.instance import (
    Emitter,
    Item,
)
from dataflower.core.ledger import Ledger
from dataflower.core.payload import Absent
from dataflower.core.program import OutputProgram
from dataflower.wire import Value


class _Output:
    __slots__ = ("entries", "program", "resolved", "taken")

    def __init__(self, program: OutputProgram) -> None:
        self.program = program
        self.entries: list[tuple[Value, Item | None] | None] = []
        self.taken = 0
        self.resolved = False


class Outputs:
    """All outputs of one invocation. `said` collects the commands, `granted` the producers whose credit moved."""

    def __init__(self, invocation: str, programs: list[OutputProgram], ledger: Ledger, granted: list[Emitter]) -> None:
        self._invocation = invocation
        self._outputs = [_Output(program) for program in programs]
        self._ledger = ledger
        self._granted = granted
        self.said: list[EmitOutput | EndOutput] = []
        self.unresolved = len(programs)

    def resolve(self, number: int, payload: Value | Absent) -> None:
        """A value output is decided."""
        if isinstance(payload, Absent):
            self.end(number, absent=True)
            return
        output = self._outputs[number]
        self._ledger.hold(payload)
        output.entries.append((payload, None))
        output.resolved = True
        self.unresolved -= 1
        self.said.append(EmitOutput(self._invocation, output.program.name, -1, payload))

    def push(self, number: int, value: Value, item: Item | None) -> None:
        """The next item of a stream output; it counts against its producer until the caller has taken it."""
        output = self._outputs[number]
        self._ledger.hold(value)
        if item is not None:
            item.use()
        self.said.append(EmitOutput(self._invocation, output.program.name, len(output.entries), value))
        output.entries.append((value, item))

    def end(self, number: int, *, absent: bool) -> None:
        """A stream output is complete, or an output will not come."""
        output = self._outputs[number]
        output.resolved = True
        self.unresolved -= 1
        self.said.append(EndOutput(self._invocation, output.program.name, absent))

    def taken(self, port: str, items: int) -> None:
        """The caller's side has copied out so many items of an output."""
        for output in self._outputs:
            if output.program.name == port:
                self._let_go(output, items)

    def release(self) -> None:
        """Nobody reads the outputs any more."""
        for output in self._outputs:
            self._let_go(output, len(output.entries))

    def _let_go(self, output: _Output, items: int) -> None:
        items = min(items, len(output.entries))
        for position in range(output.taken, items):
            entry = output.entries[position]
            output.entries[position] = None
            if entry is not None:
                value, item = entry
                self._ledger.drop(value)
                if item is not None and item.settle():
                    self._granted.append(item.emitter)
        output.taken = max(output.taken, items)

    @property
    def untaken(self) -> bool:
        """Whether the caller has something to copy out."""
        return any(output.taken < len(output.entries) for output in self._outputs)

    @property
    def holds_slots(self) -> bool:
        """Whether something that the caller has not copied out lies in shared memory."""
        return any(
            bool(entry[0].tensors) or entry[0].spilled is not None
            for output in self._outputs
            for entry in output.entries[output.taken :]
            if entry is not None
        )

    def check_integrity(self) -> None:
        """The count of open outputs is right."""
        assert self.unresolved == sum(1 for output in self._outputs if not output.resolved)
