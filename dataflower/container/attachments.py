"""Which arenas of others a container has, and who told it of them."""

from __future__ import annotations

import os
import threading

from dataflower.channel.views import Views
from dataflower.container.relay import Relay
from dataflower.wire import AttachArena

INBOX, CONTROL = 1, 2
"""Sockets over which arenas are announced."""


class Attachments:
    """Attaches and detaches. Thread-safe."""

    def __init__(self, views: Views, relay: Relay) -> None:
        self._views = views
        self._relay = relay
        self._lock = threading.Lock()
        self._sockets: dict[int, int] = {}
        """Over which sockets each was announced (the host detaches it over each of these)."""

    def knows(self, arena: int) -> bool:
        """Whether it is attached."""
        return arena in self._sockets

    def attach(self, message: AttachArena, fds: list[int], socket: int) -> None:
        """An arena is announced, perhaps again: other containers do that too. Takes over the descriptor."""
        (fd,) = fds
        with self._lock:
            sockets = self._sockets.get(message.arena, 0)
            if sockets:
                os.close(fd)
            else:
                self._views.attach(message.arena, message.nbytes, fd)
                self._relay.know(message.arena, message.nbytes)
            self._sockets[message.arena] = sockets | socket

    def detach(self, arena: int, socket: int) -> None:
        """It goes away, once it has gone over each socket that it came over."""
        with self._lock:
            sockets = self._sockets.pop(arena, 0)
            if sockets & ~socket:
                self._sockets[arena] = sockets & ~socket
            elif sockets:
                self._relay.forget(arena)
                self._views.detach(arena)
