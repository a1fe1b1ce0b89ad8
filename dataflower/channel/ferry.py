"""Values between the memories of two hosts: messages that name memory, behind the bytes that they name.

Each arena that a message refers to is *mirrored* on the other side: memory of the same number and size, of which only
pages that were really sent are ever touched. So references mean the same on both sides, and bytes are received straight
into their place. A message waits on the receiving side until the bytes that it needs are there; messages with the same
key stay in order, those with different keys don't wait for each other.

What was sent of a slot is not sent again before the slot is released: eight readers on a host share one copy.

Bytes that come from one host and will be read on another are passed on while they come (`routes`), before the message
that names them is here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from dataflower.channel.inbox import Inbox
from dataflower.channel.limit import Limit
from dataflower.channel.mirrors import Mirrors
from dataflower.channel.mux import Mux
from dataflower.channel.mux_events import Aborted, Arrived, Completed, Grew, Message, MuxEvent, Opened
from dataflower.channel.outflow import Outflows
from dataflower.wire import TensorRef


class Mirror(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    """Coming messages refer to this arena of the sender's host."""

    arena: int
    nbytes: int


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """No further message refers to this arena."""

    arena: int


class Parcel(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """A message for `key`, to be given out when the streams in `needs` are complete, and after earlier ones.

    `urgent`: at once. `after`: tickets of bytes that come from another host (`Ferry.came`). `last`: whoever gets it is
    told at once that it is to come.
    """

    key: int
    body: bytes
    needs: tuple[int, ...] = ()
    urgent: bool = False
    after: tuple[int, ...] = ()
    last: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Mirror | Forget | Parcel).decode


PASSED_BYTES = 64 << 10
"""What is smaller is not passed on before it is known to be needed."""


@dataclass(frozen=True, slots=True)
class _Passing:
    """A stream that goes out through `ferry` while its bytes come in: for (arena, offset, bytes)."""

    ferry: Ferry
    place: tuple[int, int, int]
    stream: int


