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
from dataflower.wire import CancelTask, Feed, RunBatch, RunTask, TaskFailed, TensorRef, Times


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
                self._inbox.spent(tickets)
            case Strand():
                self._strand(message)

    def push(self, names: tuple[str, ...], refs: Iterable[TensorRef], due: float) -> None:
        """Outputs that are read on those neighbours: they go there before anybody asks."""
        for outward in self._outward.values():
            if outward.name in names:
                for ref in refs:
                    outward.push(ref, due)

    def released(self, slots: tuple[Slot, ...]) -> None:
        """These slots will be written again."""
        for outward in self._outward.values():
            outward.released(slots)

    def forget(self, arena: int) -> None:
        """Nobody reads this arena any more."""
        for outward in self._outward.values():
            outward.forget(arena)

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
        for key, body, lacks in self._inbox.strand(slots):
            guest = self._guests.get(key % peer_wire.ASIDE)
            order = peer_wire.decode_order(body)
            if guest is None or not isinstance(order, (RunTask, RunBatch, Feed)):
                continue
            lost = tuple(sorted({slots[ticket] for ticket in lacks}))
            if isinstance(order, Feed) and not self._drop(key, order.task):
                guest.bereft[order.task] = lost  # it runs
                guest.peer.tell(CancelTask(order.task, LOST))
                continue
            for task in (order.task,) if isinstance(order, (RunTask, Feed)) else [one.task for one in order.tasks]:
                self._drop(key, task)
                self._say(key, wire.encode(TaskFailed(task, lost_error(lost), Times())))

    def _drop(self, key: int, task: int) -> bool:
        """What else waits for this task is not needed; whether that was its beginning."""

        def concerns(body: bytes) -> bool:
            return getattr(peer_wire.decode_order(body), "task", 0) == task

        found = [peer_wire.decode_order(body) for body in self._inbox.withdraw(key, concerns)]
        return any(isinstance(order, RunTask) for order in found)
