"""A link whose two ends are joined by the way between hosts: mirrors, streams and messages over a TCP connection."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from dataflower.channel.connection import Connection
from dataflower.channel.ferry import Ferry
from dataflower.channel.link import Link
from dataflower.channel.views import Views
from dataflower.errors import Closed, EndOfStream, PeerGone, WouldBlock
from dataflower.testing.channel_suite import Attach, Passed, PassOn, Refused
from dataflower.wire import TensorRef, Value

_WORDS = msgspec.msgpack.Decoder(Attach | PassOn | Passed | Refused)


class _End:
    """What joins a link of this machine to the connection: on a loop of its own, as in a host."""

    def __init__(self, link: Link, sock: socket.socket) -> None:
        self._link = link
        self._socket = sock
        self._views = Views(keep_descriptors=True)
        self._sizes: dict[int, int] = {}
        self._asked: deque[tuple[TensorRef, ...]] = deque()
        """By request without an answer."""
        self._over: asyncio.Event

    async def run(self) -> None:
        self._over = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._ferry = Ferry(
            lambda ref: memoryview(self._views.view(ref)), self._deliver, self._mirror, self._views.detach
        )
        connection = Connection(loop, self._socket, self._ferry.mux, lambda reason, fatal: self._over.set())
        self._connection = connection
        loop.add_reader(self._link.fileno(), self._read)
        await self._over.wait()
        loop.remove_reader(self._link.fileno())
        connection.close()
        self._ferry.close()
        self._views.close()
        self._link.close()

    def _read(self) -> None:
        try:
            while True:
                self._take(*self._link.receive_nowait())
                self._connection.flush()
        except WouldBlock:
            pass
        except (EndOfStream, PeerGone, Closed):
            self._over.set()

    def _take(self, payload: bytes, fds: list[int]) -> None:
        word = None
        with suppress(msgspec.MsgspecError):
            word = _WORDS.decode(payload)
        refs: tuple[TensorRef, ...] = ()
        if isinstance(word, Attach) and len(fds) == 1:
            self._views.attach(word.arena, word.nbytes, fds[0])
            self._sizes[word.arena] = word.nbytes
            self._ferry.announce(word.arena, word.nbytes)
        elif fds:
            for fd in fds:
                os.close(fd)
            self._over.set()
            return
        elif isinstance(word, (PassOn, Passed)):
            refs = self._known(word.value)
        if isinstance(word, PassOn):
            self._asked.append(refs)
        self._ferry.send(1, payload, refs, self._sizes.__getitem__)

    def _known(self, value: Value) -> tuple[TensorRef, ...]:
        """References that make sense; the far side is to refuse the others."""
        known = []
        for ref in (*value.tensors, *(() if value.spilled is None else (value.spilled,))):
            size = self._sizes.get(ref.arena, 0)
            if 0 <= ref.slot <= ref.offset <= ref.offset + ref.nbytes <= size:
                known.append(ref)
        return tuple(known)

    def _deliver(self, key: int, body: bytes) -> None:
        word = None
        with suppress(msgspec.MsgspecError):
            word = _WORDS.decode(body)
        if isinstance(word, Attach):
            with suppress(PeerGone):
                descriptor = self._ferry.descriptor(word.arena)
                self._link.send(body, [descriptor])
                os.close(descriptor)
            return
        if isinstance(word, (Passed, Refused)):  # the request is over: its memory may be written again
            self._ferry.released((ref.arena, ref.slot) for ref in self._asked.popleft())
        with suppress(PeerGone):
            self._link.send(body)

    def _mirror(self, arena: int, nbytes: int) -> None:
        self._views.attach(arena, nbytes, self._ferry.descriptor(arena))


@contextmanager
def bridged() -> Iterator[tuple[Link, Link]]:
    """The two ends of a link that goes over the network; on leaving, the bridge has come down (close an end before)."""
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    listener.close()
    near, near_inside = Link.pair()
    far, far_inside = Link.pair()
    threads = []
    for link, sock in ((near_inside, one), (far_inside, other)):
        sock.setblocking(False)
        end = _End(link, sock)
        threads.append(threading.Thread(target=lambda end=end: asyncio.run(end.run())))
        threads[-1].start()
    yield near, far
    for thread in threads:
        thread.join()
