"""Messages and streams of bytes over one connection that may break: the protocol of one side, without any I/O.

Reliable frames (messages, and the beginnings and ends of streams) are counted by both sides and kept until the other
has confirmed them; the bytes of a stream need not be kept, since they can be read again where they lie. When a
connection is replaced, each side says how far it has come, and the other goes on from there: nothing is lost and
nothing comes twice.

A frame is a header of 24 bytes and a payload. Bytes of streams are received straight into the memory where they belong
(`incoming`) and sent straight from where they are (`outgoing`), behind what is reliable, in the order of `turns`.
"""

from __future__ import annotations

import enum
import math
import struct
from collections import deque
from collections.abc import Callable

from dataflower.channel.limit import Limit
from dataflower.channel.mux_events import Aborted, Arrived, Completed, Grew, Message, MuxEvent, Opened
from dataflower.channel.turns import Out, Turns

HEADER = struct.Struct("<BxxxIQQ")
"""Kind, length of the payload, and two numbers that depend on the kind."""
_PLACE = struct.Struct("<QQ")
_POSITION = struct.Struct("<QQ")

CHUNK_BYTES = 32 << 10
"""What a stream sends before it is another's turn, until it is known how fast the connection is."""
WINDOW_BYTES = 32 << 20
"""Bytes of streams that may be on their way without confirmation."""
MAX_MESSAGE_BYTES = 256 << 20
MAX_STREAMS = 1 << 20
"""Streams that the other side may have begun and not ended."""
_CHUNK_S = 0.001
"""How long a message may have to wait behind a chunk, about."""
_CHUNKS = (8 << 10, 1 << 20)
_MEASURED_BYTES = 512 << 10
_STAGING_BYTES = 16 << 10
_UNCONFIRMED_MESSAGES = 32
_UNCONFIRMED_BYTES = 1 << 20


class Kind(enum.IntEnum):
    """Of a frame; its two numbers in brackets.

    RESUME   how far the sender has come as a receiver; first on each connection (reliable frames, streams listed)
    MESSAGE  reliable, payload (0, 0)
    OPEN     reliable, a stream begins; payload: where its bytes belong (stream, bytes in all)
    ABORT    reliable, a stream ends early and counts for nothing (stream, 0)
    DATA     bytes of a stream (stream, offset)
    ACK      what has come over this connection (reliable frames ever, bytes of streams on this connection)
    """

    RESUME = 1
    MESSAGE = 2
    OPEN = 3
    ABORT = 4
    DATA = 5
    ACK = 6


_KINDS = {int(kind): kind for kind in Kind}


class MuxError(Exception):
    """The other side broke the protocol: the connection is of no use any more."""


Place = Callable[[int, int, int], memoryview]
"""(arena, offset, bytes) -> writable memory of just that size; ValueError if there is none."""


