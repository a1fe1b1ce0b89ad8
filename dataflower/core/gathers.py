"""Fan-outs put together again: gathers (by position) and groups (by key)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dataflower.core.ledger import Ledger
from dataflower.core.payload import ABSENT, Absent, drop, hold
from dataflower.core.program import Consumer
from dataflower.core.values import split_key
from dataflower.wire import Tag, Value


class _Collector:
    """A gather under way: what has come of one fan-out. `expected` None: its producer still runs."""

    __slots__ = ("arrived", "expected", "items", "next")

    def __init__(self) -> None:
        self.items: dict[int, Value | Absent] = {}
        self.arrived = 0
        self.expected: int | Absent | None = None
        self.next = 0
        """Next item in order (ordered gathers only)."""


class Gathers:
    """The gathers of one invocation, by (consumer, tag of the result)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._collectors: dict[tuple[Consumer, Tag], _Collector] = {}

    def add(self, consumer: Consumer, tag: Tag, index: int, payload: Value | Absent) -> None:
        """Item `index` came, or will not come."""
        hold(self._ledger, payload)
        collector = self._collector(consumer, tag)
        collector.items[index] = payload
        collector.arrived += 1

    def in_order(self, consumer: Consumer, tag: Tag) -> Iterator[tuple[int, Value]]:
        """Items that are next in order; whoever takes one must drop it."""
        collector = self._collector(consumer, tag)
        while collector.next in collector.items:
            index = collector.next
            collector.next += 1
            payload = collector.items.pop(index)
            if not isinstance(payload, Absent):
                yield index, payload

    def expect(self, consumer: Consumer, tag: Tag, count: int | Absent) -> None:
        """The fan-out has so many items (ABSENT: it was skipped)."""
        self._collector(consumer, tag).expected = count

    def close(self, consumer: Consumer, tag: Tag) -> tuple[Value, ...] | Absent | None:
        """What was gathered, once it is complete, else None; whoever takes the values must drop them."""
        collector = self._collectors[consumer, tag]
        expected = collector.expected
        if expected is None or (not isinstance(expected, Absent) and collector.arrived < expected):
            return None
        del self._collectors[consumer, tag]
        if isinstance(expected, Absent):
            return ABSENT
        present = (collector.items[i] for i in sorted(collector.items))
        return tuple(value for value in present if not isinstance(value, Absent))

    def rewrite(self, change: Callable[[Value], Value]) -> None:
        """Hold other values instead; `change` keeps the books."""
        for collector in self._collectors.values():
            for index, payload in collector.items.items():
                if not isinstance(payload, Absent):
                    collector.items[index] = change(payload)

    def clear(self) -> None:
        """The invocation is over."""
        for collector in self._collectors.values():
            for payload in collector.items.values():
                drop(self._ledger, payload)
        self._collectors.clear()

    def _collector(self, consumer: Consumer, tag: Tag) -> _Collector:
        collector = self._collectors.get((consumer, tag))
        if collector is None:
            collector = self._collectors[consumer, tag] = _Collector()
        return collector


class Groups:
    """The keyed edges of one invocation: items by key, in order of first appearance."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._groups: dict[tuple[Consumer, Tag], dict[tuple[type, object], list[Value]]] = {}

    def add(self, consumer: Consumer, tag: Tag, value: Value) -> None:
        """An item came. Raises ValueError if it isn't `{"key", "value"}`, or is too large to look into."""
        key, part = split_key(value)
        self._ledger.hold(part)
        groups = self._groups.setdefault((consumer, tag), {})
        groups.setdefault((type(key), key), []).append(part)

    def close(self, consumer: Consumer, tag: Tag) -> list[tuple[Value, ...]]:
        """All groups, the stream having ended; whoever takes the values must drop them."""
        return [tuple(values) for values in self._groups.pop((consumer, tag), {}).values()]

    def rewrite(self, change: Callable[[Value], Value]) -> None:
        """Hold other values instead; `change` keeps the books."""
        for groups in self._groups.values():
            for values in groups.values():
                values[:] = [change(value) for value in values]

    def clear(self) -> None:
        """The invocation is over."""
        for groups in self._groups.values():
            for values in groups.values():
                drop(self._ledger, tuple(values))
        self._groups.clear()
