"""Which stream of a connection sends its next chunk."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping

from dataflower.channel.limit import Limit


class Out:
    """A stream that goes out. `seq`: its OPEN; `at`: how far it has been handed to the connection; `ready`: how far
    its bytes are there.
    """

    __slots__ = ("at", "due", "limit", "ready", "seq", "top", "view")

    def __init__(self, view: memoryview, seq: int, limit: Limit | None, ready: int, due: float) -> None:
        self.view = view
        self.due = due
        self.ready = ready
        self.limit = limit
        self.seq = seq
        self.at = 0
        self.top = 0
        """The farthest that it ever was: more can't have arrived."""

    @property
    def left(self) -> int:
        """Bytes that have not been handed to the connection."""
        return len(self.view) - self.at


class Turns:
    """First those that are due at some time, in order; then the others in turns, a chunk each.

    Streams that share a limit have one turn together, and the one with the least left goes first: in turns all of them
    would be over when the last one is, and whoever waits for them with a place in a container would wait for all.
    """

    __slots__ = ("_dated", "_lines", "_streams", "_turns")

    def __init__(self, streams: Mapping[int, Out]) -> None:
        """`streams`: those that are not over; others are skipped and forgotten."""
        self._streams = streams
        self._dated: list[tuple[float, int]] = []
        """(when it is due, stream), in order."""
        self._turns: deque[list[int]] = deque()
        """Streams by whose turn it is: those of one limit, or just one."""
        self._lines: dict[Limit, list[int]] = {}
        """Those of `_turns` that have a limit."""

    def clear(self) -> None:
        """Nobody waits."""
        self._dated.clear()
        self._turns.clear()
        self._lines.clear()

    def add(self, stream: int) -> None:
        """It has something to send, now or later."""
        out = self._streams[stream]
        if out.due < math.inf:
            insort(self._dated, (out.due, stream))
            return
        line = None if out.limit is None else self._lines.get(out.limit)
        if line is not None:
            line.append(stream)
            return
        line = [stream]
        self._turns.append(line)
        if out.limit is not None:
            self._lines[out.limit] = line

    def hasten(self, stream: int, due: float) -> None:
        """It is due at that time, which is earlier than before."""
        out = self._streams[stream]
        if out.due < math.inf:
            self._dated = [entry for entry in self._dated if entry[1] != stream]
        else:
            for line in self._turns:
                if stream in line:
                    line.remove(stream)
                    break
        out.due = due
        if out.left:
            self.add(stream)

    def push(self, push: Callable[[int, Out], bool]) -> bool:
        """Let the next one send that can; False if none can. `push`: have it send a chunk; False if it can't now."""
        position = 0
        while position < len(self._dated):
            stream = self._dated[position][1]
            out = self._streams.get(stream)
            if out is None or not out.left:
                del self._dated[position]
            elif push(stream, out):
                return True
            else:
                position += 1
        for _ in range(len(self._turns)):
            line = self._turns.popleft()
            is_sent = self._push_line(line, push)
            if line:
                self._turns.append(line)
            else:
                self._lines = {limit: other for limit, other in self._lines.items() if other is not line}
            if is_sent:
                return True
        return False

    def _push_line(self, line: list[int], push: Callable[[int, Out], bool]) -> bool:
        """The same for streams that have one turn together. Those that are over leave the line."""
        streams = self._streams
        line[:] = [stream for stream in line if stream in streams and streams[stream].left]
        if len(line) > 1:
            line.sort(key=lambda stream: (streams[stream].left, stream))
        for stream in line:
            out = streams[stream]
            if push(stream, out):
                if not out.left:
                    line.remove(stream)
                return True
            if out.ready > out.at:
                return False  # its limit holds it up, and all others here
        return False