class _In:
    """A stream that comes in."""

    __slots__ = ("got", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.got = 0


class Mux:
    """One side of a session. Between `connected` and `lost` there is a connection."""

    def __init__(
        self,
        place: Place,
        tell: Callable[[MuxEvent], None],
        *,
        window: int = WINDOW_BYTES,
        chunk: int = CHUNK_BYTES,
    ) -> None:
        """`place` finds the memory for a stream that begins; `tell` is told of everything that comes, in order.

        Both may raise ValueError for what makes no sense to them. `window`, `chunk`: bytes.
        """
        self._place = place
        self._tell = tell
        self._window = window
        self._chunk = chunk
        self._unconfirmed = min(_UNCONFIRMED_BYTES, window // 8)
        self._mark: tuple[float, int] | None = None
        """When so many bytes were confirmed; None while nothing is on its way."""
        # Sending
        self._kept: deque[bytes] = deque()
        """Reliable frames that are not confirmed; the first is number `_confirmed` + 1."""
        self._confirmed = 0
        self._written = 0
        """Reliable frames handed to this connection, or confirmed."""
        self._last_stream = 0
        self._out: dict[int, Out] = {}
        self._turns = Turns(self._out)
        self._ends: deque[tuple[int, int]] = deque()
        """(bytes of streams on this connection at which it was all sent, stream)."""
        self._data_sent = 0
        self._data_confirmed = 0
        self._pieces: deque[memoryview] = deque()
        self._queued = 0
        # Receiving
        self._staging = bytearray(_STAGING_BYTES)
        self._staged = (0, 0)
        self._parts: deque[memoryview] = deque()
        self._frame: tuple[Kind, int, int, int] | None = None
        self._payload = bytearray()
        self._in: dict[int, _In] = {}
        self._heard = 0
        self._newest = 0
        self._data_heard = 0
        self._unsaid = (0, 0)
        """Reliable frames and bytes that came since they were last confirmed."""
        self._ack_due = False
        self._is_resumed = False
        self.due = math.inf
        """When a stream may go on that `outgoing` held back for its limit."""
        self.bytes_out = 0
        """Of streams, handed over for sending, repetitions included."""
        self.bytes_in = 0

    @property
    def chunk(self) -> int:
        """Bytes that go over the connection in about a millisecond, as far as that is known."""
        return self._chunk

    # --- what is to be sent ----------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Send a message, now or when there is a connection. Raises ValueError if it is too long."""
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(payload)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        self._kept.append(HEADER.pack(Kind.MESSAGE, len(payload), 0, 0) + payload)

    def open(
        self,
        view: memoryview,
        arena: int,
        offset: int,
        limit: Limit | None = None,
        *,
        ready: int | None = None,
        due: float = math.inf,
    ) -> int:
        """Begin a stream of these bytes, for that place; returns its number. They must not change before it is over.

        `ready`: how many of them are there, until `extend` says more; None: all. `due`: streams with a smaller number
        go first.
        """
        self._last_stream += 1
        stream = self._last_stream
        frame = HEADER.pack(Kind.OPEN, _PLACE.size, stream, len(view)) + _PLACE.pack(arena, offset)
        self._kept.append(frame)
        there = len(view) if ready is None else ready
        self._out[stream] = Out(view, self._confirmed + len(self._kept), limit, there, due)
        self._turns.add(stream)
        return stream

    def hasten(self, stream: int, due: float) -> None:
        """A stream is due at that time, unless it is due before that already; no-op if it is over."""
        out = self._out.get(stream)
        if out is not None and due < out.due:
            self._turns.hasten(stream, due)

    def extend(self, stream: int, ready: int) -> None:
        """More bytes of a stream are there; no-op if it is over."""
        out = self._out.get(stream)
        if out is not None:
            out.ready = max(out.ready, min(ready, len(out.view)))

    def abort(self, stream: int) -> None:
        """End a stream early, if it isn't over: its memory is needed for other things."""
        if self._out.pop(stream, None) is not None:
            self._kept.append(HEADER.pack(Kind.ABORT, 0, stream, 0))

    def is_open(self, stream: int) -> bool:
        """Whether it is not known to have arrived in full."""
        return stream in self._out

    def left(self, stream: int) -> int:
        """Bytes of a stream that have not been handed to a connection; 0 if it is over."""
        out = self._out.get(stream)
        return 0 if out is None else out.left

    @property
    def unfinished(self) -> int:
        """Bytes of streams that are not known to have arrived."""
        return sum(len(out.view) for out in self._out.values())

    # --- the connection --------------------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a new connection; nothing of the former one counts any more."""
        self.lost()
        rows = b"".join(_POSITION.pack(stream, entry.got) for stream, entry in self._in.items())
        self._push(HEADER.pack(Kind.RESUME, len(rows), self._heard, len(self._in)) + rows)

    def lost(self) -> None:
        """The connection is gone."""
        self._is_resumed = False
        self._pieces.clear()
        self._ends.clear()
        self._parts.clear()
        self._frame, self._mark, self._staged = None, None, (0, 0)
        self._queued = self._data_sent = self._data_confirmed = self._data_heard = 0
        self._unsaid, self._ack_due = (0, 0), False
        self._written = self._confirmed

    def close(self) -> None:
        """The session is over: let go of all memory that was to be sent or written."""
        self.lost()
        self._turns.clear()
        for books in (self._out, self._in, self._kept):
            books.clear()

    def outgoing(self, now: float = 0.0) -> deque[memoryview]:
        """What to send next, in order; empty if nothing is to be sent now. Tell `wrote` how much of it went.

        `now` in seconds, for streams with a limit: ask again at `due`.
        """
        self.due = math.inf
        if not self._is_resumed:
            return self._pieces
        self._adapt(now)
        if self._ack_due:
            self._ack_due, self._unsaid = False, (0, 0)
            self._push(HEADER.pack(Kind.ACK, 0, self._heard, self._data_heard))
        while self._queued < self._chunk:
            if self._written < self._confirmed + len(self._kept):
                self._push(self._kept[self._written - self._confirmed])
                self._written += 1
            elif self._queued > self._chunk // 4 or not self._push_chunk(now):  # nothing overtakes what is queued
                break
        return self._pieces

    def _adapt(self, now: float) -> None:
        """Choose the size of chunks by how fast the other side confirms them: small ones cost, large ones delay."""
        confirmed = self._data_confirmed
        if self._mark is not None:
            began, before = self._mark
            if confirmed - before >= _MEASURED_BYTES and now > began:
                smallest, largest = _CHUNKS
                size = int((confirmed - before) / (now - began) * _CHUNK_S)  # confirmations may come in bursts
                self._chunk = (self._chunk + min(max(size, smallest), largest)) // 2
                self._mark = (now, confirmed)
        if confirmed == self._data_sent:
            self._mark = None
        elif self._mark is None:
            self._mark = (now, confirmed)

    def _push(self, frame: bytes) -> None:
        self._pieces.append(memoryview(frame))
        self._queued += len(frame)

    def _push_chunk(self, now: float) -> bool:
        """The next chunk of the stream that comes next; False if there is none, or the window is used up."""
        if self._data_sent - self._data_confirmed >= self._window:
            return False
        return self._turns.push(lambda stream, out: self._push_part(stream, out, now))

    def _push_part(self, stream: int, out: Out, now: float) -> bool:
        """A chunk of this stream; False if none is there, or its limit does not let it go yet."""
        limit, size = out.limit, min(self._chunk, out.ready - out.at)
        if not size:
            return False
        if limit is not None:
            if limit.free_at() > now:
                self.due = min(self.due, limit.free_at())
                return False
            size = min(size, limit.chunk)
            limit.took(size, now)
        chunk = out.view[out.at : out.at + size]
        self._push(HEADER.pack(Kind.DATA, len(chunk), stream, out.at))
        self._pieces.append(chunk)
        size = len(chunk)
        self._queued += size
        self._data_sent += size
        self.bytes_out += size
        out.at += size
        out.top = max(out.top, out.at)
        if out.at == len(out.view):
            self._ends.append((self._data_sent, stream))
        return True

    def wrote(self, count: int) -> None:
        """So many bytes of `outgoing` have gone."""
        pieces = self._pieces
        self._queued -= count
        while count:
            size = len(pieces[0])
            if count < size:
                pieces[0] = pieces[0][count:]
                return
            count -= size
            pieces.popleft()

    # --- what comes in ---------------------------------------------------------------------------------------

    def incoming(self) -> list[memoryview]:
        """Where to put what comes next, in order. Tell `received` how much there was."""
        if self._parts:
            return [*self._parts, memoryview(self._staging)]
        start, end = self._staged
        if start:
            self._staging[: end - start] = self._staging[start:end]
            self._staged = (0, end - start)
        return [memoryview(self._staging)[end - start :]]

    def received(self, count: int) -> None:
        """So many bytes were put where `incoming` said; `tell` hears what that makes. Raises MuxError."""
        try:
            self._receive(count)
        except ValueError as error:
            raise MuxError(str(error)) from error

    def _receive(self, count: int) -> None:
        if self._parts:
            count -= self._fill(count)
            if self._parts:
                return
            self._end_frame()
            self._staged = (0, count)
        else:
            self._staged = (self._staged[0], self._staged[1] + count)
        while self._staged[1] - self._staged[0] >= HEADER.size:
            start, end = self._staged
            self._staged = (start + HEADER.size, end)
            self._begin_frame(*HEADER.unpack_from(self._staging, start))
            if self._frame is not None:
                self._take_staged()
                if self._parts:
                    break
                self._end_frame()

    def _fill(self, count: int) -> int:
        """Count bytes that went straight to where they belong; how many those were."""
        filled = 0
        parts = self._parts
        while parts and filled < count:
            step = min(len(parts[0]), count - filled)
            filled += step
            if step < len(parts[0]):
                parts[0] = parts[0][step:]
            else:
                parts.popleft()
        return filled

    def _take_staged(self) -> None:
        """What came along with the header is copied to where it belongs."""
        start, end = self._staged
        parts = self._parts
        while parts and start < end:
            step = min(len(parts[0]), end - start)
            parts[0][:step] = self._staging[start : start + step]
            start += step
            if step < len(parts[0]):
                parts[0] = parts[0][step:]
            else:
                parts.popleft()
        self._staged = (start, end)

    def _begin_frame(self, number: int, length: int, first: int, second: int) -> None:
        """Check a header, and get ready for the payload; a frame without one is dealt with at once."""
        kind = _KINDS.get(number)
        if kind is None:
            raise MuxError(f"a frame of kind {number}, which there is not")
        if (kind is Kind.RESUME) == self._is_resumed:
            raise MuxError("a second beginning" if self._is_resumed else "something before the beginning")
        if kind is Kind.DATA:
            self._begin_data(length, first, second)
            if not length:
                raise MuxError("an empty piece of a stream")
        else:
            limit = {Kind.MESSAGE: MAX_MESSAGE_BYTES, Kind.OPEN: _PLACE.size, Kind.RESUME: MAX_STREAMS * 16}.get(
                kind, 0
            )
            if length > limit:
                raise MuxError(f"a frame of {length} bytes where at most {limit} may be")
            self._payload = bytearray(length)
            if length:
                self._parts.append(memoryview(self._payload))
        self._frame = (kind, length, first, second)
        if not length:
            self._end_frame()

    def _begin_data(self, length: int, stream: int, offset: int) -> None:
        entry = self._in.get(stream)
        if entry is None:
            if not 0 < stream <= self._newest:
                raise MuxError(f"bytes of stream {stream}, which there is not")
            self._parts.append(memoryview(bytearray(self._limited(length))))  # over already: it counts for nothing
            return
        if offset > entry.got or offset + length > len(entry.view):
            raise MuxError(f"bytes {offset} to {offset + length} of stream {stream}, which has {entry.got} so far")
        again = min(length, entry.got - offset)
        if again:
            self._parts.append(memoryview(bytearray(self._limited(again))))
        if length > again:
            self._parts.append(entry.view[entry.got : offset + length])

    @staticmethod
    def _limited(length: int) -> int:
        if length > MAX_MESSAGE_BYTES:
            raise MuxError(f"a piece of {length} bytes")
        return length

    def _end_frame(self) -> None:
        """The frame is here with its payload."""
        assert self._frame is not None
        (kind, length, first, second), self._frame = self._frame, None
        payload, self._payload = self._payload, bytearray()
        if kind is Kind.DATA:
            self._end_data(first, second, length)
        elif kind is Kind.ACK:
            self._confirm(first, second)
        elif kind is Kind.RESUME:
            self._resume(first, second, payload)
        else:
            self._heard += 1
            frames, size = self._unsaid
            self._unsaid = (frames + 1, size)
            self._ack_due |= frames + 1 >= _UNCONFIRMED_MESSAGES
            if kind is Kind.MESSAGE:
                self._tell(Message(payload))
            elif kind is Kind.OPEN:
                self._begin_stream(first, second, payload)
            elif self._in.pop(first, None) is not None:
                self._tell(Aborted(first))

    def _begin_stream(self, stream: int, nbytes: int, payload: bytearray) -> None:
        if stream <= self._newest or not nbytes or len(payload) != _PLACE.size or len(self._in) >= MAX_STREAMS:
            raise MuxError(f"stream {stream} of {nbytes} bytes can't begin")
        self._newest = stream
        arena, offset = _PLACE.unpack(payload)
        self._in[stream] = _In(self._place(arena, offset, nbytes))
        self._tell(Opened(stream))

    def _end_data(self, stream: int, offset: int, size: int) -> None:
        entry = self._in.get(stream)
        self._data_heard += size
        self.bytes_in += size
        frames, unsaid = self._unsaid
        self._unsaid = (frames, unsaid + size)
        self._ack_due |= unsaid + size >= self._unconfirmed
        if entry is None:
            return
        entry.got = max(entry.got, offset + size)
        if entry.got == len(entry.view):
            del self._in[stream]
            self._ack_due = True
            self._tell(Completed(stream))
        else:
            self._tell(Grew(stream, entry.got))

    # --- the other side's confirmations ----------------------------------------------------------------------

    def _confirm(self, frames: int, data: int) -> None:
        if not (self._confirmed <= frames <= self._written and self._data_confirmed <= data <= self._data_sent):
            raise MuxError("it confirms what was never sent")
        self._forget_frames(frames)
        self._data_confirmed = data
        ends = self._ends
        while ends and ends[0][0] <= data:
            stream = ends.popleft()[1]
            if self._out.pop(stream, None) is not None:
                self._tell(Arrived(stream))

    def _forget_frames(self, frames: int) -> None:
        while self._confirmed < frames:
            self._kept.popleft()
            self._confirmed += 1

    def _resume(self, frames: int, count: int, payload: bytearray) -> None:
        """The other side has heard so many reliable frames, and has these streams in part."""
        if not self._confirmed <= frames <= self._confirmed + len(self._kept) or len(payload) != count * 16:
            raise MuxError("it has heard what was never said")
        positions = dict(_POSITION.iter_unpack(payload))
        self._forget_frames(frames)
        self._written = frames
        self._turns.clear()
        for stream, out in list(self._out.items()):
            if out.seq > frames:
                out.at = 0
            elif stream not in positions:
                if out.top < len(out.view):
                    raise MuxError(f"it has all of stream {stream}, of which it was not sent all")
                del self._out[stream]
                self._tell(Arrived(stream))
                continue
            else:
                out.at = positions[stream]
                if out.at > out.top or out.at >= len(out.view):
                    raise MuxError(f"it has {out.at} bytes of stream {stream}, and was sent {out.top}")
            self._turns.add(stream)
        self._is_resumed = True
