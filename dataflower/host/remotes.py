"""Containers on other hosts, as the host that owns the invocations sees them: like its own, with a network in between.

The core knows nothing of this. A container on another host is told and says what any other is and does; its arenas are
mirrored here, so that references to them mean the same; what it says counts when the bytes that it names are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from dataflower import wire
from dataflower.channel.connection import Connection
from dataflower.channel.ferry import Ferry
from dataflower.channel.limit import Limit
from dataflower.channel.outflow import Outflows
from dataflower.clock import SystemClock
from dataflower.core.commands import StartContainer
from dataflower.core.events import Slot
from dataflower.errors import Code, FailedPrecondition
from dataflower.host import peer_wire
from dataflower.host.api import PeerState, PeerStatus
from dataflower.host.links import Memory, Peer
from dataflower.host.meeting import SESSION_BYTES, Credentials, Refused, meet_lender
from dataflower.host.peer_wire import Bye, DropArena, Ended, Order, Sending
from dataflower.host.placement import Placement
from dataflower.host.remote_peer import RemotePeer, refs_from
from dataflower.host.settings import HostConfig
from dataflower.wire import ArenaMade, BatchDone, ReleaseSlots, TaskDone, TaskFailed, TensorRef, Times

_log = logging.getLogger(__name__)

_now = SystemClock().monotonic
SHORTEST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0


class Listener(Protocol):
    """Who is told what remote containers say; the engine."""

    def heard(self, peer: Peer, message: wire.FromContainer, descriptors: list[int]) -> None:
        """A message of a container; the descriptors are the listener's."""
        ...

    def sending(self, container: int, message: Sending) -> None:
        """What a container's data unit sends to other hosts."""
        ...

    def lost(self, slots: tuple[Slot, ...]) -> None:
        """What was only on a host that is gone."""
        ...

    def exited(self, container: int, reason: str, begun: frozenset[int] | None) -> None:
        """A container is gone. `begun`: what it had begun with, None if nobody knows."""
        ...


