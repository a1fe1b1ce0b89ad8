"""A long line between two hosts, for tests and benchmarks: a proxy that holds what passes for a while and keeps to a
bandwidth, since the kernel's own (`netem`) is not everywhere.

A model without a clock says when bytes arrive that enter one direction of a line: they go in one after another, as fast
as the bandwidth lets them, and come out `delay_s` after the last of them went in. The proxy does what it says: it reads
no sooner than bytes may enter, so what waits does so in the sender's kernel, as on a line, and writes when they arrive.

    python -m dataflower.testing.line 10.0.0.2:8003 --delay-ms 10 --mbit 1000

prints the port where it stands, and ends when its input does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import selectors
import socket
import struct
import sys
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable

from dataflower.clock import SystemClock

_now = SystemClock().monotonic
PIECE_BYTES = 1 << 16
MOST_BYTES = 64 << 20
"""What one direction of a connection may hold: a receiver that reads no more is noticed by the sender in the end."""
_SEGMENT_BYTES = 1460
"""As on a network: loopback's of 64 KB are more than what the kernel takes in here, and would wait for each other."""
_PIECE_S = 0.0005
"""Bytes of a piece arrive together: on a narrow line it is made as short as this."""
_KERNEL_BYTES = 1 << 14
"""What the kernel takes in before the proxy reads: little, since to the sender that has entered the line already."""
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: a close that sends nothing more."""
_LATE_S = 0.005
"""Who wakes up late may catch up so much."""


class Direction:
    """Says when bytes arrive that enter one direction of a line. All connections over the line share it."""

    def __init__(self, delay_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        self.delay_s = delay_s
        """From when the last of some bytes has entered until they arrive."""
        self.bytes_per_s = bytes_per_s
        self.free_at = -math.inf
        """When what has entered is all in, and more may enter."""
        self.passed = 0
        """Bytes that entered."""

    def piece(self, most: int) -> int:
        """How many bytes should enter together, `most` at most."""
        return int(min(most, max(self.bytes_per_s * _PIECE_S, _SEGMENT_BYTES)))

    def enter(self, nbytes: int, now: float) -> float:
        """So many bytes enter, `free_at` having come; returns when they arrive."""
        self.passed += nbytes
        self.free_at = max(self.free_at, now - _LATE_S) + nbytes / self.bytes_per_s
        return max(self.free_at, now) + self.delay_s


class Transit:
    """What is on its way over one direction for one connection, in order."""

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._pieces: deque[tuple[float, bytes]] = deque()
        self.nbytes = 0
        """On their way."""

    def enter(self, data: bytes, now: float) -> None:
        """These bytes enter; none: the end of the stream."""
        arrives = self._direction.enter(len(data), now)
        if self._pieces:
            arrives = max(arrives, self._pieces[-1][0])  # a shorter delay lets nothing overtake
        self._pieces.append((arrives, data))
        self.nbytes += len(data)

    @property
    def next_at(self) -> float:
        """When the next bytes arrive; infinity if none are on their way."""
        return self._pieces[0][0] if self._pieces else math.inf

    def arrived(self, now: float) -> list[bytes]:
        """Take what has arrived by now."""
        found = []
        while self._pieces and self._pieces[0][0] <= now:
            data = self._pieces.popleft()[1]
            self.nbytes -= len(data)
            found.append(data)
        return found


class _Half:
    """One direction of one connection. `over(is_broken)` is called once, when it has ended."""

    def __init__(
        self,
        line: Line,
        source: socket.socket,
        target: socket.socket,
        direction: Direction,
        over: Callable[[bool], None],
    ) -> None:
        self._line = line
        self._loop = line.loop
        self._source = source
        self._target = target
        self._direction = direction
        self._transit = Transit(direction)
        self._over = over
        self._ready: deque[bytes] = deque()
        """Arrived, and not taken by the kernel yet."""
        self._ready_bytes = 0
        self._entry: asyncio.TimerHandle | None = None
        self._exit: asyncio.TimerHandle | None = None
        self._is_full = False
        self._is_closed = False
        self._loop.add_reader(source.fileno(), self._on_readable)

    def close(self) -> None:
        """What is on its way is lost. Idempotent; before the sockets are closed."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._source.fileno())
        self._loop.remove_writer(self._target.fileno())
        for timer in (self._entry, self._exit):
            if timer is not None:
                timer.cancel()

    @property
    def under_way(self) -> int:
        """Bytes that have entered and not arrived."""
        return self._transit.nbytes

    def _on_readable(self) -> None:
        now = _now()
        self._is_full = self._transit.nbytes + self._ready_bytes >= MOST_BYTES
        if self._is_full or self._direction.free_at > now:
            self._loop.remove_reader(self._source.fileno())
            if not self._is_full:
                self._entry = self._loop.call_later(self._direction.free_at - now, self._go_on)
            return
        try:
            data = self._source.recv(self._direction.piece(self._line.piece))
        except BlockingIOError:
            return
        except OSError:
            self._over(True)
            return
        if data:
            self._line.saw(data)
        else:
            self._loop.remove_reader(self._source.fileno())
        self._transit.enter(data, now)
        if self._exit is None:
            self._move(now)

    def _go_on(self) -> None:
        self._entry, self._is_full = None, False
        self._loop.add_reader(self._source.fileno(), self._on_readable)

    def _on_arrival(self) -> None:
        self._exit = None
        self._move(_now())

    def _move(self, now: float) -> None:
        """Hand on what has arrived, and be woken for the next."""
        was_writing = bool(self._ready)
        for data in self._transit.arrived(now):
            self._ready.append(data)
            self._ready_bytes += len(data)
        if self._transit.next_at < math.inf:
            self._exit = self._loop.call_later(self._transit.next_at - now, self._on_arrival)
        if self._ready and not was_writing:
            self._write()

    def _write(self) -> None:
        ready = self._ready
        try:
            while ready:
                if not ready[0]:
                    self._loop.remove_writer(self._target.fileno())
                    self._target.shutdown(socket.SHUT_WR)
                    self._over(False)
                    return
                count = self._target.send(ready[0])
                self._ready_bytes -= count
                if count == len(ready[0]):
                    ready.popleft()
                else:
                    ready[0] = ready[0][count:]
            self._loop.remove_writer(self._target.fileno())
        except BlockingIOError:
            self._loop.add_writer(self._target.fileno(), self._write)
        except OSError:
            self._over(True)
            return
        if self._is_full and self._transit.nbytes + self._ready_bytes < MOST_BYTES:
            self._go_on()


