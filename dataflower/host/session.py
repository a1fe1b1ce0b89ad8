"""Containers on another host, as the host that owns the invocations sees them: like its own, with a network in between.

Their arenas are mirrored here, so that references to them mean the same; what they say counts when the bytes that it
names are here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from dataflower import wire
from dataflower.channel.ferry import Ferry
from dataflower.clock import SystemClock
from dataflower.core.events import Slot
from dataflower.errors import Code
from dataflower.host import peer_wire
from dataflower.host.guest import tasks_of
from dataflower.host.kept import Kept
from dataflower.host.links import Peer
from dataflower.host.meeting import SESSION_BYTES
from dataflower.host.other_clock import OtherClock
from dataflower.host.peer_wire import DropArena, Ended, Sending
from dataflower.host.remote_peer import RemotePeer, refs_from
from dataflower.wire import ArenaMade, BatchDone, ReleaseSlots, TaskDone, TaskFailed, TensorRef, Times

if TYPE_CHECKING:
    from dataflower.host.remotes import Remotes

_now = SystemClock().monotonic

Report = wire.FromContainer | Ended | Sending | peer_wire.LineReport


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

    def exited(
        self, container: int, reason: str, begun: frozenset[int] | None, owed: frozenset[int] = frozenset()
    ) -> None:
        """A container is gone. `begun`: what it had begun with, None if nobody knows.

        `owed`: tasks of which it has said something that is on its way; told again when that is here.
        """
        ...


class Session:
    """What this host and a lender have with each other, over any number of connections. Ends once, for good."""

    def __init__(self, remotes: Remotes, name: str, address: str, flush: Callable[[], None]) -> None:
        """`name`, `address`: of the lender."""
        memory, listener = remotes.memory, remotes.listener
        self.name, self.address = name, address
        self.id = os.urandom(SESSION_BYTES)
        self.was_connected = False
        self._is_leaving = False
        self.clock = OtherClock()
        """The lender's."""
        self.containers: dict[int, RemotePeer] = {}
        self.is_over = False
        self.kept = Kept()
        """What outputs name that stay on the lender."""
        self._staying: set[int] = set()
        """Arenas of containers whose outputs stay."""
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
            foretell=self._foretold,
        )
        remotes.lines.add(self)

    def tell(
        self,
        container: int,
        body: bytes,
        refs: Iterable[TensorRef] = (),
        *,
        urgent: bool = False,
        due: float = math.inf,
        is_here: bool = False,
    ) -> None:
        """Send a message about a container; nothing happens once the session is over.

        What it names and another lender has comes from there; `is_here`: it goes from here all the same.
        """
        if self.is_over:
            return
        if urgent:
            self.ferry.send_urgent(container, body)
        else:
            after: tuple[int, ...] = ()
            if refs and not is_here:
                refs, after = self._remotes.lines.bring(self, refs, due)
            self.ferry.send(container, body, refs, self._memory.sizes.__getitem__, due, after=after)
        self._flush()

    def announce(self, arena: int) -> None:
        """Messages to come refer to this arena, whoever sends what is in it."""
        self.ferry.announce(arena, self._memory.sizes[arena])

    def stays_in(self, arena: int) -> bool:
        """Whether what is made in this arena stays on the lender."""
        return arena in self._staying

    def _mirrored(self, arena: int, nbytes: int) -> None:
        if arena >> 16 not in self.containers or arena in self._memory.sizes:
            raise ValueError(f"made an arena under the number {arena:#x}")

    def _forgotten(self, arena: int) -> None:
        raise ValueError("took an arena away, which is not its to decide")

    def _routes(self, arena: int) -> list[Ferry]:
        peer = self.containers.get(arena >> 16)
        if peer is None or self._is_leaving:
            return []
        return self._remotes.ferries(peer.readers, past=self if peer.stays else None)

    def claim(self, ref: TensorRef) -> None:
        """These bytes are here, and are known to be needed where they were passed on to."""
        peer = self.containers.get(ref.arena >> 16)
        for ferry in () if peer is None else self._remotes.ferries(peer.readers):
            ferry.claim(ref)

    def leave(self) -> None:
        """Say that this host is done with it. Whatever comes from now on is for nobody."""
        self._is_leaving = True
        self.ferry.send_urgent(0, peer_wire.encode(peer_wire.Bye()))

    def _deliver(self, number: int, body: bytes) -> None:
        if self._is_leaving:
            return
        if number > peer_wire.TICKETS:
            self._remotes.lines.fetched(self, number - peer_wire.TICKETS)
            return
        message = peer_wire.decode_report(body)
        if isinstance(message, peer_wire.LineReport):
            self._remotes.lines.hear(self, message)
            return
        if number > peer_wire.ASIDE and not isinstance(message, TaskFailed):
            raise ValueError(f"{type(message).__name__} under the key {number}")
        peer = self.containers.get(number % peer_wire.ASIDE)
        if peer is None:
            return  # it has ended meanwhile
        if isinstance(message, Ended):
            self.ferry.inbox.drop(number)
            del self.containers[number]
            begun = None if message.begun is None else frozenset(message.begun)
            self._listener.exited(number, message.reason, begun)
        elif isinstance(message, Sending):
            numbers = (message.fresh, message.waiting, message.bytes_per_s, message.run_s)
            if not all(0 <= number < math.inf for number in numbers):
                raise ValueError(f"sends what can't be: {message}")
            self._listener.sending(number, message)
        elif isinstance(message, ArenaMade):
            if peer.stays:
                self._staying.add(message.arena)
                self._remotes.announce(message.arena, message.nbytes, peer.readers)
            self._listener.heard(peer, message, [self.ferry.descriptor(message.arena)])
        elif not self._must_wait(number, peer, message, body):
            if peer.readers:
                for ref in refs_from(message):
                    self.claim(ref)
            self._note_kept(peer, message)
            self._listener.heard(peer, self._here(message), [])

    def _foretold(self, number: int, body: bytes) -> None:
        """A container is gone, and what it said before waits for bytes: what it said nothing of need not."""
        if self._is_leaving:
            return
        message = peer_wire.decode_report(body)
        if not isinstance(message, Ended):
            raise ValueError(f"{type(message).__name__} as the last word")
        said = map(peer_wire.decode_report, self.ferry.inbox.waiting(number))
        owed = frozenset(
            task
            for one in said
            if not isinstance(one, (Ended, Sending, peer_wire.LineReport))
            for task in tasks_of(one)
        )
        if number in self.containers and owed:
            begun = None if message.begun is None else frozenset(message.begun)
            self._listener.exited(number, message.reason, begun, owed)

    def _must_wait(self, number: int, peer: RemotePeer, message: wire.FromContainer, body: bytes) -> bool:
        """Whether it hands on, to be read here, what stays on another lender: then that comes here first."""
        lines = self._remotes.lines
        lacking = [] if peer.stays else lines.lacking(self, refs_from(message))
        if not lacking:
            return False
        inbox = self.ferry.inbox
        tickets = []
        for source, ref in lacking:
            ticket = lines.next_ticket()
            tickets.append(ticket)

            def come(ticket: int = ticket) -> None:
                inbox.came(ticket)
                inbox.spent((ticket,))

            self._remotes.loop.call_soon(lines.fetch, source, ref, come)
        inbox.put_back(number, body, tickets)
        return True

    def _note_kept(self, peer: RemotePeer, message: wire.FromContainer) -> None:
        """Outputs that stay are not here; what others name came with their message."""
        if not peer.stays and not self.kept:
            return
        for ref in refs_from(message):
            if not peer.stays:
                self.kept.came(ref)
            elif ref.arena >> 16 == peer.number:
                self.kept.add(ref)

    def released(self, slots: tuple[Slot, ...]) -> None:
        """These slots will be written again."""
        self.ferry.released(slots)
        if self.kept:
            for slot in slots:
                self.kept.forget(slot)

    def _here(self, message: wire.FromContainer) -> wire.FromContainer:
        """A report with the times of this host's clock."""
        if isinstance(message, (TaskDone, TaskFailed)):
            return replace(message, times=self._times(message.task, message.times))
        if isinstance(message, BatchDone):
            return BatchDone(tuple(replace(one, times=self._times(one.task, one.times)) for one in message.results))
        return message

    def _times(self, task: int, times: Times) -> Times:
        now = _now()
        self.clock.answered(task, times.received, times.ended, now)
        ahead_s = self.clock.ahead_s(now)
        return Times(*(max(0.0, t - ahead_s) if t else t for t in msgspec.structs.astuple(times)))

    def leaves(self, task: int, deadline_s: float) -> float:
        """A task leaves for a container there now. Gives its deadline by the lender's clock; 0: none."""
        now = _now()
        self.clock.asked(task, now)
        return deadline_s + self.clock.most_ahead_s(now) if deadline_s else 0.0

    def due(self, deadline_s: float) -> float:
        """A deadline by the lender's clock, never too early: it would be over there while the call goes on here."""
        return deadline_s + self.clock.most_ahead_s(_now()) if deadline_s < math.inf else 0.0

    def give_up(self, container: int, task: int, reason: str) -> bool:
        """Have outputs that are on their way here come no further, and their task end; False if none are."""

        def concerns(body: bytes) -> bool:
            message = _alone(peer_wire.decode_report(body))
            return isinstance(message, TaskDone) and message.task == task

        peer = self.containers.get(container)
        others = [body for body in self.ferry.inbox.waiting(container) if not concerns(body)]
        still_named = {slot for body in others for slot in _slots(body)}
        found = self.ferry.inbox.withdraw(container, concerns)  # which may give out others
        if peer is None or not found:
            return False
        report = _alone(peer_wire.decode_report(found[0]))
        assert isinstance(report, TaskDone)
        own = (slot for slot in _slots(found[0]) if slot[0] >> 16 == container)
        free = tuple(slot for slot in own if slot not in still_named and not self._memory.is_held(slot))
        if free:
            self.tell(container, wire.encode(ReleaseSlots(free)), urgent=True)
        error = wire.ErrorRecord(Code.CANCELLED, "Cancelled", reason)
        failed = TaskFailed(task, error, self._times(task, report.times), report.held)
        self._remotes.loop.call_soon(self._listener.heard, peer, failed, [])
        return True

    def drop_arena(self, arena: int) -> None:
        """No slot of this arena is in use any more, and its owner is gone."""
        if self.ferry.mirrors(arena):
            self.kept.forget_arena(arena)
            self._staying.discard(arena)
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
        lost = self.kept.lose()
        if lost:
            self._listener.lost(lost)
        self._remotes.lines.ended(self)


def _alone(message: Report) -> Report:
    """The result of a task that ran together with others, if it comes alone, as those that wait for bytes do."""
    return message.results[0] if isinstance(message, BatchDone) and len(message.results) == 1 else message


def _slots(body: bytes) -> dict[tuple[int, int], None]:
    """All that a container's message refers to."""
    message = peer_wire.decode_report(body)
    if isinstance(message, (Ended, Sending, peer_wire.LineReport)):
        return {}
    return dict.fromkeys((ref.arena, ref.slot) for ref in refs_from(message))
