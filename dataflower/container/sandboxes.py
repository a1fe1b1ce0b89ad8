"""The sandboxes of one zygote: which kind this machine allows, and the room for the next container."""

from __future__ import annotations

import os
from typing import Self

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.container import kernel, seccomp
from dataflower.container.isolation import Isolation, examine, judge
from dataflower.container.keeper import PLAIN, WITH_GPU, Keeper, Room
from dataflower.container.view import View
from dataflower.wire import Walls


class SandboxUnavailable(OSError):
    """A container that must be isolated can't be."""


class Sandboxes:
    """What keeps the containers of a zygote apart. `view`: the files that they see."""

    def __init__(self, isolation: Isolation, view: View | None = None, keeper: Keeper | None = None) -> None:
        self.isolation = isolation
        self.view = view
        self._keeper = keeper

    @classmethod
    def found(cls, view: View, link: Link, lifeline: int | None, at_most: Walls = Walls.ROOM) -> Self:
        """Find out what is possible and get ready for it. The process must be small and have one thread.

        Where there are rooms the process is in a user namespace of its own afterwards, which gives it the rights that
        it needs over them whoever it was; the host is told of the keeper of rooms over `link`. `at_most`: nothing
        better than that.
        """
        isolation = judge(examine(view), at_most)
        if isolation.walls is not Walls.NONE:
            for network in (False, True):  # for all children to come
                seccomp.program(network=network, among_others=isolation.walls is Walls.LANDLOCK)
        if isolation.walls is not Walls.ROOM:
            return cls(isolation, view)
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.map_self(uid, gid, uid, gid)
        keeper = Keeper(view, lifeline, strangers=(link.fileno(),))
        link.send(wire.encode(wire.Kept(keeper.pid)))
        keeper.order(PLAIN)
        return cls(isolation, view, keeper)

    def room_for(self, *, isolated: bool, demanded: bool = False, gpu: bool = False) -> Room | None:
        """A room, if the container is to have one. Raises OSError (SandboxUnavailable, RoomUnavailable)."""
        walls = self.isolation.walls
        if demanded and walls is Walls.NONE:
            raise SandboxUnavailable(f"it demands a sandbox, and there is none: {self.isolation.why_not}")
        if self._keeper is None:
            return None
        if not isolated:  # there is no way back from `Room.aim`
            raise SandboxUnavailable("this fork server makes containers in rooms only")
        return self._keeper.take(WITH_GPU if gpu else PLAIN)

    def restock(self) -> None:
        """A container was started: have a room for the next one."""
        if self._keeper is not None and not self._keeper.has_spare(PLAIN):
            self._keeper.order(PLAIN)

    def close(self) -> None:
        """In a child: let go of what is the zygote's."""
        if self._keeper is not None:
            self._keeper.close()
