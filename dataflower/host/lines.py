"""How what stays on one lender comes to another that reads it: over a line between the two, or by way of this host.

This host introduces the two to each other (`core.lines` says when), names each piece of memory by a *ticket*, has the
first send it, and the second wait for the ticket before it gives a message to a container. Whichever way the bytes
come, their ticket comes behind them, so that the way may change meanwhile.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataflower.core.lines import Line
from dataflower.host import peer_wire
from dataflower.host.meeting import SESSION_BYTES
from dataflower.host.peer_wire import TICKETS, Expect, Expecting, Introduce, Met, Part, Parted, Ship, Spent, Strand
from dataflower.wire import TensorRef

if TYPE_CHECKING:
    from dataflower.host.kept import Slot
    from dataflower.host.session import Session

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """Bytes that `target` waits for, and that stay at `source`."""

    number: int
    ref: TensorRef
    source: Session
    target: Session
    due: float


@dataclass(slots=True, eq=False)
class _Joint:
    """A line between two sessions, under a new number each time that it is tried."""

    source: Session
    target: Session
    policy: Line = field(default_factory=Line)
    number: int = 0
    key: bytes = b""
    is_open: bool = False
    """Whether the source has been introduced, so that it can be told what to send."""
    pending: list[_Ticket] = field(default_factory=list)


class Lines:
    """All ways between lenders of this host."""

    def __init__(self, now: Callable[[], float], *, straight: bool = True) -> None:
        """`straight`: False has everything come by way of this host."""
        self._now = now
        self._straight = straight
        self._last = 0
        self._sessions: dict[Session, None] = {}
        self._joints: dict[tuple[Session, Session], _Joint] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._books: dict[Session, dict[Slot, dict[tuple[int, int], _Ticket]]] = {}
        """By target: tickets for what it has, or waits for, by slot and place."""
        self._fetching: dict[int, tuple[Session, TensorRef, list[Callable[[], None]]]] = {}
        """By ticket: what comes here, and what is done then."""

    def add(self, session: Session) -> None:
        """A session with a lender begins."""
        self._sessions[session] = None

    def join(self, source: Session, target: Session) -> bool:
        """What containers at `source` make will be read at `target`: introduce the two, if that is due and not done.

        Whether bytes go over the line between them.
        """
        if source is target or source.is_over or target.is_over:
            return False
        return self._is_straight(self._joint(source, target))

    # --- what a lender needs -------------------------------------------------------------------------------------

    def bring(self, target: Session, refs: Iterable[TensorRef], due: float) -> tuple[list[TensorRef], tuple[int, ...]]:
        """Have what stays on other lenders sent to `target`; returns what is to be sent from here, and the tickets."""
        rest: list[TensorRef] = []
        tickets: dict[int, None] = {}
        for ref in refs:
            source = self._source(target, ref)
            ticket = None if source is None else self._ticket(source, target, ref, due)
            if ticket is None:
                rest.append(ref)
            else:
                tickets[ticket.number] = None
        return rest, tuple(tickets)

    def lacking(self, session: Session, refs: Iterable[TensorRef]) -> list[tuple[Session, TensorRef]]:
        """What `session` speaks of that stays on another lender and is not here."""
        found = [(self._source(session, ref), ref) for ref in refs]
        return [(source, ref) for source, ref in found if source is not None and not source.kept.is_here(ref)]

    def next_ticket(self) -> int:
        """A number that no other has."""
        self._last += 1
        return self._last

    def fetch(self, source: Session, ref: TensorRef, then: Callable[[], None], due: float = math.inf) -> None:
        """Have bytes that stay on a lender come here; `then` is called when they have, or the lender is gone."""
        if source.is_over:
            then()
            return
        for other, coming, waiting in self._fetching.values():
            if other is source and coming == ref:
                waiting.append(then)
                return
        number = self.next_ticket()
        self._fetching[number] = (source, ref, [then])
        self._order(source, 0, [(number, ref)], due)

    def _source(self, target: Session, ref: TensorRef) -> Session | None:
        slot = (ref.arena, ref.slot)
        if ref.nbytes:
            for session in self._sessions:
                if session is not target and slot in session.kept:
                    return session
        return None

    def _ticket(self, source: Session, target: Session, ref: TensorRef, due: float) -> _Ticket | None:
        places = self._books.setdefault(target, {}).setdefault((ref.arena, ref.slot), {})
        known = places.get((ref.offset, ref.nbytes))
        if known is not None:
            return known
        joint = self._joint(source, target)
        straight = self._is_straight(joint)
        if not straight and source.kept.is_here(ref):
            return None
        ticket = _Ticket(self.next_ticket(), ref, source, target, due)
        places[ref.offset, ref.nbytes] = self._tickets[ticket.number] = ticket
        target.announce(ref.arena)
        if not straight:
            self._by_way_of_here(ticket)
        elif joint.is_open:
            self._order(source, joint.number, [(ticket.number, ref)], due)
        else:
            joint.pending.append(ticket)
        return ticket

    def _order(self, source: Session, line: int, load: list[tuple[int, TensorRef]], due: float) -> None:
        source.tell(0, peer_wire.encode(Ship(line, tuple(load), source.due(due))))

    def _by_way_of_here(self, ticket: _Ticket) -> None:
        self.fetch(ticket.source, ticket.ref, lambda: self._hand_on(ticket), ticket.due)

    def _hand_on(self, ticket: _Ticket) -> None:
        """What stays on a lender is here now, if that is not gone."""
        if ticket.number in self._tickets and not ticket.target.is_over:
            ticket.target.tell(TICKETS + ticket.number, b"", (ticket.ref,), due=ticket.due, is_here=True)

    # --- the line ------------------------------------------------------------------------------------------------

    def _joint(self, source: Session, target: Session) -> _Joint:
        joint = self._joints.get((source, target))
        if joint is None:
            joint = self._joints[source, target] = _Joint(source, target)
        return joint

    def _is_straight(self, joint: _Joint) -> bool:
        """Whether it goes over the line; it is tried now if it should be."""
        policy, target = joint.policy, joint.target
        if policy.is_up or not self._straight:
            return policy.is_up
        if not policy.may_try(self._now(), is_clean=not target.ferry.is_sending(joint.source.stays_in)):
            return False
        policy.tried()
        joint.number, joint.key, joint.is_open = self.next_ticket(), os.urandom(SESSION_BYTES), False
        target.tell(0, peer_wire.encode(Expect(joint.number, joint.key, joint.source.name)))
        return True

    def hear(self, session: Session, message: peer_wire.LineReport) -> None:
        """A lender speaks of a line."""
        joint = next((joint for joint in self._joints.values() if joint.number == message.line), None)
        if isinstance(message, Parted):
            self._parted(session, joint, message)
        elif joint is None or not joint.policy.is_up:
            return
        elif isinstance(message, Expecting) and session is joint.target and not joint.is_open:
            joint.is_open = True
            order = Introduce(joint.number, joint.key, session.name, session.address)
            joint.source.tell(0, peer_wire.encode(order))
            pending, joint.pending = joint.pending, []
            for ticket in pending:
                if ticket.number in self._tickets:
                    self._order(joint.source, joint.number, [(ticket.number, ticket.ref)], ticket.due)
        elif isinstance(message, Met) and session is joint.source:
            joint.policy.met()
            _log.info("host %s sends to host %s itself", joint.source.name, joint.target.name)

    def _parted(self, session: Session, joint: _Joint | None, message: Parted) -> None:
        """What has not come over the line comes by way of this host."""
        if joint is not None and session is joint.source and joint.policy.is_up:
            pause_s = joint.policy.broke(self._now())
            _log.warning(
                "host %s can't send to host %s (%s) itself: %s; it goes by way of this host, for %.0f s at least",
                session.name,
                joint.target.name,
                joint.target.address,
                message.reason,
                pause_s,
            )
            joint.target.tell(0, peer_wire.encode(Part(joint.number)))
        for number in message.missing:
            ticket = self._tickets.get(number)
            if ticket is not None and ticket.source is session:
                self._by_way_of_here(ticket)

    # --- what ends -----------------------------------------------------------------------------------------------

    def fetched(self, session: Session, ticket: int) -> None:
        """What was to come here from a lender is here. Raises ValueError if it was to come from another one."""
        if ticket not in self._fetching:
            return  # its slot was released meanwhile
        source, ref, waiting = self._fetching[ticket]
        if source is not session:
            raise ValueError(f"spoke of ticket {ticket}, which is another's")
        del self._fetching[ticket]
        source.kept.came(ref)
        source.claim(ref)
        for then in waiting:
            then()

    def released(self, slots: tuple[Slot, ...]) -> None:
        """These slots will be written again."""
        for target, book in self._books.items():
            spent = [ticket.number for slot in slots for ticket in book.pop(slot, {}).values()]
            if spent:
                for number in spent:
                    del self._tickets[number]
                target.tell(0, peer_wire.encode(Spent(tuple(spent))))
        gone = set(slots) if self._fetching else ()
        for number in [n for n, (_, ref, _) in self._fetching.items() if (ref.arena, ref.slot) in gone]:
            for then in self._fetching.pop(number)[2]:
                then()

    def ended(self, session: Session) -> None:
        """A session with a lender is over: nothing comes from there, or goes there."""
        self._sessions.pop(session, None)
        for places in self._books.pop(session, {}).values():
            for ticket in places.values():
                del self._tickets[ticket.number]
        for key in [key for key in self._joints if session in key]:
            joint = self._joints.pop(key)
            if joint.policy.is_up:
                other = joint.target if session is joint.source else joint.source
                other.tell(0, peer_wire.encode(Part(joint.number)))
        for target, book in self._books.items():
            self._strand(session, target, book)
        for number in [number for number, (source, *_) in self._fetching.items() if source is session]:
            for then in self._fetching.pop(number)[2]:
                then()

    def _strand(self, source: Session, target: Session, book: dict[Slot, dict[tuple[int, int], _Ticket]]) -> None:
        """What `target` waits for from a lender that is gone will not come."""
        lost: list[tuple[int, int, int]] = []
        for slot, places in list(book.items()):
            if any(ticket.source is source for ticket in places.values()):
                del book[slot]
                for ticket in places.values():
                    del self._tickets[ticket.number]
                    lost.append((ticket.number, *slot))
        if lost:
            target.tell(0, peer_wire.encode(Strand(tuple(lost))))
