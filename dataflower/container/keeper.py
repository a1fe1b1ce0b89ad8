"""The keeper of rooms: a small process beside the zygote that makes namespaces ahead of time.

A room takes milliseconds to make, most of them in the kernel; entering one takes none. So the keeper, forked before any
heavy library is imported, has the next room ready when a container is ordered. The first process of a room (its
*init*) stays in it: it collects orphans, and when the container ends it ends, and the kernel with it everything that
the container has left behind. When the zygote ends the keeper stays until the last room is empty; when the host ends
the kernel kills the keeper, with it the inits, and with them all that lives in rooms.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from dataflower.channel.link import Link
from dataflower.container import kernel, room, sandbox
from dataflower.container.view import View
from dataflower.errors import Closed, EndOfStream, PeerGone

PLAIN, WITH_GPU = b"plain", b"gpu"
_FAILED = b"!"
_KINDS = tuple(room.NAMESPACES)


class RoomUnavailable(OSError):
    """A room could not be made."""


@dataclass(frozen=True, slots=True)
class Room:
    """A room that waits. `pid`: of its init. `namespaces`: descriptors in the order of `room.NAMESPACES`.

    `spill`: the folder in which it spills, as it shows outside; empty if it can't.
    """

    pid: int
    namespaces: tuple[int, ...]
    init: Link
    spill: str = ""

    def aim(self) -> None:
        """From here on children of the calling process belong to the room."""
        kernel.setns(self.namespaces[_KINDS.index("pid")], kernel.CLONE_NEWPID)

    def enter(self, *, network: bool) -> None:
        """In such a child: be in the room altogether. `network`: stay in the network of the host."""
        for kind, descriptor in zip(_KINDS, self.namespaces, strict=True):
            if kind != "pid" and not (kind == "net" and network):
                kernel.setns(descriptor, room.NAMESPACES[kind])

    def move_in(self, pidfd: int) -> None:
        """Tell the init whose room it is: it ends with that process."""
        with suppress(PeerGone):  # it was killed: then the container has been, too
            self.init.send(b"container", (pidfd,))

    def close(self) -> None:
        """Let go of the descriptors. An init that was not told of a container ends."""
        for descriptor in self.namespaces:
            os.close(descriptor)
        self.init.close()


class Keeper:
    """The zygote's side. Start it while the process is small and has one thread."""

    def __init__(self, view: View, lifeline: int | None, strangers: Iterable[int] = ()) -> None:
        """Fork the keeper; it ends when this is closed, also by death. `strangers`: descriptors that are not for it.

        Raises OSError.
        """
        ours, theirs = Link.pair()
        self.pid = os.fork()
        if not self.pid:
            ours.close()
            for descriptor in strangers:
                os.close(descriptor)
            _keep(theirs, view, lifeline)
        theirs.close()
        self._link = ours
        self._ready: dict[bytes, list[Room]] = {PLAIN: [], WITH_GPU: []}
        self._coming = dict.fromkeys(self._ready, 0)

    def order(self, kind: bytes) -> None:
        """Have a room made ahead of time."""
        self._link.send(kind)
        self._coming[kind] += 1

    def take(self, kind: bytes) -> Room:
        """A room; waits where none is ready. Raises RoomUnavailable, and PeerGone when the keeper is gone."""
        while not self._ready[kind]:
            if not self._coming[kind]:
                self.order(kind)
            self._receive()
        return self._ready[kind].pop()

    def has_spare(self, kind: bytes) -> bool:
        """Whether one is ready or being made."""
        return bool(self._ready[kind] or self._coming[kind])

    def _receive(self) -> None:
        try:
            payload, descriptors = self._link.receive()
        except EndOfStream as error:
            raise PeerGone("the keeper of rooms is gone") from error
        kind, _, rest = payload.partition(b" ")
        if kind == _FAILED:
            kind, _, message = rest.partition(b" ")
            self._coming[kind] -= 1
            raise RoomUnavailable(message.decode(errors="replace"))
        self._coming[kind] -= 1
        *namespaces, init = descriptors
        pid, _, spill = rest.partition(b" ")
        self._ready[kind].append(Room(int(pid), tuple(namespaces), Link(init), os.fsdecode(spill)))

    def close(self) -> None:
        """Let go of it, and of the rooms that wait."""
        for rooms in self._ready.values():
            for waiting in rooms:
                waiting.close()
            rooms.clear()
        self._link.close()


def _keep(link: Link, view: View, lifeline: int | None) -> NoReturn:
    """Be the keeper."""
    status = 0
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave nothing behind
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if lifeline is not None:
            sandbox.die_with_host(lifeline)
        with suppress(EndOfStream, PeerGone, Closed):
            while True:
                kind, _ = link.receive()
                if not os.fork():
                    _attempt(link, kind, lambda kind=kind: _open(link, kind, view))  # type: ignore[misc]
        link.close()
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)  # as nobody collects them: until the last has ended
    except BaseException:  # a bug: the zygote must see a death
        status = 70
    os._exit(status)


def _attempt(link: Link, kind: bytes, step: Callable[[], None]) -> NoReturn:
    """In a child: run `step`, tell the zygote if it fails, and end."""
    try:
        step()
    except BaseException as error:  # whatever it is, the zygote waits for an answer
        with suppress(PeerGone, Closed):
            link.send(b" ".join((_FAILED, kind, str(error).encode())))
    os._exit(0)


def _open(link: Link, kind: bytes, view: View) -> None:
    room.unshare(os.geteuid(), os.getegid())
    me = os.pidfd_open(os.getpid())
    if not os.fork():
        _attempt(link, kind, lambda: _live(link, kind, view, me))


def _live(link: Link, kind: bytes, view: View, parent: int) -> None:
    """Be the first process of a room, from its making to its end."""
    select.select([parent], [], [])  # it ended: now the keeper is the parent, with which this process is to die
    os.close(parent)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    pid = int(os.readlink("/proc/self"))  # as the zygote knows it: /proc is still the host's
    socket.sethostname(room.HOST_NAME)
    kernel.loopback_up()
    spill = room.make_spill(view)
    room.build(view, gpu=kind == WITH_GPU, spill=spill)
    namespaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _KINDS]
    ours, theirs = Link.pair()
    link.send(b" ".join((kind, str(pid).encode(), os.fsencode(spill))), (*namespaces, theirs.fileno()))
    for end in (theirs, link):
        end.close()
    for descriptor in namespaces:
        os.close(descriptor)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # else the container, of the same user, could write into this one
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    with suppress(EndOfStream, PeerGone):  # the zygote has gone, or needs no room
        _, (container,) = ours.receive()
        ours.close()
        select.select([container], [], [])
