"""One end of a SEQPACKET socket pair: whole messages in order, descriptors riding along."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import msgspec


class LinkStatistics(msgspec.Struct, frozen=True):
    """Counts since the link was made; approximate while several threads use one end."""

    sent: int
    received: int
    sent_bytes: int
    received_bytes: int
    spilled: int


class Link:
    """One end. Any thread may send and receive; the kernel hands each message to one receiver, whole and in order.

    Owns its descriptor until `close` or `detach`. Never shuts the connection down while only copies of it
    in other processes are in use, so a parent may `close` the end that it passed to a child.
    """

    def __init__(self, end: int | socket.socket) -> None:
        """Take over an open SEQPACKET socket, blocking or not."""
        raise NotImplementedError

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two connected ends (close-on-exec), with large kernel buffers where the system allows it."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The descriptor, for `select` and loops; -1 once closed. Still owned by the link."""
        raise NotImplementedError

    def detach(self) -> int:
        """Give the descriptor away; the link is closed without touching the connection. The caller owns it."""
        raise NotImplementedError

    def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; blocks while the kernel's buffer is full. `fds` are copied: the caller keeps its own.

        Raises PeerGone, Closed, and ValueError (too many descriptors or bytes).
        """
        raise NotImplementedError

    def send_nowait(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Like `send`, but raises WouldBlock where that would wait; nothing is sent then."""
        raise NotImplementedError

    def receive(self) -> tuple[bytes, list[int]]:
        """The next message; blocks. The caller owns the descriptors (close-on-exec).

        Raises EndOfStream (peer closed, everything read), PeerGone (peer reset, or broke the framing), Closed (own
        side closed, also while waiting here).
        """
        raise NotImplementedError

    def receive_nowait(self) -> tuple[bytes, list[int]]:
        """Like `receive`, but raises WouldBlock when no message is there."""
        raise NotImplementedError

    def close(self) -> None:
        """Close this end. Idempotent, doesn't block, wakes threads that wait in `receive` here (Closed)."""
        raise NotImplementedError

    def statistics(self) -> LinkStatistics:
        """What went through so far."""
        raise NotImplementedError
