"""When the host looks at the boards of containers, where reports stand that were not sent (`channel.board`).

A report may be posted only by a task whose outputs went to one other container, and nobody else waits for it. It is
found when that container speaks of what it was given, before anything else happens here, and `LOOK_S` after the task
was given out at the latest: who takes longer sends. So nothing is looked at while all containers are at rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from dataflower.host.links import Peer
from dataflower.host.promises import Promises

LOOK_S = 0.005
"""A little more than what a task that posts may take (`container.data_unit`)."""


class Boards:
    """Of all containers of one engine."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peers: Mapping[int, Peer],
        promises: Promises,
        hear: Callable[[Peer, bytes], None],
    ) -> None:
        """`hear` is given each report that is found. It may call `find` for the giver of that giver."""
        self._loop = loop
        self._peers = peers
        self._promises = promises
        self._hear = hear
        self._timer: asyncio.TimerHandle | None = None
        self._seen = 0
        """Moves of the promises when the timer was set."""
        self.found = 0

    def find(self, task: int) -> None:
        """A container speaks of a task that it was not known to have: take the report of whoever gave it that."""
        self._read(self._promises.giver(task), given=True)

    def look(self) -> None:
        """Take all reports of what was handed on."""
        for container in self._promises.givers():
            self._read(container, given=False)

    def last_look(self, container: int) -> None:
        """It is dead: what it posted counts if it was handed on."""
        self._read(container, given=False)

    def _read(self, container: int, *, given: bool) -> None:
        peer = self._peers.get(container)
        if peer is None or peer.board is None or (report := peer.board.take(given=given)) is None:
            return
        self.found += 1
        self._hear(peer, report)

    def expect(self) -> None:
        """A report may be posted from now on: see to it that it is found though nobody speaks of it."""
        if self._timer is None:
            self._seen = self._promises.moves
            self._timer = self._loop.call_later(LOOK_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._promises:
            self.look()
            # Tasks that were given out, or on, before the last move and are running still will send.
            if self._promises and self._promises.moves != self._seen:
                self.expect()

    def close(self) -> None:
        """Look no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
