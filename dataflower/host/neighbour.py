"""The two ends of a line between lenders of the same owner, over which memory goes from the one to the other."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from dataflower.channel.connection import Connection
from dataflower.channel.ferry import Ferry
from dataflower.channel.limit import Limit
from dataflower.channel.mirrors import Mirrors
from dataflower.channel.outflow import Outflows
from dataflower.clock import SystemClock
from dataflower.host.api import PeerState, PeerStatus
from dataflower.host.meeting import Credentials, Refused, meet_lender
from dataflower.host.peer_wire import TICKETS, Expect, Greeting, Introduce
from dataflower.host.soon import Soon
from dataflower.wire import TensorRef

_log = logging.getLogger(__name__)
_now = SystemClock().monotonic
INTRODUCTION_S = 2.0
"""How long the first meeting may take: memory waits for it that could go by way of the owner."""
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0

Slot = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What both ends need of the host that they are on, and of their owner's session."""

    name: str
    credentials: Credentials
    timeout_s: float
    read: Callable[[TensorRef], memoryview]
    size_of: Callable[[int], int]
    mirrors: Mirrors
    mirrored: Callable[[int, int], None]
    limits: Mapping[int, Limit]
    outflows: Outflows


class Outward:
    """The end that sends. Tells `on_met()`, and once `on_parted(reason)` if the line is not to be had any more."""

    def __init__(
        self,
        around: Surroundings,
        message: Introduce,
        on_met: Callable[[], None],
        on_parted: Callable[[str], None],
    ) -> None:
        self.name, self.address = message.name, message.address
        self._around = around
        self._key = message.key
        self._on_met = on_met
        self._on_parted = on_parted
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._is_met = False
        self._context = around.credentials.context(listens=False)
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._shipped: dict[Slot, dict[int, tuple[int, ...]]] = {}
        """By slot: the tickets that were sent for it, and the streams before them."""
        self.ferry = Ferry(
            around.read, _nothing, _nothing, _forgets_nothing, limits=around.limits, outflows=around.outflows
        )
        self._flush_soon = Soon(self._loop, self._flush)
        self._task = self._loop.create_task(self._live(), name=f"neighbour {message.name}")

    def ship(self, ticket: int, ref: TensorRef, due: float) -> None:
        """Send memory, and its ticket behind it."""
        streams = self.ferry.send(TICKETS + ticket, b"", (ref,), self._around.size_of, due)
        self._shipped.setdefault((ref.arena, ref.slot), {})[ticket] = streams
        self._flush_soon()

    def push(self, ref: TensorRef, due: float) -> None:
        """Send memory that will be asked for."""
        self.ferry.push(ref, self._around.size_of, due)
        self._flush_soon()

    def released(self, slots: tuple[Slot, ...]) -> None:
        """These slots will be written again."""
        self.ferry.released(slots)
        for slot in slots:
            self._shipped.pop(slot, None)
        self._flush_soon()

    def forget(self, arena: int) -> None:
        """Nobody reads this arena any more; who received it is told by the owner."""
        self.ferry.let_go(arena)
        self.released(tuple(slot for slot in self._shipped if slot[0] == arena))

    @property
    def missing(self) -> tuple[int, ...]:
        """Tickets that may not have come over there."""
        is_open = self.ferry.mux.is_open
        found: list[int] = []
        for tickets in self._shipped.values():
            found.extend(ticket for ticket, streams in tickets.items() if not streams or any(map(is_open, streams)))
        return tuple(found)

    def status(self) -> PeerStatus:
        """For people."""
        state = PeerState.NEIGHBOUR if self._connection is not None else PeerState.LOST
        return PeerStatus(self.name, self.address, state, "", 0, self.ferry.mux.bytes_out, 0)

    def close(self) -> None:
        """End it; nobody is told. Idempotent."""
        self._task.cancel()
        self._let_go()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.ferry.close()

    async def _live(self) -> None:
        patience_s = min(INTRODUCTION_S, self._around.timeout_s)
        try:
            while True:
                sock = await self._meet(patience_s)
                self._lost = self._loop.create_future()
                self._connection = Connection(self._loop, sock, self.ferry.mux, self._on_lost)
                if not self._is_met:
                    self._is_met = True
                    self._on_met()
                reason = await self._lost
                _log.info("the connection to neighbour %s (%s) broke: %s", self.name, self.address, reason)
                patience_s = self._around.timeout_s
        except (OSError, Refused, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
            self._on_parted(reason)
            self._let_go()

    def _on_lost(self, reason: str, fatal: bool) -> None:
        self._connection = None
        if fatal:
            self._lost.set_exception(Refused(f"it is not to be understood: {reason}"))
        else:
            self._lost.set_result(reason)

    async def _meet(self, patience_s: float) -> socket.socket:
        """A connection; looked for again for a while if there was one before."""
        end, pause_s = _now() + patience_s, _PAUSE_S
        while True:
            try:
                async with asyncio.timeout(max(0.0, end - _now())):
                    return await self._meet_once()
            except OSError as error:
                if isinstance(error, ConnectionRefusedError) or not self._is_met or _now() + pause_s >= end:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _meet_once(self) -> socket.socket:
        around = self._around
        greeting = (around.name, self._key, self._is_met)
        sock, welcome, _ = await meet_lender(
            self.address, around.credentials, self._context, greeting, around.timeout_s, visits=True
        )
        if not welcome.known:
            sock.close()
            raise Refused("it does not expect this host, or not any more")
        return sock

    def _flush(self) -> None:
        if self._connection is not None:
            self._connection.flush()


class Inward:
    """The end that receives: memory comes straight into the mirrors of the owner's session."""

    def __init__(
        self,
        around: Surroundings,
        message: Expect,
        came: Callable[[int], None],
        never: Callable[[int], None],
    ) -> None:
        """`came(ticket)`: its bytes are there; `never(ticket)`: they were given up."""
        self.name, self.key, self.address = message.name, message.key, ""
        self._came = came
        self._never = never
        self._connection: Connection | None = None
        self._is_met = False
        self._is_over = False
        self.ferry = Ferry(
            _reads_nothing,
            self._deliver,
            around.mirrored,
            _forgets_nothing,
            mirrors=around.mirrors,
            on_lost=lambda key: self._never(key - TICKETS),
        )

    def admits(self, greeting: Greeting) -> bool:
        """Whether it may come: for the first time once, and then only to go on."""
        known = not self._is_over and greeting.resumes is self._is_met
        self._is_met |= known
        return known

    def use(self, sock: socket.socket, address: str) -> None:
        """A new connection, in place of the former one if there still is one."""
        if self._is_over:
            sock.close()
            return
        if self._connection is not None:
            self._connection.close()
        self.address = address
        loop = asyncio.get_running_loop()
        self._connection = Connection(loop, sock, self.ferry.mux, self._on_lost)

    def status(self) -> PeerStatus:
        """For people."""
        state = PeerState.NEIGHBOUR if self._connection is not None else PeerState.LOST
        return PeerStatus(self.name, self.address, state, "", 0, 0, self.ferry.mux.bytes_in)

    def close(self) -> None:
        """End it: nothing of it is written from now on. Idempotent."""
        self._is_over = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.ferry.close()

    def _deliver(self, key: int, body: bytes) -> None:
        if key <= TICKETS:
            raise ValueError(f"a neighbour spoke under the key {key}")
        self._came(key - TICKETS)

    def _on_lost(self, reason: str, fatal: bool) -> None:
        _log.info("the connection of neighbour %s (%s) broke: %s", self.name, self.address, reason)
        self._connection = None
        if fatal:
            self.close()


def _nothing(*_: object) -> None:
    raise ValueError("who receives memory from a neighbour says nothing")


def _reads_nothing(ref: TensorRef) -> memoryview:
    raise ValueError(f"nothing goes to a neighbour that sends (arena {ref.arena:#x})")


def _forgets_nothing(arena: int) -> None:
    raise ValueError(f"took arena {arena:#x} away, which is not its to decide")
