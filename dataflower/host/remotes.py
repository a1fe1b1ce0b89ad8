"""Other hosts that run containers for this one: connected as long as that is possible, each with a `Session`.

The core knows nothing of this: a container on another host is told and says what any other is and does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterable, Mapping

import msgspec

from dataflower.channel.connection import Connection
from dataflower.channel.ferry import Ferry
from dataflower.channel.limit import Limit
from dataflower.channel.outflow import Outflows
from dataflower.clock import SystemClock
from dataflower.core.commands import StartContainer
from dataflower.errors import FailedPrecondition
from dataflower.host import peer_wire
from dataflower.host.api import PeerState, PeerStatus
from dataflower.host.lines import Lines
from dataflower.host.links import Memory, Peer
from dataflower.host.meeting import Credentials, Refused, meet_lender
from dataflower.host.peer_wire import Order, Sending
from dataflower.host.placement import Placement
from dataflower.host.remote_peer import RemotePeer
from dataflower.host.session import Listener, Session
from dataflower.host.settings import HostConfig
from dataflower.host.soon import Soon

_log = logging.getLogger(__name__)

_now = SystemClock().monotonic
SHORTEST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
GOODBYE_S = 2.0
"""So long a server that stops waits for a lender to hang up; one that has not heard it finds out by itself."""


class Remote:
    """Another host that runs containers for this one: connected as long as that is possible."""

    def __init__(self, name: str, address: str, remotes: Remotes) -> None:
        self.name = name
        self.address = address
        self._remotes = remotes
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._reason = ""
        """Why there is no connection; empty while there is one, or nobody knows yet."""
        self._timer: asyncio.TimerHandle | None = None
        """Goes off if a broken connection does not come back in time."""
        self._flush_soon = Soon(self._loop, self._flush)
        self._session = self._new_session()
        self._changed = asyncio.Event()
        self._is_leaving = False
        self._past_bytes = (0, 0)
        self._task: asyncio.Task[None] | None = None

    def _new_session(self) -> Session:
        return Session(self._remotes, self.name, self.address, self._flush_soon)

    def begin(self) -> None:
        """Connect, and stay connected until `close`."""
        self._task = self._loop.create_task(self._stay_connected(), name=f"peer {self.name}")

    def start(self, command: StartContainer, peers: Mapping[int, Peer], readers: tuple[str, ...]) -> RemotePeer:
        """Order a container, whose outputs are read on `readers`. Raises OSError if the host can't be reached."""
        if self._session.is_over:
            if self._reason:
                self._changed.set()  # look again now
                raise ConnectionError(f"host {self.name!r} ({self.address}) can't be reached: {self._reason}")
            self._session = self._new_session()
        session = self._session
        peer = RemotePeer(session, command, self._remotes.memory, peers)
        peer.readers = readers
        session.containers[command.container] = peer
        theirs = readers if command.stays else ()
        for name in theirs:
            self._remotes.join(session, name)
        session.tell(command.container, peer_wire.encode(Order(command.key, command.stage, command.stays, theirs)))
        return peer

    @property
    def session(self) -> Session:
        """The present one."""
        return self._session

    @property
    def ferry(self) -> Ferry | None:
        """What carries bytes there; None if there is no connection."""
        return None if self._connection is None or self._session.is_over else self._session.ferry

    def released(self, slots: tuple[tuple[int, int], ...]) -> None:
        """These slots will be written again."""
        self._session.released(slots)

    def drop_arena(self, arena: int) -> None:
        """This arena is gone."""
        self._session.drop_arena(arena)

    def status(self) -> PeerStatus:
        """For people."""
        mux, (out, in_) = self._session.ferry.mux, self._past_bytes
        connected = self._connection is not None
        state = PeerState.CONNECTED if connected else PeerState.LOST if self._reason else PeerState.CONNECTING
        count = len(self._session.containers)
        return PeerStatus(self.name, self.address, state, self._reason, count, out + mux.bytes_out, in_ + mux.bytes_in)

    def _flush(self) -> None:
        if self._connection is not None:
            self._connection.flush()

    async def _stay_connected(self) -> None:
        pause_s = SHORTEST_PAUSE_S
        while True:
            try:
                await self._connect()
                pause_s = SHORTEST_PAUSE_S
                while self._connection is not None:
                    self._changed.clear()
                    await self._changed.wait()
            except (OSError, TimeoutError, Refused, msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._failed(error)
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connect(self) -> None:
        remotes = self._remotes
        if self._session.is_over:
            self._session = self._new_session()
        session = self._session
        greeting = (remotes.name, session.id, session.was_connected)
        sock, welcome, clocks = await meet_lender(
            self.address, remotes.credentials, remotes.context, greeting, remotes.timeout_s
        )
        if not welcome.known or session.is_over:
            sock.close()
            if not session.was_connected:
                raise Refused("it works for too many hosts already")
            self._end(f"its host {self.name!r} was started anew")
            self._session = self._new_session()
            return
        self._use(sock, session, clocks)

    def _use(self, sock: socket.socket, session: Session, clocks: tuple[float, float, float]) -> None:
        _log.info("connected to host %s (%s)%s", self.name, self.address, ", again" if session.was_connected else "")
        session.was_connected = True
        session.clock.met(*clocks)
        self._reason = ""
        self._stop_timer()
        self._connection = Connection(self._loop, sock, session.ferry.mux, self._on_lost)

    def _on_lost(self, reason: str, fatal: bool) -> None:
        if self._is_leaving:
            self._connection = None
            self._changed.set()
            return
        _log.warning("the connection to host %s (%s) broke: %s", self.name, self.address, reason)
        self._connection = None
        if fatal:
            self._end(f"its host {self.name!r} ({self.address}) is not to be understood: {reason}")
        else:
            self._stop_timer()
            self._timer = self._loop.call_later(self._remotes.timeout_s, self._give_up, reason)
        self._changed.set()

    def _give_up(self, reason: str) -> None:
        self._timer = None
        self._reason = self._reason or reason
        self._end(f"its host {self.name!r} ({self.address}) is gone: {self._reason}")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _failed(self, error: Exception) -> None:
        """No connection this time: is there hope for the session?"""
        reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        if not self._reason:
            _log.warning("host %s (%s) can't be reached: %s", self.name, self.address, reason)
        self._reason = reason
        if isinstance(error, ConnectionRefusedError) or not self._session.was_connected:
            self._end(f"its host {self.name!r} ({self.address}) is gone: {reason}")

    def _end(self, reason: str) -> None:
        mux, (out, in_) = self._session.ferry.mux, self._past_bytes
        if not self._session.is_over:
            self._past_bytes = (out + mux.bytes_out, in_ + mux.bytes_in)
        self._session.end(reason)

    async def close(self) -> None:
        """End the session. Its containers end with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._stop_timer()
        if self._connection is not None:
            await self._leave(self._connection)
        self._session.end("the host stops")

    async def _leave(self, connection: Connection) -> None:
        """Say goodbye, and let the lender hang up: whoever does with bytes unread takes back what it said last."""
        self._is_leaving = True
        self._session.leave()
        connection.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                while self._connection is not None:
                    self._changed.clear()
                    await self._changed.wait()
        connection.close()
        self._connection = None


class Remotes:
    """All hosts that run containers for this one."""

    def __init__(self, config: HostConfig, memory: Memory, listener: Listener, credentials: Credentials) -> None:
        """Connects after `begin`. Raises InvalidArgument and FailedPrecondition for settings that make no sense."""
        self.loop = asyncio.get_running_loop()
        self.placement = Placement(config.host_name, config.peers, config.placement)
        self.name = config.host_name
        self.memory = memory
        self.listener = listener
        self.limits: dict[int, Limit] = {}
        """By container of this host: how fast it may send to others."""
        self.outflows = Outflows(_now, self._sends)
        self._news: set[int] = set()
        """Containers of this host of which there is news in `outflows`."""
        self._tell_soon = Soon(self.loop, self._tell_news)
        self.credentials = credentials
        self.timeout_s = config.peer_timeout_s
        self.context: ssl.SSLContext | None = None
        if self.placement.addresses:
            credentials.check(listens=False)
            self.context = credentials.context(listens=False)
        self.lines = Lines(_now, straight=config.peer_lines)
        self._remotes = {name: Remote(name, address, self) for name, address in self.placement.addresses.items()}

    def begin(self) -> None:
        """Connect to all of them."""
        for remote in self._remotes.values():
            remote.begin()

    def start(self, command: StartContainer, peers: Mapping[int, Peer]) -> RemotePeer | None:
        """Order a container from the host where it belongs; None if that is this one. Raises OSError."""
        try:
            name = self.placement.of(command.key.rpartition("@")[0], command.stage)
        except FailedPrecondition as error:  # it was applied when this server still knew that host
            raise ConnectionError(error.message) from error
        if name:
            return self._remotes[name].start(command, peers, self._readers(command, name))
        rate = command.stage.resources.bandwidth
        if rate is not None:
            self.limits[command.container] = Limit(rate)
        return None

    def _readers(self, command: StartContainer, own: str) -> tuple[str, ...]:
        """The hosts, other than this and its own, on which outputs of a container are read."""
        workflow = command.key.rpartition("@")[0]
        try:
            names = dict.fromkeys(self.placement.of(workflow, stage) for stage in command.followers)
        except FailedPrecondition:
            return ()  # such a stage can't start either
        return tuple(name for name in names if name not in ("", own))

    def ferries(self, names: Iterable[str], past: Session | None = None) -> list[Ferry]:
        """Of those of these hosts that are connected; without those that `past` sends to itself."""
        remotes = [self._remotes[name] for name in names]
        if past is not None:
            remotes = [remote for remote in remotes if not self.lines.join(past, remote.session)]
        found = (remote.ferry for remote in remotes)
        return [ferry for ferry in found if ferry is not None]

    @property
    def slots(self) -> int:
        """How many slots the lenders have bytes of, or get them, that are still read."""
        return sum(ferry.slots for ferry in self.ferries(self._remotes))

    def join(self, source: Session, name: str) -> None:
        """What is made at `source` will be read on that host."""
        self.lines.join(source, self._remotes[name].session)

    def announce(self, arena: int, nbytes: int, names: Iterable[str]) -> None:
        """These hosts will read what is in a new arena of another one."""
        for name in names:
            session = self._remotes[name].session
            if not session.is_over:
                session.ferry.announce(arena, nbytes)

    def ended(self, container: int) -> None:
        """A container of this host is gone."""
        self.limits.pop(container, None)
        self.outflows.forget(container)
        self._news.discard(container)

    def _sends(self, container: int) -> None:
        """What a container of this host sends has changed: its core hears of it once in each turn of the loop."""
        if not container:
            return  # inputs of invocations, which this host sends itself
        self._news.add(container)
        self._tell_soon()

    def _tell_news(self) -> None:
        news, self._news = self._news, set()
        for container in news:
            self.listener.sending(container, Sending(*self.outflows.take(container)))

    def released(self, slots: tuple[tuple[int, int], ...]) -> None:
        """Nobody reads these slots any more."""
        for remote in self._remotes.values():
            remote.released(slots)
        self.lines.released(slots)

    def drop_arena(self, arena: int) -> None:
        """No slot of this dead owner's arena is in use."""
        for remote in self._remotes.values():
            remote.drop_arena(arena)

    def status(self) -> tuple[PeerStatus, ...]:
        """All of them, by name."""
        return tuple(self._remotes[name].status() for name in sorted(self._remotes))

    async def close(self) -> None:
        """End all sessions. Idempotent."""
        remotes, self._remotes = self._remotes, {}
        await asyncio.gather(*(remote.close() for remote in remotes.values()))
