"""What is kept of an invocation's outputs."""

from __future__ import annotations

from dataflower.host.values import Border, Recorded, pack_blob, size_of
from dataflower.wire import Value


class Recording:
    """What the journal will keep of an invocation's outputs, up to a size."""

    __slots__ = ("_border", "_kept", "_room", "overflowed")

    def __init__(self, border: Border, room_bytes: int) -> None:
        self._border = border
        self._kept: dict[str, Recorded] = {}
        self._room = room_bytes
        self.overflowed = False

    def add(self, port: str, index: int, value: Value) -> None:
        """Keep one output. Raises ValueError if it does not hold together."""
        if self.overflowed:
            return
        self._room -= size_of(value)
        if self._room < 0:
            self.overflowed = True
            self._kept.clear()
        elif index < 0:
            self._kept[port] = self._border.record(value)
        else:
            items = self._kept.setdefault(port, [])
            assert isinstance(items, list)
            items.append(self._border.record(value))

    def add_stream(self, port: str) -> None:
        """A stream ended; it may have had no items."""
        self._kept.setdefault(port, [])

    def blob(self) -> bytes | None:
        """The outputs, None if they were too many."""
        return None if self.overflowed else pack_blob(self._kept)