class Session:
    """What this host and a lender have with each other, over any number of connections. Ends once, for good."""

    def __init__(self, remotes: Remotes, flush: Callable[[], None]) -> None:
        memory, listener = remotes.memory, remotes.listener
        self.id = os.urandom(SESSION_BYTES)
        self.was_connected = False
        self.ahead_s = self.most_ahead_s = 0.0
        """How far the lender's clock is ahead: likely, and at most."""
        self.containers: dict[int, RemotePeer] = {}
        self.is_over = False
        self._kept: dict[Slot, set[tuple[int, int]]] = {}
        """What outputs name that stay on the lender: (offset, bytes) by slot."""
        self._remotes = remotes
        self._memory = memory
        self._listener = listener
        self._flush = flush
        self.ferry = Ferry(
            lambda ref: memory.views.view(ref).data,
            self._deliver,
            self._mirrored,
            self._forgotten,
            limits=remotes.limits,
            outflows=remotes.outflows,
            routes=self._routes,
            wake=flush,
        )

    def tell(
        self,
        container: int,
        body: bytes,
        refs: Iterable[TensorRef] = (),
        *,
        urgent: bool = False,
        due: float = math.inf,
    ) -> None:
        """Send a message about a container; nothing happens once the session is over."""
        if self.is_over:
            return
        if urgent:
            self.ferry.send_urgent(container, body)
        else:
            self.ferry.send(container, body, refs, self._memory.sizes.__getitem__, due)
        self._flush()

    def _mirrored(self, arena: int, nbytes: int) -> None:
        if arena >> 16 not in self.containers or arena in self._memory.sizes:
            raise ValueError(f"made an arena under the number {arena:#x}")

    def _forgotten(self, arena: int) -> None:
        raise ValueError("took an arena away, which is not its to decide")

    def _routes(self, arena: int) -> list[Ferry]:
        peer = self.containers.get(arena >> 16)
        return [] if peer is None else self._remotes.ferries(peer.readers)

    def _deliver(self, number: int, body: bytes) -> None:
        message = peer_wire.decode_report(body)
        peer = self.containers.get(number)
        if peer is None:
            return  # it has ended meanwhile
        if isinstance(message, Ended):
            self.ferry.drop(number)
            del self.containers[number]
            begun = None if message.begun is None else frozenset(message.begun)
            self._listener.exited(number, message.reason, begun)
        elif isinstance(message, Sending):
            numbers = (message.fresh, message.waiting, message.bytes_per_s, message.run_s)
            if not all(0 <= number < math.inf for number in numbers):
                raise ValueError(f"sends what can't be: {message}")
            self._listener.sending(number, message)
        elif isinstance(message, ArenaMade):
            self._listener.heard(peer, message, [self.ferry.descriptor(message.arena)])
        else:
            if peer.readers:
                for ref in refs_from(message):
                    for ferry in self._remotes.ferries(peer.readers):
                        ferry.claim(ref)
            self._note_kept(peer, message)
            self._listener.heard(peer, self._here(message), [])

    def _note_kept(self, peer: RemotePeer, message: wire.FromContainer) -> None:
        """Outputs that stay are not here; what others name came with their message."""
        if not peer.stays and not self._kept:
            return
        for ref in refs_from(message):
            slot, place = (ref.arena, ref.slot), (ref.offset, ref.nbytes)
            if not peer.stays:
                places = self._kept.get(slot)
                if places is not None:
                    places.discard(place)
                    if not places:
                        del self._kept[slot]
            elif ref.arena >> 16 == peer.number and ref.nbytes:
                self._kept.setdefault(slot, set()).add(place)

    def released(self, slots: tuple[Slot, ...]) -> None:
        """These slots will be written again."""
        self.ferry.released(slots)
        if self._kept:
            for slot in slots:
                self._kept.pop(slot, None)

    def _here(self, message: wire.FromContainer) -> wire.FromContainer:
        """A report with the times of this host's clock."""
        if isinstance(message, (TaskDone, TaskFailed)):
            return replace(message, times=self._times(message.times))
        if isinstance(message, BatchDone):
            return BatchDone(tuple(replace(one, times=self._times(one.times)) for one in message.results))
        return message

    def _times(self, times: Times) -> Times:
        return Times(*(max(0.0, t - self.ahead_s) if t else t for t in msgspec.structs.astuple(times)))

    def give_up(self, container: int, task: int, reason: str) -> bool:
        """Have outputs that are on their way here come no further, and their task end; False if none are."""

        def concerns(body: bytes) -> bool:
            message = _alone(peer_wire.decode_report(body))
            return isinstance(message, TaskDone) and message.task == task

        peer = self.containers.get(container)
        others = [body for body in self.ferry.waiting(container) if not concerns(body)]
        still_named = {slot for body in others for slot in _slots(body)}
        found = self.ferry.withdraw(container, concerns)  # which may give out others
        if peer is None or not found:
            return False
        report = _alone(peer_wire.decode_report(found[0]))
        assert isinstance(report, TaskDone)
        own = (slot for slot in _slots(found[0]) if slot[0] >> 16 == container)
        free = tuple(slot for slot in own if slot not in still_named and not self._memory.is_held(slot))
        if free:
            self.tell(container, wire.encode(ReleaseSlots(free)), urgent=True)
        error = wire.ErrorRecord(Code.CANCELLED, "Cancelled", reason)
        failed = TaskFailed(task, error, self._times(report.times), report.held)
        self._remotes.loop.call_soon(self._listener.heard, peer, failed, [])
        return True

    def drop_arena(self, arena: int) -> None:
        """No slot of this arena is in use any more, and its owner is gone."""
        if self.ferry.mirrors(arena):
            for slot in [slot for slot in self._kept if slot[0] == arena]:
                del self._kept[slot]
            self.ferry.drop_mirror(arena)
            self.tell(0, peer_wire.encode(DropArena(arena)))
        elif not self.is_over:
            self.ferry.forget(arena)
            self._flush()

    def end(self, reason: str) -> None:
        """Count all its containers as gone. Idempotent."""
        if self.is_over:
            return
        self.is_over = True
        self.ferry.close()
        containers, self.containers = self.containers, {}
        for number in containers:
            self._listener.exited(number, reason, None)
        if self._kept:
            lost, self._kept = tuple(self._kept), {}
            self._listener.lost(lost)


