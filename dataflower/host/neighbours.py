"""What a lender does for its owner's other lenders: it sends them memory that stays here, and takes in theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dataflower import wire
from dataflower.channel.ferry import Ferry
from dataflower.host import peer_wire
from dataflower.host.api import PeerStatus
from dataflower.host.guest import LOST, Guest, lost_error
from dataflower.host.neighbour import Inward, Outward, Slot, Surroundings
from dataflower.host.peer_wire import (
    TICKETS,
    Expect,
    Expecting,
    Introduce,
    LineOrder,
    Met,
    Part,
    Parted,
    Ship,
    Spent,
    Strand,
)
from dataflower.wire import CancelTask, Feed, FeedEnd, RunBatch, RunTask, TaskFailed, TensorRef, Times


class Neighbours:
    """Of one owner's session."""

    def __init__(
        self,
        around: Surroundings,
        ferry: Ferry,
        guests: Mapping[int, Guest],
        visits: dict[bytes, Inward],
        *,
        say: Callable[..., object],
        has: Callable[[TensorRef], bool],
    ) -> None:
        """`ferry`: to the owner. `visits`: where the host's door finds who may come. `say(key, body, refs, due)` tells
        the owner; `has(ref)`: whether there is such memory.
        """
        self._around = around
        self._inbox = ferry.inbox
        self._guests = guests
        self._visits = visits
        self._say = say
        self._has = has
        self._outward: dict[int, Outward] = {}
        self._inward: dict[int, Inward] = {}

    def take(self, message: LineOrder) -> None:
        """An order of the owner. Raises ValueError for what makes no sense."""
        match message:
            case Expect(line=line, key=key):
                if line in self._inward or key in self._visits:
                    raise ValueError(f"a second neighbour over line {line}")
                inward = Inward(self._around, message, self._inbox.came, self._inbox.never)
                self._inward[line] = self._visits[key] = inward
                self._say(0, peer_wire.encode(Expecting(line)))
            case Introduce(line=line):
                if line in self._outward:
                    raise ValueError(f"line {line} for a second time")
                self._outward[line] = Outward(
                    self._around, message, lambda: self._met(line), lambda reason: self._parted(line, reason)
                )
            case Part(line=line):
                self._end(line)
            case Ship():
                self._ship(message)
            case Spent(tickets=tickets):
                self._inbox.spent(tickets, self._inward)
            case Strand():
                self._strand(message)

    def push(self, names: tuple[str, ...], refs: Iterable[TensorRef], due: float) -> bool:
        """Outputs that are read on those neighbours: they go there before anybody asks. False if one can't be had."""
        found = [outward for outward in self._outward.values() if outward.name in names]
        for outward in found:
            for ref in refs:
                outward.push(ref, due)
        return len(found) == len(names)

    def released(self, slots: tuple[Slot, ...]) -> None:
        """These slots will be written again."""
        for outward in self._outward.values():
            outward.released(slots)

    def forget(self, arena: int) -> None:
        """Nobody reads this arena any more."""
        for outward in self._outward.values():
            outward.forget(arena)

    @property
    def slots(self) -> int:
        """How many slots the neighbours have bytes of, or get them, that are still read."""
        return sum(outward.ferry.slots for outward in self._outward.values())

    def status(self) -> tuple[PeerStatus, ...]:
        """For people."""
        outward = [end.status() for end in self._outward.values()]
        return (*outward, *(end.status() for end in self._inward.values()))

    def close(self) -> None:
        """End all lines. Idempotent."""
        for line in (*self._outward, *self._inward):
            self._end(line)

    def _met(self, line: int) -> None:
        self._say(0, peer_wire.encode(Met(line)))

    def _parted(self, line: int, reason: str) -> None:
        outward = self._outward.pop(line, None)
        if outward is not None:
            self._say(0, peer_wire.encode(Parted(line, reason, outward.missing)))

    def _end(self, line: int) -> None:
        outward, inward = self._outward.pop(line, None), self._inward.pop(line, None)
        if outward is not None:
            outward.close()
        if inward is not None:
            del self._visits[inward.key]
            inward.close()
            self._inbox.ended(line)

    def _ship(self, message: Ship) -> None:
        for _, ref in message.load:
            if not self._has(ref):
                raise ValueError(f"named memory that is not there (arena {ref.arena:#x})")
        due = message.due or float("inf")
        if not message.line:
            for ticket, ref in message.load:
                self._say(TICKETS + ticket, b"", [ref], due)
            return
        outward = self._outward.get(message.line)
        if outward is None:
            missing = tuple(ticket for ticket, _ in message.load)
            self._say(0, peer_wire.encode(Parted(message.line, "it has ended", missing)))
            return
        for ticket, ref in message.load:
            outward.ship(ticket, ref, due)

    def _strand(self, message: Strand) -> None:
        """Tasks that wait for what is lost say so, and it is made again for them."""
        slots = {ticket: (arena, slot) for ticket, arena, slot in message.tickets}
        lost: dict[tuple[int, int], set[Slot]] = {}
        unbegun: set[tuple[int, int]] = set()
        for key, body, lacks in self._inbox.strand(slots, tasks_about):
            begins = isinstance(peer_wire.decode_order(body), (RunTask, RunBatch))
            for task in tasks_about(body):
                lost.setdefault((key, task), set()).update(slots[ticket] for ticket in lacks)
                if begins:
                    unbegun.add((key, task))
        for (key, task), missing in lost.items():
            guest = self._guests.get(key)
            if guest is None:
                continue
            gone = tuple(sorted(missing))
            if (key, task) in unbegun:
                self._say(key, wire.encode(TaskFailed(task, lost_error(gone), Times())))
            else:  # it runs
                guest.bereft[task] = gone
                guest.peer.tell(CancelTask(task, LOST))


def tasks_about(body: bytes) -> frozenset[int]:
    """The tasks that an order is about; what is only fetched ahead is for none."""
    order = peer_wire.decode_order(body)
    if isinstance(order, RunBatch):
        return frozenset(task.task for task in order.tasks)
    return frozenset((order.task,)) if isinstance(order, (RunTask, Feed, FeedEnd)) else frozenset()
