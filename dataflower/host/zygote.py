"""One fork server as the host sees it: a process, a socket to order forks, and the containers that came of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dataflower
from dataflower import wire
from dataflower.channel.link import Link
from dataflower.errors import Closed, EndOfStream, PeerGone, WouldBlock
from dataflower.host.environment import visible
from dataflower.host.groups import Reservation
from dataflower.host.links import Outbox
from dataflower.host.processes import family_name, kill_process

_log = logging.getLogger(__name__)

MODULE = "dataflower.container.zygote"
ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Set to 1 for the zygote: a library that has once computed on two threads hangs in every process forked from it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a fork server is for: modules to import, and whether its containers are isolated."""

    preload: tuple[str, ...]
    isolated: bool = False

    def __str__(self) -> str:
        return ",".join(self.preload) or "plain"

    def serves(self, other: Kind) -> bool:
        """Whether containers of the other kind can come from this one."""
        return self.isolated == other.isolated and set(other.preload).issubset(self.preload)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What isolated containers may see: absolute paths, and names of environment variables.

    `spill`: where each has a folder of its own for what its memory has no room for; empty: there is none.
    """

    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    spill: str = ""


class Zygote:
    """A running fork server. It is a session of its own, so that a terminal's Ctrl-C doesn't reach the containers."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        kind: Kind,
        *,
        marker: str,
        lifeline: int,
        sandbox: Sandbox,
        log: int | None,
        on_message: Callable[[Zygote, wire.FromZygote], None],
        on_exit: Callable[[Zygote, int], None],
    ) -> None:
        """Start it. `marker`: `NAME=value` for the environment, by which its descendants are known.

        `lifeline`: descriptor of a pipe, copied, at whose end its containers die. `sandbox`: what isolated ones see.
        `log`: descriptor for what it prints, copied; None: the host's own output.
        Call `close`.
        """
        self._loop = loop
        self._on_message = on_message
        self._on_exit = on_exit
        self.kind = kind
        self.keeper = 0
        """Process id of its helper that outlives it, if it has one."""
        self.is_ready = False
        """Whether its libraries are imported."""
        self.walls: wire.Walls | None = None
        """What keeps its containers apart, once it has said so."""
        self.pending: set[int] = set()
        """Containers that were ordered and of which nothing has been heard."""
        self.children: set[int] = set()
        """Containers that run."""
        self.retired = False
        """Whether it was ended because nobody needed it."""
        self.spare_pid = 0
        """Process id of the one that waits there to become a container, 0 while there is none."""
        self.spare: Reservation | None = None
        """Its groups, from its order on."""
        ours, theirs = Link.pair()
        self._outbox = Outbox(loop, ours)
        command = [sys.executable, "-P", "-m", MODULE, "--name", family_name(marker)]
        try:
            self._process = subprocess.Popen(
                [*command, *_arguments(theirs.fileno(), lifeline, kind, sandbox)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
                env=_environment(marker, kind, sandbox),
            )
        except BaseException:
            self._outbox.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(ours.fileno(), self._receive)
        loop.add_reader(self._pidfd, self._reap)

    def fork(self, order: wire.Fork, descriptors: Sequence[int]) -> None:
        """Order a container. The descriptors are copied."""
        self.pending.add(order.container)
        self._outbox.send(wire.encode(order), descriptors)

    @property
    def needs_lifelines(self) -> bool:
        """Whether each of its containers needs one of its own: those in rooms end with their keeper."""
        return self.walls is not wire.Walls.ROOM

    def prepare(self, reserved: Reservation) -> None:
        """Have a process ready for the next container, in these groups."""
        self.spare = reserved
        self._outbox.send(wire.encode(wire.Spare(self.kind.isolated, reserved.files)))

    def _receive(self) -> None:
        link = self._outbox.link
        while True:
            try:
                payload, descriptors = link.receive_nowait()
            except WouldBlock:
                return
            except (EndOfStream, PeerGone, Closed):
                # Its end is closed: what it still says can't be heard, so it is of no use, alive or not.
                self._loop.remove_reader(link.fileno())
                kill_process(self._pidfd)
                return
            for descriptor in descriptors:
                os.close(descriptor)
            self._on_message(self, wire.decode_from_zygote(payload))

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._outbox.link.fileno() >= 0:
            self._receive()
        status = self._process.wait()
        self._close_descriptors()
        self._on_exit(self, status)

    def close(self) -> None:
        """Order it to leave, by end of file; `on_exit` follows. Idempotent."""
        if self._outbox.link.fileno() >= 0:
            self._loop.remove_reader(self._outbox.link.fileno())
            self._outbox.close()

    def kill(self) -> None:
        """SIGKILL; `on_exit` follows."""
        if self._pidfd >= 0:
            kill_process(self._pidfd)

    def _close_descriptors(self) -> None:
        self.close()
        os.close(self._pidfd)
        self._pidfd = -1


def _arguments(link: int, lifeline: int, kind: Kind, sandbox: Sandbox) -> list[str]:
    given = ["--fd", str(link), "--lifeline", str(lifeline), "--preload", ",".join(kind.preload)]
    if kind.isolated:
        given.append("--isolate")
        given += [f"--readable={path}" for path in sandbox.readable]
        given += [f"--writable={path}" for path in sandbox.writable]
        given += [f"--hidden={path}" for path in sandbox.hidden]
        given.append(f"--spill={sandbox.spill}")
    return given


def _environment(marker: str, kind: Kind, sandbox: Sandbox) -> dict[str, str]:
    known = visible(os.environ, sandbox.environment) if kind.isolated else os.environ
    environment = {**known, **dict.fromkeys(ONE_THREAD, "1")}
    name, _, value = marker.partition("=")
    environment[name] = value
    environment[wire.STORE_VARIABLE] = wire.ASK_HOST
    # The very package that this host runs, wherever it was imported from.
    root = str(Path(dataflower.__file__).resolve().parent.parent)
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment
