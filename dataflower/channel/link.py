"""One end of a SEQPACKET socket pair: whole messages in order, descriptors riding along.

A message travels as it is, in one system call on each side. Only when it is longer than `INLINE_BYTES`,
empty, or starts with `ESCAPE` (a byte that no MessagePack message starts with) is it wrapped:

* `ESCAPE 0 payload`: an empty message (which would look like the end of the stream), or one that starts with ESCAPE;
* `ESCAPE 1 length`: the payload is in a sealed memfd, the first descriptor of the message.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

import msgspec

from dataflower.channel import seals
from dataflower.errors import Closed, Crowded, EndOfStream, PeerGone, WouldBlock

INLINE_BYTES = 1 << 16
"""Longer messages spill into a memfd."""
MAX_MESSAGE_BYTES = 1 << 30
"""Longer messages are refused on both sides; bulk data belongs into an arena."""
MAX_FDS = 64
"""Descriptors in one message."""
BUFFER_BYTES = 1 << 20
"""What each end asks the kernel to buffer; the system's limit (net.core.wmem_max) may give less."""

ESCAPE = 0xC1
_PLAIN = b"\xc1\x00"
_SPILLED = struct.Struct("<BBQ")
_SPILL_SEALS = seals.RESIZE | fcntl.F_SEAL_WRITE
_RECEIVE_BYTES = INLINE_BYTES + len(_PLAIN)
_ANCILLARY_BYTES = socket.CMSG_SPACE((MAX_FDS + 1) * 4)
# Plain integers: combining the enum's members costs a microsecond each time.
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_DONTWAIT = int(socket.MSG_DONTWAIT)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
# The kernel counts descriptors that are sent and not received for all processes of a user, and wakes nobody when
# there are fewer: so those who may send none are to try again, for ten seconds in all.
_PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02, *(0.05,) * 200)


class LinkStatistics(msgspec.Struct, frozen=True):
    """Counts since the link was made; approximate while several threads use one end."""

    sent: int
    received: int
    sent_bytes: int
    received_bytes: int
    spilled: int


class Link:
    """One end. Any thread may send and receive; the kernel hands each message to one receiver, whole and in order.

    Owns its descriptor until `close` or `detach`. A parent may `close` the end that it passed to a child: the
    connection itself is shut down only when threads of this process wait on this very end.
    """

    __slots__ = (
        "_busy",
        "_closed",
        "_received",
        "_received_bytes",
        "_reset",
        "_sent",
        "_sent_bytes",
        "_socket",
        "_spilled",
        "most_bytes",
    )

    def __init__(self, end: int | socket.socket) -> None:
        """Take over an open SEQPACKET socket, blocking or not (an integer: its descriptor)."""
        self._socket = socket.socket(fileno=end) if isinstance(end, int) else end
        if self._socket.gettimeout():
            self._socket.settimeout(None)
        self.most_bytes = MAX_MESSAGE_BYTES
        """Longer messages of the peer are refused."""
        self._closed = False
        self._reset = False
        self._busy: list[None] = []  # one entry per thread inside a system call; append and pop are atomic
        self._sent = self._received = self._sent_bytes = self._received_bytes = self._spilled = 0

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two connected ends (close-on-exec), with large kernel buffers where the system allows it."""
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        return cls(ends[0]), cls(ends[1])

    def fileno(self) -> int:
        """The descriptor, for `select` and loops; -1 once closed. Still owned by the link."""
        return self._socket.fileno()

    def detach(self) -> int:
        """Give the descriptor away; the link is closed without touching the connection. The caller owns it."""
        if self._closed:
            raise Closed("the link is closed")
        self._closed = True
        return self._socket.detach()

    def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; blocks while the kernel's buffer is full. `fds` are copied: the caller keeps its own.

        Waits, too, while too many descriptors are under way, which other processes of the user may have sent.

        Raises PeerGone, Closed, ValueError (too many descriptors or bytes), and OSError (those under way do not get
        fewer).
        """
        self._send(payload, fds, _NOSIGNAL)

    def send_nowait(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Like `send`, but raises WouldBlock where that would wait (Crowded: for others); nothing is sent then."""
        self._send(payload, fds, _NOSIGNAL | _DONTWAIT)

    def receive(self) -> tuple[bytes, list[int]]:
        """The next message; blocks. The caller owns the descriptors (close-on-exec).

        Raises EndOfStream (peer closed, everything read), PeerGone (peer reset, or broke the framing), Closed (own
        side closed, also while waiting here).
        """
        return self._receive(_CLOEXEC)

    def receive_nowait(self) -> tuple[bytes, list[int]]:
        """Like `receive`, but raises WouldBlock when no message is there."""
        return self._receive(_CLOEXEC | _DONTWAIT)

    def close(self) -> None:
        """Close this end. Idempotent, doesn't block, wakes threads that wait here (they raise Closed)."""
        if self._closed:
            return
        self._closed = True
        if not self._busy:
            self._socket.close()
            return
        # Closing a descriptor wakes nobody, and its number could be reused under a thread that is about to enter
        # the kernel with it. So wake them by a shutdown; the last one out closes (see `_leave`).
        with contextlib.suppress(OSError):  # not connected any more: then they wake anyway
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._busy:
            self._socket.close()

    def hang_up(self) -> None:
        """End the connection for both sides, whoever else holds a copy of this end, and close. Idempotent."""
        if not self._closed:
            with contextlib.suppress(OSError):  # the peer is gone
                self._socket.shutdown(socket.SHUT_RDWR)
            self.close()

    def statistics(self) -> LinkStatistics:
        """What went through so far."""
        return LinkStatistics(self._sent, self._received, self._sent_bytes, self._received_bytes, self._spilled)

    def _leave(self) -> None:
        self._busy.pop()
        if self._closed and not self._busy:
            self._socket.close()

    def _send(self, payload: bytes, fds: Sequence[int], flags: int) -> None:
        size = len(payload)
        if len(fds) > MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors in a message; {MAX_FDS} are allowed")
        if size > INLINE_BYTES:
            self._send_spilled(payload, fds, flags)
            self._spilled += 1
        elif size and payload[0] != ESCAPE:
            self._push(payload, fds, flags)
        else:
            self._push(_PLAIN + payload, fds, flags)
        self._sent += 1
        self._sent_bytes += size

    def _send_spilled(self, payload: bytes, fds: Sequence[int], flags: int) -> None:
        size = len(payload)
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {size} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        spill = seals.make("dataflower-message")
        try:
            rest = memoryview(payload)
            while rest:
                written = os.write(spill, rest)
                rest = rest[written:]
            seals.seal(spill, _SPILL_SEALS)
            self._push(_SPILLED.pack(ESCAPE, 1, size), (spill, *fds), flags)
        finally:
            os.close(spill)

    def _push(self, frame: bytes, fds: Sequence[int], flags: int) -> None:
        self._busy.append(None)
        tried = 0
        try:
            while True:
                if self._closed:
                    raise Closed("the link is closed")
                try:
                    if fds:
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                        self._socket.sendmsg((frame,), (rights,), flags)
                    else:
                        self._socket.send(frame, flags)
                    return
                except BlockingIOError:
                    if flags & _DONTWAIT:
                        raise WouldBlock("the kernel's buffer is full") from None
                    self._wait(select.POLLOUT)
                except (BrokenPipeError, ConnectionError) as error:
                    if self._closed:
                        raise Closed("the link was closed") from None
                    self._reset |= isinstance(error, ConnectionResetError)
                    raise PeerGone(f"the peer does not receive any more: {error}") from error
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS:
                        raise
                    if flags & _DONTWAIT:
                        raise Crowded("too many descriptors are under way") from None
                    if tried == len(_PAUSES_S):
                        raise
                    time.sleep(_PAUSES_S[tried])
                    tried += 1
        finally:
            self._leave()

    def _receive(self, flags: int) -> tuple[bytes, list[int]]:
        busy = self._busy
        busy.append(None)
        try:
            while True:
                if self._closed:
                    raise Closed("the link is closed")
                try:
                    payload, ancillary, cut_off, _ = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, flags)
                    break
                except BlockingIOError:
                    if flags & _DONTWAIT:
                        raise WouldBlock("no message") from None
                    self._wait(select.POLLIN)
                except ConnectionError:
                    # The peer died without reading all of ours. What it had sent is still queued: hand that out first.
                    self._reset = True
        finally:
            self._leave()
        if ancillary or not payload or cut_off & _CUT_OFF or payload[0] == ESCAPE:
            payload, fds = self._unwrap(payload, ancillary, cut_off)
        else:
            fds = []
        self._received += 1
        self._received_bytes += len(payload)
        return payload, fds

    def _wait(self, event: int) -> None:
        """Sleep until the socket is ready: its descriptor may be non-blocking, and is ours to wait on all the same."""
        poll = select.poll()
        poll.register(self._socket.fileno(), event)
        poll.poll()

    def _unwrap(self, payload: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> tuple[bytes, list[int]]:
        fds = _descriptors(ancillary)
        try:
            if flags & _CUT_OFF:
                raise PeerGone("a message was cut off: too long, or too many descriptors (for it or for this process)")
            if not payload:
                if fds:
                    raise PeerGone("the peer sent descriptors without a message")
                if self._closed:
                    raise Closed("the link was closed")
                if self._reset:
                    raise PeerGone("the peer died")
                raise EndOfStream("the peer closed the link")
            if payload[0] != ESCAPE:
                return payload, fds
            if payload[:2] == _PLAIN:
                return payload[2:], fds
            if not fds:
                raise PeerGone("the peer sent a broken frame")
            payload = _read_spilled(payload, fds[0], self.most_bytes)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        os.close(fds[0])
        return payload, fds[1:]


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """All descriptors that came along. The kernel may cut the last entry short, never a descriptor in two."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            entries = array.array("i")
            entries.frombytes(data[: len(data) - len(data) % entries.itemsize])
            fds.extend(entries)
    return fds


def _read_spilled(frame: bytes, fd: int, most_bytes: int) -> bytes:
    """The payload of an `ESCAPE 1` frame. Trusts neither the frame nor the descriptor. Raises PeerGone."""
    if len(frame) != _SPILLED.size:
        raise PeerGone("the peer sent a broken frame")
    _, kind, size = _SPILLED.unpack(frame)
    if kind != 1 or size > most_bytes:
        raise PeerGone("the peer sent a broken frame")
    try:
        seals.check(fd, size, _SPILL_SEALS)
    except ValueError as error:
        raise PeerGone(f"the peer sent a broken frame: {error}") from error
    payload = os.pread(fd, size, 0)
    if len(payload) != size:
        raise PeerGone("the peer sent a broken frame")
    return payload
