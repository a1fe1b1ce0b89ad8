"""A `Mux` on a socket of an event loop: bytes are received into their place and sent from where they lie."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from asyncio import AbstractEventLoop
from collections.abc import Callable
from itertools import islice

import msgspec

from dataflower.channel.mux import Mux, MuxError
from dataflower.clock import SystemClock

_log = logging.getLogger(__name__)

_now = SystemClock().monotonic
_BURST = 8
"""System calls before others get their turn."""
_PIECES = 64
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_NOT_SENT_BYTES = (16 << 10, 256 << 10)
"""What the kernel may hold back unsent, at least and at most: messages wait behind it, and it must not run dry before
this process has its turn. Two chunks, since the kernel asks for more when half of it is left.
"""


def tune(sock: socket.socket, timeout_s: float) -> None:
    """Settings of a TCP connection: no delay, and a peer that is silently gone is noticed within about `timeout_s`.

    The kernel watches, so an idle connection wakes nobody here.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(timeout_s / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(timeout_s / 6)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1000, int(timeout_s * 1000)))


class Connection:
    """Carries a mux as long as the socket lives. `close` it; on its own it ends by telling `on_lost(reason, fatal)`,
    once. `fatal`: what came made no sense, so that a new connection would be of no use to the session.
    """

    def __init__(
        self, loop: AbstractEventLoop, sock: socket.socket, mux: Mux, on_lost: Callable[[str, bool], None]
    ) -> None:
        """Take over a connected, non-blocking socket (TLS if it is an `ssl.SSLSocket`), and begin."""
        self._loop = loop
        self._socket = sock
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._mux = mux
        self._on_lost = on_lost
        self._is_writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Handle | None = None
        self._closed = False
        self._chunk = 0
        """Of the mux, when the kernel was last told how much to hold back."""
        mux.connected()
        loop.add_reader(sock.fileno(), self._on_readable)
        self.flush()
        if self._is_tls:
            loop.call_soon(self._on_readable)  # what came with the last of the handshake wakes nobody

    def close(self) -> None:
        """Close the socket. Idempotent; `on_lost` is not told, not even of what has happened already."""
        if self._telling is not None:
            self._telling.cancel()
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._mux.lost()

    def _lose(self, reason: str, *, fatal: bool = False) -> None:
        if not self._closed:
            self.close()
            self._telling = self._loop.call_soon(self._on_lost, reason, fatal)

    def flush(self) -> None:
        """Send what the mux has to send, as far as the kernel takes it now; the rest follows by itself."""
        if self._closed or self._is_writing:
            return
        self._write()

    def _write(self) -> None:
        if self._closed:
            return
        try:
            for _ in range(_BURST):
                pieces = self._mux.outgoing(_now())
                self._hold_back()
                if not pieces:
                    self._watch(False)
                    self._await_due()
                    return
                if self._is_tls:
                    count = self._socket.send(pieces[0])
                else:
                    count = self._socket.sendmsg(list(islice(pieces, _PIECES)), (), _NOSIGNAL)
                self._mux.wrote(count)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._lose(str(error))
            return
        self._watch(True)

    def _hold_back(self) -> None:
        """Tell the kernel how much to take that it can't send yet: by how fast the line is."""
        chunk = self._mux.chunk
        if not 3 * self._chunk < 4 * chunk < 5 * self._chunk:
            self._chunk = chunk
            least, most = _NOT_SENT_BYTES
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, min(max(2 * chunk, least), most))

    def _await_due(self) -> None:
        """Go on when a stream may that has to keep to its limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._mux.due < math.inf:
            self._timer = self._loop.call_later(max(0.0, self._mux.due - _now()), self._write)

    def _watch(self, wanted: bool) -> None:
        if wanted and not self._is_writing:
            self._loop.add_writer(self._socket.fileno(), self._write)
        elif not wanted and self._is_writing:
            self._loop.remove_writer(self._socket.fileno())
        self._is_writing = wanted

    def _on_readable(self) -> None:
        if self._closed:
            return
        try:
            for turn in range(_BURST):
                buffers = self._mux.incoming()
                count = self._socket.recv_into(buffers[0]) if self._is_tls else self._socket.recvmsg_into(buffers)[0]
                if not count:
                    self._lose("the other host closed the connection")
                    return
                self._mux.received(count)
                if self._socket.fileno() < 0:  # closed by what came
                    return
                if turn == _BURST - 1 and self._is_tls:
                    self._loop.call_soon(self._on_readable)  # what is decrypted already wakes nobody
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._lose(str(error))
            return
        except (MuxError, msgspec.MsgspecError) as error:
            _log.error("a connection is closed, the other host broke the protocol: %s", error)
            self._lose(f"the other host broke the protocol: {error}", fatal=True)
            return
        except Exception:  # a fault of ours must not take the host along
            _log.exception("a connection is closed: what came over it could not be handled")
            self._lose("this host failed to handle what came over the connection", fatal=True)
            return
        self.flush()