class _Pair:
    """A connection, and the one behind it."""

    def __init__(self, line: Line, near: socket.socket, far: socket.socket) -> None:
        self._line = line
        self._sockets = (near, far)
        self._open = 2
        self._halves = [
            _Half(line, near, far, line.there, self._over),
            _Half(line, far, near, line.back, self._over),
        ]

    @property
    def under_way(self) -> int:
        """Bytes that have entered and not arrived, in both directions."""
        return sum(half.under_way for half in self._halves)

    def _over(self, is_broken: bool) -> None:
        self._open -= 1
        if is_broken:
            self.cut()
        elif not self._open:
            self._end()

    def cut(self) -> None:
        """Break it, whatever is on its way. Idempotent."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end()

    def _end(self) -> None:
        self._line.pairs.discard(self)
        for half in self._halves:
            half.close()
        for one in self._sockets:
            one.close()


def _narrow(sock: socket.socket) -> None:
    """Take in little ahead."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)


class Line:
    """The proxy, on the running loop: `start` it, and `close` it in the end."""

    def __init__(self, target: tuple[str, int], delay_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        """To `target`, an address and a port. `delay_s` one way, `bytes_per_s` in each direction."""
        self._target = target
        self.there, self.back = Direction(delay_s, bytes_per_s), Direction(delay_s, bytes_per_s)
        self.piece = PIECE_BYTES
        """Bytes that are read at a time, at most."""
        self.connections = 0
        """How many were let through."""
        self.open = asyncio.Event()
        """Cleared: new connections wait, and what they say."""
        self.open.set()
        self.pairs: set[_Pair] = set()
        self._meetings: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self.port = 0

    @property
    def passed(self) -> int:
        """Bytes that entered, in both directions."""
        return self.there.passed + self.back.passed

    @property
    def delay_s(self) -> float:
        """One way. May be changed: for what enters from then on."""
        return self.there.delay_s

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self.there.delay_s = self.back.delay_s = seconds

    @property
    def bytes_per_s(self) -> float:
        """In each direction. May be changed."""
        return self.there.bytes_per_s

    @bytes_per_s.setter
    def bytes_per_s(self, rate: float) -> None:
        self.there.bytes_per_s = self.back.bytes_per_s = rate

    @property
    def under_way(self) -> int:
        """Bytes that have entered and not arrived, in both directions."""
        return sum(pair.under_way for pair in self.pairs)

    def saw(self, data: bytes) -> None:
        """These bytes enter; for those who look at them."""

    async def start(self) -> None:
        """Let connections in at `port`, on loopback."""
        self.loop: AbstractEventLoop = asyncio.get_running_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        _narrow(self._listener)  # those that come in are so too
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        meeting = self.loop.create_task(self._meet(near))
        self._meetings.add(meeting)
        meeting.add_done_callback(self._meetings.discard)

    async def _meet(self, near: socket.socket) -> None:
        far = socket.socket(socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET)
        try:
            await self.open.wait()
            _narrow(far)
            for one in (near, far):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.sock_connect(far, self._target)
        except (OSError, asyncio.CancelledError):
            near.close()
            far.close()
            return
        self.connections += 1
        self.pairs.add(_Pair(self, near, far))

    def cut(self) -> None:
        """Break every connection, whatever is on its way."""
        for pair in list(self.pairs):
            pair.cut()

    def refuse(self) -> None:
        """Be gone, as a host is that was shut down. Idempotent."""
        if self._listener is not None:
            self.loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        self.cut()

    async def close(self) -> None:
        """End it. Idempotent."""
        self.refuse()
        for meeting in list(self._meetings):
            meeting.cancel()
        await asyncio.gather(*self._meetings, return_exceptions=True)
        self.cut()


async def _stand(line: Line) -> None:
    await line.start()
    print(line.port, flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    await over.wait()
    await line.close()


def main() -> None:
    """Be a line until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="address:port that it leads to")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way (default: none)")
    parser.add_argument("--mbit", type=float, default=math.inf, help="Mbit/s in each direction (default: no limit)")
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")

    async def stand() -> None:
        await _stand(Line((host, int(port)), options.delay_ms / 1e3, options.mbit * 125_000))

    # `select` keeps to fractions of a millisecond, `epoll` does not.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(stand())


if __name__ == "__main__":
    main()
