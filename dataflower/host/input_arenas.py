"""The memory of callers' inputs: an arena for each workflow, since whoever is given a slot of one can read all of it.

All of them together are capped. They keep what they have touched for the next calls of their workflow, until another
needs it: then those that hold nothing are given back, the one that was used longest ago first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from dataflower.channel.arena import Arena, ArenaStatistics
from dataflower.errors import ResourceExhausted

HOST = 0
"""The host's own number as an owner of arenas."""
SPAN = 64
"""Numbers of segments that one workflow's arena may use; it grows in ever larger steps."""
SPANS = (1 << 16) // SPAN
"""So many workflows may have inputs at a time."""


class InputArenas:
    """For one thread. Call `close`."""

    def __init__(
        self, cap_bytes: int, announce: Callable[[int, int, int], None], forget: Callable[[int], None]
    ) -> None:
        """`announce`: see `Arena`. `forget(arena)`: nobody reads it any more, and its number will be used again."""
        self._cap = cap_bytes
        self._announce = announce
        self._forget = forget
        self._arenas: dict[str, Arena] = {}
        """By workflow; the one that was used last comes last."""
        self._spans: dict[int, str] = {}
        self._busy: set[Arena] = set()
        """Those that may hold something."""
        self._reserved = 0

    def of(self, workflow: str) -> Arena:
        """The arena for inputs of a workflow, which may take what the others have left of the cap.

        Raises ResourceExhausted while inputs of very many other workflows wait.
        """
        arena = self._arenas.pop(workflow, None) or self._new(workflow)
        self._arenas[workflow] = arena
        others = 0
        for other in tuple(self._busy):
            if not other.used_bytes:
                self._busy.discard(other)
            elif other is not arena:
                others += other.used_bytes
        self._busy.add(arena)
        arena.leave(others)
        if self._reserved > 2 * self._cap:
            self._give_back(self._reserved - 2 * self._cap, workflow)
        return arena

    def _new(self, workflow: str) -> Arena:
        if len(self._spans) == SPANS:
            self._give_back(1, workflow)
        span = next((number for number in range(SPANS) if number not in self._spans), None)
        if span is None:
            raise ResourceExhausted(f"inputs of {SPANS} other workflows wait; try again", retry_after_s=1.0)
        self._spans[span] = workflow
        return Arena(
            HOST,
            cap_bytes=self._cap,
            announce=self._made,
            setting="host_arena_bytes",
            numbers=range(span * SPAN, (span + 1) * SPAN),
        )

    def _made(self, arena: int, nbytes: int, descriptor: int) -> None:
        self._announce(arena, nbytes, descriptor)
        self._reserved += nbytes

    def _give_back(self, nbytes: int, but: str) -> None:
        """Let go of arenas that hold nothing until so many bytes are given back, if there are enough of them."""
        goal = self._reserved - nbytes
        for workflow, arena in list(self._arenas.items()):
            if arena.used_bytes or workflow == but:
                continue
            found = arena.statistics()
            span = next(number for number, owner in self._spans.items() if owner == workflow)
            del self._arenas[workflow], self._spans[span]
            self._busy.discard(arena)
            arena.close()
            for segment in range(found.segments):
                self._forget(HOST << 16 | span * SPAN + segment)
            self._reserved -= found.reserved_bytes
            if self._reserved <= goal:
                return

    def release(self, slots: Iterable[tuple[int, int]]) -> None:
        """Nobody reads these any more. ValueError for one that nobody did."""
        for span, own in groupby(slots, lambda slot: slot[0] // SPAN):
            workflow = self._spans.get(span)
            if workflow is None:
                raise ValueError(f"slots of arena {span * SPAN} are not with any receiver")
            self._arenas[workflow].release(own)

    def statistics(self) -> ArenaStatistics:
        """Of all of them together."""
        found = [arena.statistics() for arena in self._arenas.values()]
        return ArenaStatistics(
            sum(one.used_bytes for one in found),
            sum(one.reserved_bytes for one in found),
            sum(one.slots for one in found),
            sum(one.segments for one in found),
        )

    def close(self) -> None:
        """Close all of them. Idempotent."""
        for arena in self._arenas.values():
            arena.close()
