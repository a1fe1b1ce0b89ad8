"""An input that several edges feed: what has come, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from dataflower.core.ledger import Ledger
from dataflower.core.payload import ABSENT, Absent, Payload
from dataflower.core.program import InputProgram
from dataflower.spec.workflow import Merge
from dataflower.wire import Value


class MergeState:
    """What has come to an input that several edges feed."""

    __slots__ = ("arrived", "by_edge", "spoken")

    def __init__(self, edges: int) -> None:
        self.by_edge: list[Value | None] = [None] * edges
        self.arrived: list[Value] = []
        self.spoken = 0

    def hear(self, entry: InputProgram, edge: int, payload: Value | Absent, ledger: Ledger) -> Payload | Absent | None:
        """An edge says its word. Returns what the input holds once that is decided, else None."""
        self.spoken += 1
        if not isinstance(payload, Absent):
            ledger.hold(payload)
            self.by_edge[edge] = payload
            self.arrived.append(payload)
        if entry.merge is Merge.ALL:
            if self.spoken == entry.edges:
                return tuple(value for value in self.by_edge if value is not None)
        elif entry.merge is Merge.FIRST and len(self.arrived) == entry.first:
            return tuple(self.arrived)
        elif entry.merge is Merge.ANY and self.arrived:
            return self.arrived[0]
        return ABSENT if self.spoken == entry.edges else None

    def rewrite(self, change: Callable[[Value], Value]) -> None:
        """Hold other values instead; `change` keeps the books."""
        for position, value in enumerate(self.arrived):
            new = self.arrived[position] = change(value)
            self.by_edge = [new if other is value else other for other in self.by_edge]

    def let_go(self, ledger: Ledger) -> None:
        """Drop all that came."""
        for value in self.arrived:
            ledger.drop(value)
