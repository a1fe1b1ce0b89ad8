"""Handing outputs straight to the container of the next stage, where the host has said that this may be done."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.channel.views import Views
from dataflower.container.stream import refs_of
from dataflower.errors import Closed, PeerGone, WouldBlock
from dataflower.wire import (
    AttachArena,
    Next,
    RunTask,
    Single,
    Value,
)

_encode = wire.encode


class _Way:
    """A way to another container's inbox, and the arenas that were announced over it."""

    __slots__ = ("known", "link")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.known: set[int] = set()


class Relay:
    """The ways to other containers. Thread-safe."""

    def __init__(self, container: int, views: Views) -> None:
        """`views` keeps the descriptors of other containers' arenas."""
        self._container = container
        self._views = views
        self._lock = threading.Lock()
        self._ways: dict[int, _Way] = {}
        self._sizes: dict[int, int] = {}
        self._own: dict[int, int] = {}

    def open(self, container: int, fd: int) -> None:
        """Take over a way to `container`."""
        self.close(container)
        with self._lock:
            self._ways[container] = _Way(Link(fd))

    def close(self, container: int) -> None:
        """The other side is gone."""
        with self._lock:
            way = self._ways.pop(container, None)
        if way is not None:
            way.link.close()

    def know(self, arena: int, nbytes: int, fd: int = -1) -> None:
        """An arena may be named from now on; `fd` (still the caller's) if it is our own."""
        with self._lock:
            self._sizes[arena] = nbytes
            if fd >= 0:
                self._own[arena] = fd

    def forget(self, arena: int) -> None:
        """An arena is gone."""
        with self._lock:
            self._sizes.pop(arena, None)
            for way in self._ways.values():
                way.known.discard(arena)

    def forward(self, run: RunTask, then: Next, outputs: Mapping[str, Value]) -> bool:
        """Make the outputs of `run` the inputs of the next task; False if it was not told (then the host does it)."""
        parcel = self.pack(run, then, outputs)
        if parcel is None:
            return False
        link, message = parcel
        try:
            link.send_nowait(message)
        except (ValueError, WouldBlock, PeerGone, Closed):
            return False
        return True

    def pack(self, run: RunTask, then: Next, outputs: Mapping[str, Value]) -> tuple[Link, bytes] | None:
        """What `forward` sends, and by which way; None if the host has to do it."""
        way = self._ways.get(then.container)
        if way is None:
            return None
        try:
            inputs = []
            for name, port in then.ports:
                value = outputs[port]
                if value.tensors or value.spilled is not None:
                    self._introduce(way, then.container, value)
                inputs.append(Single(name, value))
            message = RunTask(
                then.task,
                tuple(inputs),
                run.deadline_s,
                then.credit_items,
                then.credit_bytes,
                run.invocation,
                run.tag,
                1,
                then.then,
            )
        except (KeyError, ValueError, WouldBlock, PeerGone, Closed):  # an absent port, or nobody who takes it now
            return None
        return way.link, _encode(message)

    def _introduce(self, way: _Way, receiver: int, value: Value) -> None:
        """Announce the arenas that the receiver may not know, as the host does. Raises as `Link.send_nowait`."""
        for ref in refs_of(value):
            arena = ref.arena
            if arena >> 16 == receiver or arena in way.known:
                continue
            with self._lock:
                fd = self._own.get(arena, -1)
                nbytes = self._sizes[arena]
            way.link.send_nowait(
                _encode(AttachArena(arena, nbytes)), (fd if fd >= 0 else self._views.descriptor(arena),)
            )
            way.known.add(arena)