class Ferry:
    """One side. Owns the mirrors; `close` it. Not thread-safe."""

    def __init__(
        self,
        source: Callable[[TensorRef], memoryview],
        deliver: Callable[[int, bytes], None],
        on_mirror: Callable[[int, int], None],
        on_forget: Callable[[int], None],
        *,
        limits: Mapping[int, Limit] | None = None,
        outflows: Outflows | None = None,
        routes: Callable[[int], Iterable[Ferry]] | None = None,
        wake: Callable[[], None] = lambda: None,
        mirrors: Mirrors | None = None,
        on_lost: Callable[[int], None] = lambda key: None,
        foretell: Callable[[int, bytes], None] = lambda key, body: None,
        mux: Callable[..., Mux] = Mux,
    ) -> None:
        """`source` reads memory of this side. `deliver(key, body)` gets what came. `on_mirror(arena, bytes)` is told of
        a new mirror (`descriptor` has it), `on_forget(arena)` that it is not referred to any more.

        `limits`: by owner of an arena, how fast its memory may be sent. `outflows` is told of what is.
        `routes(arena)`: to whom else what comes for an arena is to go. `wake` is called when there is more to be sent
        because of that. `mirrors`: shared with other ferries, and so not closed by this one. `on_lost(key)` is told of
        messages that will not come because their bytes were given up, `foretell(key, body)` of a last word that has to
        wait for earlier ones.
        The callbacks may raise ValueError for what makes no sense, which ends the connection.
        """
        self._source = source
        self._deliver = deliver
        self._on_mirror = on_mirror
        self._on_forget = on_forget
        self.mux = mux(self._place, self._hear)
        self._limits = {} if limits is None else limits
        self._outflows = outflows
        self._routes = routes
        self._wake = wake
        self._foretell = foretell
        self._placed: tuple[int, int, memoryview] | None = None
        """Where the stream belongs that begins; nothing of it is kept then."""
        self._passing: dict[int, list[_Passing]] = {}
        """By stream that comes in."""
        self._passed: dict[tuple[int, int, int], int] = {}
        """Streams that go out though no message has named their bytes yet, by place."""
        self._flows: dict[int, int] = {}
        """By stream that goes out: its number there."""
        self._sizes: dict[int, int] = {}
        """Bytes of the arenas of this side that were announced."""
        self._sent: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
        """By slot: ranges (start, end) and the streams that took them over."""
        self._owns_mirrors = mirrors is None
        self._mirrors = Mirrors() if mirrors is None else mirrors
        self._told: set[int] = set()
        """Arenas that the other side has announced."""
        self.inbox = Inbox(deliver, on_lost)

    # --- out -------------------------------------------------------------------------------------------------

    def send(
        self,
        key: int,
        body: bytes,
        refs: Iterable[TensorRef] = (),
        size_of: Callable[[int], int] | None = None,
        due: float = math.inf,
        *,
        after: tuple[int, ...] = (),
        last: bool = False,
    ) -> tuple[int, ...]:
        """Send a message, and of the memory that it refers to what the other side doesn't have.

        `after`: tickets of what comes to the other side from elsewhere. Returns the streams that it waits for there.
        `size_of(arena)`: its bytes. The memory must not change before the slots are `released`. `due`: by when the
        bytes should be there; those with a smaller number go first. `last`: nothing comes after it under this key.
        """
        needs: dict[int, None] = {}
        for ref in refs:
            if stream := self.push(ref, size_of, due):
                needs[stream] = None
        self.mux.send(_encode(Parcel(key, body, tuple(needs), False, after, last)))
        return tuple(needs)

    def push(self, ref: TensorRef, size_of: Callable[[int], int] | None = None, due: float = math.inf) -> int:
        """Send bytes that a message will name, if the other side doesn't have them. The stream, 0 if they are there."""
        if ref.arena in self._mirrors:
            return 0  # it is the other side's own
        if ref.arena not in self._sizes:
            assert size_of is not None
            self.announce(ref.arena, size_of(ref.arena))
        return self._push(ref, due) if ref.nbytes else 0

    def send_urgent(self, key: int, body: bytes) -> None:
        """Send a message that waits for nothing."""
        self.mux.send(_encode(Parcel(key, body, (), True)))

    def announce(self, arena: int, nbytes: int) -> None:
        """Have an arena of this side mirrored, once."""
        if arena not in self._sizes:
            self._sizes[arena] = nbytes
            self.mux.send(_encode(Mirror(arena, nbytes)))

    def _push(self, ref: TensorRef, due: float) -> int:
        """The stream with these bytes that is under way; 0 if they are there."""
        ranges = self._sent.setdefault((ref.arena, ref.slot), {})
        wanted = (ref.offset, ref.offset + ref.nbytes)
        stream = ranges.get(wanted, 0)
        if not stream:
            whole = next((s for (a, b), s in ranges.items() if a <= wanted[0] and wanted[1] <= b), 0)
            stream = ranges[wanted] = whole or self._open(ref, due)
        if due < math.inf:
            self.mux.hasten(stream, due)
        return stream if self.mux.is_open(stream) else 0

    def _open(self, ref: TensorRef, due: float) -> int:
        owner = ref.arena >> 16
        stream = self.mux.open(self._source(ref), ref.arena, ref.offset, self._limits.get(owner), due=due)
        if self._outflows is not None:
            self._flows[stream] = self._outflows.began(owner, ref.nbytes, lambda: self.mux.left(stream))
        return stream

    def is_sending(self, concerns: Callable[[int], bool]) -> bool:
        """Whether bytes of such an arena may be on their way."""
        for (arena, _), ranges in self._sent.items():
            if concerns(arena) and any(map(self.mux.is_open, ranges.values())):
                return True
        return any(concerns(place[0]) for place in self._passed)

    @property
    def slots(self) -> int:
        """How many slots of this side the other has bytes of, or gets them, whose readers have not let go of them."""
        return len(self._sent) + len(self._passed)

    def _give_up(self, stream: int) -> None:
        if self._outflows is not None and (flow := self._flows.pop(stream, None)) is not None:
            self._outflows.given_up(flow)
        self.mux.abort(stream)

    def released(self, slots: Iterable[tuple[int, int]]) -> None:
        """Nobody reads these slots any more: they will be written again."""
        for slot in slots:
            for stream in self._sent.pop(slot, {}).values():
                self._give_up(stream)

    def pass_on(self, place: tuple[int, int, int], view: memoryview, size: int) -> _Passing | None:
        """Begin to send bytes that are still coming, for (arena, offset, bytes); None if they come from there."""
        if place[0] in self._mirrors:
            return None
        self.announce(place[0], size)
        self._stop_passing(place)
        stream = self._passed[place] = self.mux.open(view, place[0], place[1], ready=0)
        self._wake()
        return _Passing(self, place, stream)

    def claim(self, ref: TensorRef) -> None:
        """A message that came names these bytes: from now on they are a part of that slot."""
        stream = self._passed.pop((ref.arena, ref.offset, ref.nbytes), 0)
        if stream:
            self._sent.setdefault((ref.arena, ref.slot), {})[ref.offset, ref.offset + ref.nbytes] = stream

    def _stop_passing(self, place: tuple[int, int, int]) -> None:
        self.mux.abort(self._passed.pop(place, 0))

    def _extend(self, stream: int, ready: int) -> None:
        """More of what is passed on is there."""
        self.mux.extend(stream, ready)
        self._wake()

    def forget(self, arena: int) -> None:
        """No further message will refer to this arena of this side. No-op if it was not announced."""
        if self._sizes.pop(arena, None) is not None:
            self.released([slot for slot in self._sent if slot[0] == arena])
            for place in [place for place in self._passed if place[0] == arena]:
                self._stop_passing(place)
            self.mux.send(_encode(Forget(arena)))

    def let_go(self, arena: int) -> None:
        """The other side has let go of its mirror of this arena, and names it no more."""
        self._sizes.pop(arena, None)
        self.released([slot for slot in self._sent if slot[0] == arena])

    # --- in --------------------------------------------------------------------------------------------------

    def descriptor(self, arena: int) -> int:
        """A copy of the descriptor of a mirror, which the caller owns. ValueError if there is none."""
        return os.dup(self._mirrors.segment(arena).fd)

    def mirrors(self, arena: int) -> bool:
        """Whether this arena is the other side's."""
        return arena in self._mirrors

    def drop_mirror(self, arena: int) -> None:
        """Let go of a mirror; its memory is gone when its last reader is. No-op if there is none."""
        self._told.discard(arena)
        self._mirrors.drop(arena)

    def close(self) -> None:
        """Let go of all mirrors, and of all memory that was to be sent. Idempotent."""
        self.mux.close()
        if self._outflows is not None:
            for flow in self._flows.values():
                self._outflows.given_up(flow)
        self._flows.clear()
        for stream in list(self._passing):
            self._break_off(stream)
        if self._owns_mirrors:
            self._mirrors.close()
        self._placed = None
        self._sent.clear()
        self._passed.clear()
        self.inbox.clear()

    def _place(self, arena: int, offset: int, nbytes: int) -> memoryview:
        view = self._mirrors.place(arena, offset, nbytes)
        if self._routes is not None:
            self._placed = (arena, offset, view)
        return view

    def _hear(self, event: MuxEvent) -> None:
        match event:
            case Message(payload):
                self._unpack(payload)
            case Arrived(stream):
                if self._outflows is not None and (flow := self._flows.pop(stream, None)) is not None:
                    self._outflows.arrived(flow)
            case Opened(stream):
                self.inbox.began(stream)
                self._begin_passing(stream)
            case Grew(stream, nbytes):
                for passing in self._passing.get(stream, ()):
                    passing.ferry._extend(passing.stream, nbytes)
            case Completed(stream):
                for passing in self._passing.pop(stream, ()):
                    passing.ferry._extend(passing.stream, passing.place[2])
                self.inbox.completed(stream)
            case Aborted(stream):
                self._break_off(stream)
                self.inbox.aborted(stream)

    def _begin_passing(self, stream: int) -> None:
        placed, self._placed = self._placed, None
        if placed is None or self._routes is None:
            return
        arena, offset, view = placed
        if len(view) < PASSED_BYTES:
            return
        size = self._mirrors.segment(arena).nbytes
        begun = [ferry.pass_on((arena, offset, len(view)), view, size) for ferry in self._routes(arena)]
        if begun:
            self._passing[stream] = [passing for passing in begun if passing is not None]

    def _break_off(self, stream: int) -> None:
        """Bytes that were to be passed on will not come."""
        for passing in self._passing.pop(stream, ()):
            if passing.ferry._passed.get(passing.place) == passing.stream:
                passing.ferry._stop_passing(passing.place)
                passing.ferry._wake()

    def _unpack(self, payload: bytearray) -> None:
        envelope = _decode(payload)
        if type(envelope) is Parcel:
            if envelope.urgent:
                self._deliver(envelope.key, envelope.body)
            elif not self.inbox.accept(envelope.key, envelope.body, envelope.needs, envelope.after) and envelope.last:
                self._foretell(envelope.key, envelope.body)
        elif type(envelope) is Mirror:
            self._make_mirror(envelope)
        else:
            self._on_forget(envelope.arena)
            self.drop_mirror(envelope.arena)

    def _make_mirror(self, mirror: Mirror) -> None:
        arena = mirror.arena
        if arena in self._told:
            raise ValueError(f"a second mirror under the number {arena:#x}")
        self._told.add(arena)
        if self._mirrors.make(arena, mirror.nbytes):
            self._on_mirror(arena, mirror.nbytes)
