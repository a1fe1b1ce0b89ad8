"""Messages that have come and wait: for streams of bytes, for bytes that come another way, for their turn.

Pure: it is told what has come, and gives out what has waited for it. What is waited for has a number: streams of the
same connection positive ones, and *tickets*, bytes that come by way of another one, negative ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Waiting:
    """A message whose bytes, or whose turn, have not come."""

    needs: set[int]
    body: bytes


class Inbox:
    """In order for each key; keys don't wait for each other."""

    def __init__(
        self, deliver: Callable[[int, bytes], None], on_lost: Callable[[int], None] = lambda key: None
    ) -> None:
        """`deliver(key, body)` gets what is due; `on_lost(key)` is told of what will not be, for want of a stream."""
        self._deliver = deliver
        self._on_lost = on_lost
        self._coming: set[int] = set()
        self._queues: dict[int, deque[_Waiting]] = {}
        self._waiters: dict[int, set[int]] = {}
        """By what is waited for: the keys of which messages wait for it."""
        self._came: set[int] = set()
        """Tickets whose bytes are there, and that may be named again."""
        self._over: set[int] = set()
        """Tickets whose bytes were given up, and that may still be named."""
        self._void: dict[int, set[int]] = {}
        """Tickets that will not be named again, whose bytes may still be told of: by whom."""

    def accept(self, key: int, body: bytes, needs: Iterable[int], tickets: Iterable[int] = ()) -> bool:
        """A message has come. `needs`: streams; `tickets`: what comes another way. Whether it was given out."""
        missing = {stream for stream in needs if stream in self._coming}
        for ticket in tickets:
            if ticket not in self._came:
                self._coming.add(-ticket)
                missing.add(-ticket)
        queue = self._queues.get(key)
        if not missing and not queue:
            self._deliver(key, body)
            return True
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(_Waiting(missing, body))
        for number in missing:
            self._waiters.setdefault(number, set()).add(key)
        return False

    def put_back(self, key: int, body: bytes, tickets: Iterable[int]) -> None:
        """A message that was just given out, and can't be dealt with before these tickets come: it keeps its turn."""
        needs = {-ticket for ticket in tickets}
        self._coming |= needs
        self._queues.setdefault(key, deque()).appendleft(_Waiting(needs, body))
        for number in needs:
            self._waiters.setdefault(number, set()).add(key)

    def began(self, stream: int) -> None:
        """A stream comes."""
        self._coming.add(stream)

    def completed(self, stream: int) -> None:
        """All of it is there."""
        self._coming.discard(stream)
        for key in self._waiters.pop(stream, ()):
            self._give_out(key)

    def aborted(self, stream: int) -> None:
        """It will not come: what needs it is of no interest to its sender any more."""
        self._coming.discard(stream)
        for key in self._waiters.pop(stream, ()):
            queue = self._queues.get(key)
            if queue:
                self._queues[key] = deque(waiting for waiting in queue if stream not in waiting.needs)
                self._give_out(key)
                self._on_lost(key)

    def came(self, ticket: int) -> None:
        """The bytes of a ticket are there."""
        if self._void.pop(ticket, None) is None:
            self._came.add(ticket)
            self.completed(-ticket)

    def spent(self, tickets: Iterable[int], lines: Iterable[int] = ()) -> None:
        """These are not named any more, and what still waits for them is of no interest. `lines`: numbers of those over
        which their bytes may be told of yet (`came`, `never`, `ended`).
        """
        lines = set(lines)
        for ticket in tickets:
            was_over = ticket in self._over
            self._over.discard(ticket)
            if ticket in self._came:
                self._came.discard(ticket)
            else:
                if lines and not was_over:
                    self._void[ticket] = set(lines)
                self.aborted(-ticket)

    def never(self, ticket: int) -> None:
        """The bytes of a ticket will not come, since they were given up."""
        if self._void.pop(ticket, None) is None:
            self._over.add(ticket)

    def ended(self, line: int) -> None:
        """Nothing is told of over this line any more."""
        for ticket, lines in list(self._void.items()):
            lines.discard(line)
            if not lines:
                del self._void[ticket]

    def strand(
        self, tickets: Iterable[int], about: Callable[[bytes], frozenset[int]]
    ) -> list[tuple[int, bytes, set[int]]]:
        """The bytes of these are lost, as far as they are not here: what waits for them is taken out and returned, as
        (key, body, what it lacks), with all that waits behind and is about the same; the rest goes on.
        """
        gone = {ticket for ticket in tickets if ticket not in self._came}
        found: list[tuple[int, bytes, set[int]]] = []
        keys = {key for ticket in gone for key in self._waiters.get(-ticket, ())}
        for key in keys:
            kept: deque[_Waiting] = deque()
            over: set[int] = set()
            for waiting in self._queues.get(key, ()):
                lacks = {ticket for ticket in gone if -ticket in waiting.needs}
                subjects = about(waiting.body)
                if lacks or not over.isdisjoint(subjects):
                    over |= subjects
                    found.append((key, waiting.body, lacks))
                else:
                    kept.append(waiting)
            self._queues[key] = kept
        for ticket in gone:
            self._coming.discard(-ticket)
            self._waiters.pop(-ticket, None)
        self._came.difference_update(tickets)
        self._over.difference_update(tickets)
        for key in keys:
            self._give_out(key)
        return found

    def drop(self, key: int) -> None:
        """Give out nothing more of what waits under this key."""
        self._queues.pop(key, None)

    def withdraw(self, key: int, matches: Callable[[bytes], bool]) -> list[bytes]:
        """Take out what waits under this key and matches, and give it back; what it waited for goes on coming."""
        queue = self._queues.get(key)
        if not queue:
            return []
        found = [waiting for waiting in queue if matches(waiting.body)]
        self._queues[key] = deque(waiting for waiting in queue if waiting not in found)
        self._give_out(key)
        return [waiting.body for waiting in found]

    def waiting(self, key: int) -> list[bytes]:
        """What waits under this key, in order."""
        return [waiting.body for waiting in self._queues.get(key, ())]

    def clear(self) -> None:
        """Nothing is given out any more."""
        self._queues.clear()
        self._waiters.clear()

    def _give_out(self, key: int) -> None:
        """Everything at the head of a queue whose bytes are there."""
        while queue := self._queues.get(key):
            first = queue[0]
            if not first.needs.isdisjoint(self._coming):
                return
            queue.popleft()
            self._deliver(key, first.body)
        self._queues.pop(key, None)
