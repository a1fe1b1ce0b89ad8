"""Containers that this host runs for others: it forks them, feeds them, passes on what they say, and decides nothing.

A guest has the number that its owner gave it, and names memory as its owner does; only processes have numbers of this
host. What a guest says is checked here for form and for memory that it can't know, and by its owner for the rest.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from dataflower import wire
from dataflower.channel.connection import Connection
from dataflower.channel.ferry import Ferry
from dataflower.channel.limit import Limit
from dataflower.channel.mirrors import Mirrors
from dataflower.channel.outflow import Outflows
from dataflower.channel.views import Views
from dataflower.clock import SystemClock
from dataflower.core.commands import StartContainer
from dataflower.core.tasks import TIMED_OUT
from dataflower.errors import Closed, Code, EndOfStream, PeerGone, WouldBlock
from dataflower.host import peer_wire
from dataflower.host.api import PeerState, PeerStatus
from dataflower.host.arrivals import Arrivals
from dataflower.host.guest import Guest, forget_ended, refs_to, tasks_of
from dataflower.host.guest_deadlines import GuestDeadlines
from dataflower.host.links import Memory, Peer, ProtocolViolation
from dataflower.host.neighbour import Surroundings
from dataflower.host.neighbours import Neighbours
from dataflower.host.peer_wire import TICKETS, Bye, DropArena, Ended, Greeting, Kill, LineOrder, Order, Sending, Stop
from dataflower.host.remote_peer import refs_from
from dataflower.host.soon import Soon
from dataflower.wire import (
    ArenaMade,
    BatchDone,
    CancelTask,
    ErrorRecord,
    ReleaseSlots,
    RunTask,
    TaskDone,
    TaskFailed,
    TensorRef,
    Times,
    Withdraw,
    Withdrawn,
)

if TYPE_CHECKING:
    from dataflower.host.lender import Lender

_log = logging.getLogger(__name__)

_now = SystemClock().monotonic

ExitListener = Callable[[str, frozenset[int] | None], None]
"""Told why a container is gone, and what it had begun with."""

FIRST_NUMBER = 1 << 32
"""Processes of guests are numbered from here, those of the host's own containers from 1."""
BURST = 32
LAST_WORDS = 10_000
GOODBYE = "its owner stops"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*@[0-9]+")
_STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_-]*)*")


