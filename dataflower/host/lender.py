"""The front door of a host that runs containers for others: who may come in, and whose session it is."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import msgspec

from dataflower.channel.connection import tune
from dataflower.errors import InvalidArgument
from dataflower.host.api import PeerStatus
from dataflower.host.guests import FIRST_NUMBER, ExitListener, Owner
from dataflower.host.launcher import Launcher
from dataflower.host.meeting import Credentials, Refused, meet_owner
from dataflower.host.neighbour import Inward
from dataflower.host.peer_wire import Greeting
from dataflower.host.settings import HostConfig

_log = logging.getLogger(__name__)

MAX_OWNERS = 64
_MAX_MEETINGS = 64


class Lender:
    """Lets other hosts in, and runs containers for them. Lives on one loop."""

    launcher: Launcher
    on_exit: Callable[[int, ExitListener], None]

    def __init__(self, config: HostConfig, credentials: Credentials, files_on: int | None) -> None:
        """Listens at once, and lets in whoever comes after `begin`. `files_on`: see `Views`. Raises InvalidArgument."""
        credentials.check(listens=True)
        assert config.peer_port is not None
        self.loop = asyncio.get_running_loop()
        self.name = config.host_name
        self.files_on = files_on
        self.timeout_s = config.peer_timeout_s
        self.max_guests = config.max_containers
        spilled = 0 if files_on is None else config.container_spill_bytes
        self.arena_cap_bytes = config.container_arena_bytes + spilled
        self.credentials = credentials
        self._context = credentials.context(listens=True)
        self.visits: dict[bytes, Inward] = {}
        """Neighbours that may come, by their keys."""
        self._owners: dict[bytes, Owner] = {}
        self._meetings: set[asyncio.Task[None]] = set()
        self._last = FIRST_NUMBER
        family = socket.AF_INET6 if ":" in config.peer_address else socket.AF_INET
        try:
            self._listener = socket.create_server((config.peer_address, config.peer_port), family=family)
        except OSError as error:
            where = f"{config.peer_address}:{config.peer_port}"
            raise InvalidArgument(
                f"can't listen for other hosts on {where} (peer_address, peer_port): {error}"
            ) from error
        self._listener.setblocking(False)

    def begin(self, launcher: Launcher, on_exit: Callable[[int, ExitListener], None]) -> None:
        """Let others in. `on_exit(process, listener)`: have the listener told when a process is gone."""
        self.launcher = launcher
        self.on_exit = on_exit
        self.loop.add_reader(self._listener.fileno(), self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def guests(self) -> int:
        """How many containers it runs for others."""
        return sum(len(owner.guests) for owner in self._owners.values())

    @property
    def slots(self) -> int:
        """How many slots of its containers others have bytes of, or get them, that are still read."""
        return sum(owner.ferry.slots + owner.neighbours.slots for owner in self._owners.values())

    def next_number(self) -> int:
        """For a process."""
        self._last += 1
        return self._last

    def forget(self, owner: Owner) -> None:
        """A session is over."""
        self._owners = {ident: one for ident, one in self._owners.items() if one is not owner}

    def status(self) -> tuple[PeerStatus, ...]:
        """The hosts that it runs containers for, and those that it exchanges memory with for them."""
        owners = tuple(self._owners.values())
        return (*(owner.status() for owner in owners), *(one for o in owners for one in o.neighbours.status()))

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:  # it left again, or there is no descriptor for it
            return
        if len(self._meetings) >= _MAX_MEETINGS:
            sock.close()
            return
        sock.setblocking(False)
        meeting = self.loop.create_task(self._meet(sock, f"{address[0]}:{address[1]}"))
        self._meetings.add(meeting)
        meeting.add_done_callback(self._meetings.discard)

    async def _meet(self, sock: socket.socket, address: str) -> None:
        try:
            tune(sock, self.timeout_s)
            sock, greeting, known = await meet_owner(sock, self.credentials, self._context, self.name, self._admit)
        except (OSError, TimeoutError, Refused, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("a connection from %s was turned away: %s", address, error or "it said nothing in time")
            sock.close()
            return
        if greeting.visits:
            if known and (inward := self.visits.get(greeting.session)) is not None:
                inward.use(sock, address)
            else:
                sock.close()
            return
        owner = self._owners.get(greeting.session)
        if not known or owner is None:
            sock.close()
        else:
            _log.info("host %s (%s) is connected", owner.name, address)
            owner.use(sock, address)

    def _admit(self, greeting: Greeting) -> bool:
        if greeting.visits:
            inward = self.visits.get(greeting.session)
            return inward is not None and inward.admits(greeting)
        if greeting.session in self._owners:
            return True
        if greeting.resumes or len(self._owners) >= MAX_OWNERS:
            return False
        self._owners[greeting.session] = Owner(self, greeting)
        return True

    async def close(self) -> None:
        """Let nobody in any more and end all guests; the launcher tells when they are gone. Idempotent."""
        if self._listener.fileno() >= 0:
            self.loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for meeting in list(self._meetings):
            meeting.cancel()
        await asyncio.gather(*self._meetings, return_exceptions=True)
        for owner in list(self._owners.values()):
            owner.end("its host stops")