def _alone(message: wire.FromContainer | Ended | Sending) -> wire.FromContainer | Ended | Sending:
    """The result of a task that ran together with others, if it comes alone, as those that wait for bytes do."""
    return message.results[0] if isinstance(message, BatchDone) and len(message.results) == 1 else message


def _slots(body: bytes) -> dict[tuple[int, int], None]:
    """All that a container's message refers to."""
    message = peer_wire.decode_report(body)
    if isinstance(message, (Ended, Sending)):
        return {}
    return dict.fromkeys((ref.arena, ref.slot) for ref in refs_from(message))


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
        self._flushing = False
        self._session = self._new_session()
        self._changed = asyncio.Event()
        self._past_bytes = (0, 0)
        self._task: asyncio.Task[None] | None = None

    def _new_session(self) -> Session:
        return Session(self._remotes, self._flush_soon)

    def begin(self) -> None:
        """Connect, and stay connected until `close`."""
        self._task = self._loop.create_task(self._stay_connected(), name=f"peer {self.name}")

    def start(self, command: StartContainer, peers: Mapping[int, Peer]) -> RemotePeer:
        """Order a container. Raises OSError if the host can't be reached."""
        if self._session.is_over:
            if self._reason:
                self._changed.set()  # look again now
                raise ConnectionError(f"host {self.name!r} ({self.address}) can't be reached: {self._reason}")
            self._session = self._new_session()
        session = self._session
        peer = RemotePeer(session, command, self._remotes.memory, peers)
        session.containers[command.container] = peer
        session.tell(command.container, peer_wire.encode(Order(command.key, command.stage, command.stays)))
        return peer

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

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
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
        sock, welcome, ahead = await meet_lender(
            self.address, remotes.credentials, remotes.context, greeting, remotes.timeout_s
        )
        if not welcome.known or session.is_over:
            sock.close()
            if not session.was_connected:
                raise Refused("it works for too many hosts already")
            self._end(f"its host {self.name!r} was started anew")
            self._session = self._new_session()
            return
        self._use(sock, session, ahead)

    def _use(self, sock: socket.socket, session: Session, ahead: tuple[float, float]) -> None:
        _log.info("connected to host %s (%s)%s", self.name, self.address, ", again" if session.was_connected else "")
        session.was_connected = True
        session.ahead_s, session.most_ahead_s = ahead
        self._reason = ""
        self._stop_timer()
        self._connection = Connection(self._loop, sock, session.ferry.mux, self._on_lost)

    def _on_lost(self, reason: str, fatal: bool) -> None:
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
            self._session.ferry.send_urgent(0, peer_wire.encode(Bye()))
            self._connection.flush()
            self._connection.close()
            self._connection = None
        self._session.end("the host stops")


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
        self.credentials = credentials
        self.timeout_s = config.peer_timeout_s
        self.context: ssl.SSLContext | None = None
        if self.placement.addresses:
            credentials.check(listens=False)
            self.context = credentials.context(listens=False)
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
            peer = self._remotes[name].start(command, peers)
            peer.readers = self._readers(command, name)
            return peer
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

    def ferries(self, names: Iterable[str]) -> list[Ferry]:
        """Of those of these hosts that are connected."""
        found = (self._remotes[name].ferry for name in names)
        return [ferry for ferry in found if ferry is not None]

    def ended(self, container: int) -> None:
        """A container of this host is gone."""
        self.limits.pop(container, None)
        self.outflows.forget(container)
        self._news.discard(container)

    def _sends(self, container: int) -> None:
        """What a container of this host sends has changed: its core hears of it once in each turn of the loop."""
        if not container:
            return  # inputs of invocations, which this host sends itself
        if not self._news:
            self.loop.call_soon(self._tell_news)
        self._news.add(container)

    def _tell_news(self) -> None:
        news, self._news = self._news, set()
        for container in news:
            self.listener.sending(container, Sending(*self.outflows.take(container)))

    def released(self, slots: tuple[tuple[int, int], ...]) -> None:
        """Nobody reads these slots any more."""
        for remote in self._remotes.values():
            remote.released(slots)

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