class Owner:
    """A session with a host whose containers these are. Ends once, and all of them with it."""

    def __init__(self, lender: Lender, greeting: Greeting) -> None:
        self.name = greeting.name
        self.address = ""
        self._lender = lender
        self._loop = lender.loop
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush_soon = Soon(self._loop, self._flush)
        self.is_over = False
        self.guests: dict[int, Guest] = {}
        self._views = Views(keep_descriptors=True, files_on=lender.files_on)
        self._sizes: dict[int, int] = {}
        self._peers: dict[int, Peer] = {}
        self._limits: dict[int, Limit] = {}
        self._outflows = Outflows(_now, self._sends)
        self._deadlines = GuestDeadlines(self._loop, self.guests)
        self._news: set[int] = set()
        """Guests of which there is news in `_outflows`."""
        self._tell_soon = Soon(self._loop, self._tell_news)
        self._memory = Memory(self._views, self._sizes, lambda slot: True)
        self._mirrors = Mirrors(shared=True)
        self._arrivals = Arrivals(self._give)
        self._give_soon = Soon(self._loop, self._arrivals.give_out)
        self.ferry = Ferry(
            lambda ref: self._views.view(ref).data,
            self._deliver,
            self._mirrored,
            self._forgotten,
            limits=self._limits,
            outflows=self._outflows,
            mirrors=self._mirrors,
            on_lost=self._never,
        )
        around = Surroundings(
            name=lender.name,
            credentials=lender.credentials,
            timeout_s=lender.timeout_s,
            read=lambda ref: self._views.view(ref).data,
            size_of=self._sizes.__getitem__,
            mirrors=self._mirrors,
            mirrored=self._mirrored,
            limits=self._limits,
            outflows=self._outflows,
        )
        self.neighbours = Neighbours(around, self.ferry, self.guests, lender.visits, say=self._say, has=self._has)

    # --- the connection --------------------------------------------------------------------------------------

    def use(self, sock: socket.socket, address: str) -> None:
        """A new connection, in place of the former one if there still is one."""
        if self._connection is not None:
            self._connection.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.address = address
        self._connection = Connection(self._loop, sock, self.ferry.mux, self._on_lost)

    def _on_lost(self, reason: str, fatal: bool) -> None:
        if self.is_over:
            return
        if fatal:
            self._connection = None
            self.end(f"its owner is not to be understood: {reason}")
            return
        _log.warning("the connection of host %s (%s) broke: %s", self.name, self.address, reason)
        self._connection = None
        self._timer = self._loop.call_later(self._lender.timeout_s, self.end, "its owner is gone")

    def _flush(self) -> None:
        if self._connection is not None:
            self._connection.flush()

    def status(self) -> PeerStatus:
        """For people."""
        mux = self.ferry.mux
        state = PeerState.OWNER if self._connection is not None else PeerState.LOST
        return PeerStatus(self.name, self.address, state, "", len(self.guests), mux.bytes_out, mux.bytes_in)

    def end(self, reason: str) -> None:
        """End all its containers. Idempotent."""
        if self.is_over:
            return
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._deadlines.close()
        self.neighbours.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.guests:
            level = logging.INFO if reason == GOODBYE else logging.WARNING
            _log.log(level, "%d containers of host %s are ended: %s", len(self.guests), self.name, reason)
        for guest in list(self.guests.values()):
            self._hang_up(guest)
            self._lender.launcher.kill(guest.process, reason)
        self._lender.forget(self)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self.is_over and not self.guests:
            self.ferry.close()
            self._mirrors.close()
            self._views.close()

    # --- what the owner says ---------------------------------------------------------------------------------

    def _mirrored(self, arena: int, nbytes: int) -> None:
        if arena in self._sizes or arena >> 16 in self.guests:
            raise ValueError(f"an arena under the number {arena:#x}, which is taken")
        self._views.attach(arena, nbytes, self.ferry.descriptor(arena))
        self._sizes[arena] = nbytes

    def _forgotten(self, arena: int) -> None:
        if not self.ferry.mirrors(arena):
            raise ValueError(f"no arena {arena:#x} is mirrored")
        self._detach(arena)

    def _detach(self, arena: int) -> None:
        if self._sizes.pop(arena, None) is not None:
            for guest in self.guests.values():
                guest.peer.drop_arena(arena)
            self._views.detach(arena)

    def _deliver(self, number: int, body: bytes) -> None:
        if number > TICKETS:
            self.ferry.inbox.came(number - TICKETS)
            return
        message = peer_wire.decode_order(body)
        if isinstance(message, LineOrder):
            self.neighbours.take(message)
            return
        if isinstance(message, Order):
            self._start(number, message)
            return
        if isinstance(message, Bye):
            self._loop.call_soon(self.end, GOODBYE)
            return
        if isinstance(message, DropArena):
            if message.arena >> 16 in self.guests or self.ferry.mirrors(message.arena):
                raise ValueError(f"arena {message.arena:#x} is in use")
            self.neighbours.forget(message.arena)
            self._detach(message.arena)
            self.ferry.let_go(message.arena)
            return
        guest = self.guests.get(number % peer_wire.ASIDE)
        if guest is None:  # it has ended, and its owner will hear of that
            if isinstance(message, ReleaseSlots):
                self.ferry.released(message.slots)  # what it had handed over need not come any further
                self.neighbours.released(message.slots)
            return
        if isinstance(message, wire.Prefetch) is not (number > peer_wire.ASIDE):
            raise ValueError(f"{type(message).__name__} under the key {number}")
        if isinstance(message, wire.Prefetch):
            known = tuple([ref for ref in message.refs if self._has(ref)])  # some may be gone
            guest.peer.tell(wire.Prefetch(known))
        elif isinstance(message, Stop):
            self._hang_up(guest)
            self._lender.launcher.stop(guest.process)
        elif isinstance(message, Kill):
            self.ferry.inbox.drop(number)
            self._lender.launcher.kill(guest.process, message.reason)
        elif isinstance(message, (RunTask, wire.RunBatch)):
            self._arrivals.add(number, message)
            self._give_soon()
        else:
            self._tell(guest, number, message)

    def _give(self, number: int, message: RunTask | wire.RunBatch) -> None:
        guest = self.guests.get(number)
        if guest is None or self.is_over:
            return
        try:
            self._tell(guest, number, message)
        except ValueError as error:
            _log.error("the session of host %s is ended, it broke the protocol: %s", self.name, error)
            self.end(f"its owner is not to be understood: {error}")

    def _never(self, key: int) -> None:
        if key > TICKETS:
            self.ferry.inbox.never(key - TICKETS)

    def _tell(self, guest: Guest, number: int, message: wire.ToContainer) -> None:
        for ref in refs_to(message):
            if not self._has(ref):
                raise ValueError(f"named memory that is not there (arena {ref.arena:#x})")
        if isinstance(message, ReleaseSlots):
            self.ferry.released(message.slots)
            self.neighbours.released(message.slots)
        elif isinstance(message, CancelTask):
            if self._withdraw(number, message):
                return
            if message.reason != TIMED_OUT:
                guest.unwanted.add(message.task)
        elif isinstance(message, Withdraw):
            message = self._take_back(number, message)
        if isinstance(message, (RunTask, wire.RunBatch)):
            self._deadlines.note(guest, (message,) if isinstance(message, RunTask) else message.tasks)
        guest.peer.tell(message)

    def _has(self, ref: TensorRef) -> bool:
        size = self._sizes.get(ref.arena)
        return size is not None and 0 <= ref.slot <= ref.offset <= ref.offset + ref.nbytes <= size

    def _take_back(self, number: int, message: Withdraw) -> Withdraw:
        """Give back the tasks that just came, or that bytes are missing for; what is left to ask the container for."""

        def concerns(body: bytes) -> bool:
            return getattr(peer_wire.decode_order(body), "task", 0) in message.tasks

        found = [peer_wire.decode_order(body) for body in self.ferry.inbox.withdraw(number, concerns)]
        back = self._arrivals.take_back(number, message.tasks)
        back += tuple([task.task for task in found if isinstance(task, RunTask)])
        if back:
            self._say(number, wire.encode(Withdrawn(back)))
        return Withdraw(tuple([task for task in message.tasks if task not in back]), message.reason)

    def _withdraw(self, number: int, cancel: CancelTask) -> bool:
        """Whether the task had not come to its container, as it just came or bytes are missing: then it need not."""

        def concerns(body: bytes) -> bool:
            return getattr(peer_wire.decode_order(body), "task", 0) == cancel.task

        found = [peer_wire.decode_order(body) for body in self.ferry.inbox.withdraw(number, concerns)]
        just_came = self._arrivals.take_back(number, (cancel.task,))
        if not just_came and not any(isinstance(message, RunTask) for message in found):
            return False
        error = ErrorRecord(Code.CANCELLED, "Cancelled", cancel.reason)
        failed = TaskFailed(cancel.task, error, Times())
        self._say(number + peer_wire.ASIDE, wire.encode(failed))  # it has sent nothing that this could overtake
        return True

    def _start(self, number: int, order: Order) -> None:
        if number in self.guests or not 0 < number < FIRST_NUMBER:
            raise ValueError(f"a container under the number {number}")
        if not _KEY.fullmatch(order.key) or not _STAGE.fullmatch(order.stage.name):
            raise ValueError("a container of a workflow without a proper name")
        lender = self._lender
        process = lender.next_number()
        try:
            if lender.guests >= lender.max_guests:
                raise OSError(f"host {lender.name!r} has no room for another container (its setting max_containers)")
            links = lender.launcher.start(StartContainer(process, order.key, order.stage), number)
        except OSError as error:
            self._say(number, peer_wire.encode(Ended(str(error))))
            return
        command = StartContainer(number, order.key, order.stage)
        cap, board = lender.arena_cap_bytes, lender.launcher.board(process)
        peer = Peer(self._loop, command, links, self._memory, self._peers, arena_cap_bytes=cap, board=board)
        guest = self.guests[number] = Guest(peer, process, order.stays, order.readers)
        self._peers[number] = peer
        rate = order.stage.resources.bandwidth
        if rate is not None and rate > 0:
            self._limits[number] = Limit(rate)
        lender.on_exit(process, functools.partial(self._on_exit, number))
        self._loop.add_reader(peer.task.fileno(), functools.partial(self._on_readable, guest))

    # --- what its containers say -----------------------------------------------------------------------------

    def _say(
        self, number: int, body: bytes, refs: list[TensorRef] | None = None, due: float = math.inf
    ) -> tuple[int, ...]:
        """Tell the owner; returns the streams of bytes that it will hear it behind."""
        if self.is_over:
            return ()
        streams = self.ferry.send(number, body, refs or (), self._sizes.__getitem__, due)
        self._flush_soon()
        return streams

    def _on_readable(self, guest: Guest, burst: int = BURST) -> None:
        peer = guest.peer
        try:
            peer.check_heard()
            for _ in range(burst):
                payload, descriptors = peer.task.receive_nowait()
                self._take(peer, payload, descriptors)
        except WouldBlock:
            return
        except (EndOfStream, PeerGone, Closed) as error:
            peer.heard_out = isinstance(error, EndOfStream)
            self._hang_up(guest)
            self._lender.launcher.stop(guest.process)
        except (ProtocolViolation, msgspec.MsgspecError, ValueError) as error:
            self._reject(guest, f"it broke the protocol: {error}")
        except Exception:  # a fault of ours must not take the other containers along
            _log.exception("handling a message of a container of host %s failed", self.name)
            self._reject(guest, "the host failed to handle its message")

    def _take(self, peer: Peer, payload: bytes, descriptors: list[int]) -> None:
        message = wire.decode_from_container(payload)
        if isinstance(message, ArenaMade) and len(descriptors) == 1:
            self._attach(peer, message, descriptors[0])
        elif isinstance(message, wire.Knock) and len(descriptors) == 1:
            self._lender.launcher.store.let_in(self.guests[peer.number].process, message.version, descriptors[0])
            return
        elif descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ProtocolViolation(f"sent {len(descriptors)} descriptors with {type(message).__name__}")
        elif isinstance(message, ArenaMade):
            raise ProtocolViolation("made an arena of nothing")
        else:
            peer.check(message)
        guest = self.guests.get(peer.number)
        if guest is None:
            return
        due = min((guest.deadlines.get(task, math.inf) for task in tasks_of(message)), default=math.inf)
        told = forget_ended(guest, message)
        if told is not message:
            message, payload = told, wire.encode(told)
        refs = refs_from(message)
        if guest.stays:
            if guest.readers and refs:
                self._push(guest, [ref for ref in refs if ref.arena >> 16 == peer.number], due)
            refs = []
        if refs and isinstance(message, BatchDone):  # each with its own bytes, which can be done without
            for result in message.results:
                own = BatchDone((result,))
                guest.behind.update(self._say(peer.number, wire.encode(own), refs_from(own), due))
        else:
            # Nobody wants the items of a cancelled task, so the word of its end need not wait for what was sent before.
            aside = isinstance(message, TaskFailed) and message.task in guest.unwanted
            key = peer.number + peer_wire.ASIDE if aside else peer.number
            guest.behind.update(self._say(key, payload, refs, due))
        guest.unwanted.difference_update(tasks_of(message))
        self._tell_over(guest, message)

    def _push(self, guest: Guest, refs: list[TensorRef], due: float) -> None:
        """Send outputs to where they will be read, straight or by way of the owner."""
        if not self.neighbours.push(guest.readers, refs, due):
            for ref in refs:
                self.ferry.push(ref, self._sizes.__getitem__, due)
            self._flush_soon()

    def _tell_over(self, guest: Guest, message: wire.FromContainer) -> None:
        """Tasks have ended: their owner hears of it now if their reports have to wait for bytes."""
        if not isinstance(message, (TaskDone, TaskFailed, BatchDone)):
            return
        guest.behind = {stream for stream in guest.behind if self.ferry.mux.is_open(stream)}
        if not guest.behind:
            return
        results = message.results if isinstance(message, BatchDone) else (message,)
        times = results[-1].times if results else Times()
        run_s = max(0.0, times.ended - times.started) if times.started else 0.0
        self._tell_sending(guest.peer.number, tuple(result.task for result in results), run_s)

    def _sends(self, number: int) -> None:
        """What a guest sends has changed: its owner hears of it once in each turn of the loop."""
        if number in self.guests:
            self._news.add(number)
            self._tell_soon()

    def _tell_news(self) -> None:
        news, self._news = self._news, set()
        for number in news:
            self._tell_sending(number)

    def _tell_sending(self, number: int, over: tuple[int, ...] = (), run_s: float = 0.0) -> None:
        if not self.is_over and number in self.guests:
            self._news.discard(number)
            body = peer_wire.encode(Sending(*self._outflows.take(number), over, run_s))
            self.ferry.send_urgent(number, body)
            self._flush_soon()

    def _attach(self, peer: Peer, message: ArenaMade, descriptor: int) -> None:
        arena = message.arena
        try:
            if arena >> 16 != peer.number or arena in self._sizes:
                raise ProtocolViolation(f"made an arena under the number {arena:#x}")
            peer.add_arena(message.nbytes)
        except ProtocolViolation:
            os.close(descriptor)
            raise
        self._views.attach(arena, message.nbytes, descriptor)
        self._sizes[arena] = message.nbytes
        self.ferry.announce(arena, message.nbytes)

    def _reject(self, guest: Guest, reason: str) -> None:
        peer = guest.peer
        _log.error("a container of host %s (%s, stage %s) is killed: %s", self.name, peer.key, peer.stage, reason)
        self._hang_up(guest)
        self._lender.launcher.kill(guest.process, reason)

    def _hang_up(self, guest: Guest) -> None:
        descriptor = guest.peer.task.fileno()
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            guest.peer.close()

    def _on_exit(self, number: int, reason: str, begun: frozenset[int] | None) -> None:
        guest = self.guests[number]
        if guest.peer.task.fileno() >= 0:
            self._on_readable(guest, LAST_WORDS)
        if guest.peer.task.fileno() < 0 and not guest.peer.heard_out:
            begun = None  # it was hung up on, so it may have ended tasks unheard
        self._hang_up(guest)
        del self.guests[number], self._peers[number]
        self._outflows.forget(number)
        self.ferry.inbox.drop(number)
        self._limits.pop(number, None)
        if not self.is_over:
            ended = Ended(reason, None if begun is None else tuple(begun))
            self.ferry.send(number, peer_wire.encode(ended), last=True)
            self._flush_soon()
        self._close_if_empty()
