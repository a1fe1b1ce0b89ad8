"""The fork server: imports heavy libraries once, so that a container starts in milliseconds instead of seconds.

    python -m dataflower.container.zygote --fd N --preload numpy,torch

It has one thread and runs no operation of any library: a child forked from a process that has run one on several
threads hangs in its first own (torch's OpenMP pool does not survive a fork).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.clock import SystemClock
from dataflower.container import sandbox
from dataflower.container.isolation import Isolation
from dataflower.container.keeper import Room
from dataflower.container.sandboxes import Sandboxes
from dataflower.container.threads import name_thread_count
from dataflower.container.view import view
from dataflower.errors import Closed, EndOfStream, PeerGone
from dataflower.wire import Walls

if TYPE_CHECKING:
    from dataflower.container.main import Shell

FORK_FAILED_STATUS = 71
"""Status in `Exited` for a container that could not be forked (there was no `Forked` then)."""

_monotonic = SystemClock().monotonic


class Zygote:
    """Serves one host over one link until the host is gone."""

    def __init__(self, link: Link, lifeline: int | None = None, sandboxes: Sandboxes | None = None) -> None:
        """`lifeline`: see `sandbox.die_with_host`. `sandboxes`: for containers that are to be isolated."""
        self._link = link
        self._lifeline = lifeline
        self._sandboxes = sandboxes or Sandboxes(Isolation(Walls.NONE, "the fork server was started without"))
        self._poll = select.epoll()
        self._poll.register(link.fileno(), select.EPOLLIN)
        self._children: dict[int, tuple[int, int, str]] = {}
        """pidfd -> (pid, container, where its room spills). Container 0: the spare."""
        self._spare: tuple[wire.Spare, int, Link] | None = None
        """A child that waits to become a container: what it is good for, its pidfd, and where it is told."""

    def serve(self) -> None:
        """Fork and reap as asked. Returns when the host closed the link; containers live on, on their own sockets."""
        server = self._link.fileno()
        try:
            while True:
                for fd, _ in self._poll.poll():
                    if fd == server:
                        self._take_order()
                    else:
                        self._reap(fd)
        except (EndOfStream, PeerGone, Closed):
            return

    def _take_order(self) -> None:
        payload, fds = self._link.receive()
        order = wire.decode_to_zygote(payload)
        if isinstance(order, wire.Spare):
            self._prepare(order)
            return
        try:
            if not self._hand_over(order, payload, fds):
                self._fork(order, fds)
        except OSError as error:  # no memory, no process, no room left: the host may try again later
            print(f"zygote: can't make a container: {error}", file=sys.stderr, flush=True)
            self._link.send(wire.encode(wire.Exited(order.container, FORK_FAILED_STATUS, str(error))))
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, order: wire.Fork, fds: list[int]) -> None:
        room = self._sandboxes.room_for(isolated=order.isolated, demanded=order.demanded, gpu=order.gpu)
        pidfd = self._child(order.container, room, lambda shell: _main().run(order, fds, shell))
        self._link.send(wire.encode(wire.Forked(order.container, self._children[pidfd][0])))
        self._sandboxes.restock()

    def _prepare(self, order: wire.Spare) -> None:
        """Have a spare, if possible and there is none: nobody waits for it, and containers start without, too."""
        if self._spare is not None:
            return
        ours, theirs = Link.pair()
        try:
            room = self._sandboxes.room_for(isolated=order.isolated)
            pidfd = self._child(0, room, lambda shell: _main().wait(order, theirs, shell), ours)
        except OSError as error:
            print(f"zygote: no spare container: {error}", file=sys.stderr, flush=True)
            ours.close()
            return
        finally:
            theirs.close()
        self._spare = (order, pidfd, ours)
        self._link.send(wire.encode(wire.Prepared(self._children[pidfd][0])))
        self._sandboxes.restock()

    def _hand_over(self, order: wire.Fork, payload: bytes, fds: list[int]) -> bool:
        """Let the spare be the container, if there is one and it is the right kind."""
        if self._spare is None or order.gpu or (order.network and order.isolated):
            return False
        spare, pidfd, link = self._spare
        if (spare.isolated, spare.groups) != (order.isolated, order.groups):
            return False
        if order.demanded and self._sandboxes.isolation.walls is Walls.NONE:
            return False
        self._spare = None
        try:
            link.send(payload, fds)
        except PeerGone:  # it has died, and will be reaped in a moment
            return False
        finally:
            link.close()
        pid, _, spill = self._children[pidfd]
        self._children[pidfd] = (pid, order.container, spill)
        self._link.send(wire.encode(wire.Forked(order.container, pid)))
        return True

    def _child(self, number: int, room: Room | None, live: Callable[[Shell], NoReturn], *strangers: Link) -> int:
        """Fork a child that lives in the room; gives its pidfd. `strangers`: links that are not for it."""
        try:
            if room is not None:
                room.aim()
            pid = os.fork()
            if not pid:
                self._leave(room, live, strangers)
            pidfd = os.pidfd_open(pid)
            if room is not None:
                room.move_in(pidfd)
        finally:
            if room is not None:
                room.close()
        self._children[pidfd] = (pid, number, "" if room is None else room.spill)
        self._poll.register(pidfd, select.EPOLLIN)
        return pidfd

    def _leave(self, room: Room | None, live: Callable[[Shell], NoReturn], strangers: tuple[Link, ...]) -> NoReturn:
        """In the child: let go of all that is the zygote's, then never come back."""
        try:
            for link in strangers:
                link.close()
            if self._spare is not None:
                self._spare[2].close()
            os.close(self._link.detach())
            self._poll.close()
            for pidfd in self._children:
                os.close(pidfd)
            self._sandboxes.close()
            sandboxes = self._sandboxes
            live(_main().Shell(self._lifeline, sandboxes.isolation.walls, sandboxes.view, room))
        finally:
            os._exit(70)

    def _reap(self, pidfd: int) -> None:
        pid, container, spill = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        with contextlib.suppress(ProcessLookupError):  # its own children, while its number is still taken
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if spill:
            with contextlib.suppress(OSError):  # there are files with names: they go when the host does
                os.rmdir(spill)
        if not container and self._spare is not None and self._spare[1] == pidfd:
            self._spare[2].close()
            self._spare = None
        self._link.send(wire.encode(wire.Exited(container, os.waitstatus_to_exitcode(status))))


def _main() -> ModuleType:
    """What children run. Imported late: the keeper of rooms is forked before, while the process is small."""
    return importlib.import_module("dataflower.container.main")


def preload(modules: Sequence[str]) -> tuple[str, ...]:
    """Import the modules; gives those that could not be. Their errors go to stderr."""
    missing = []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # foreign code: any import may fail in any way
            print(f"zygote: can't preload {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            missing.append(name)
    return tuple(missing)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as the process that the host starts. The host's starting thread must live as long as the host."""
    parser = argparse.ArgumentParser(prog="python -m dataflower.container.zygote", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited SEQPACKET socket")
    parser.add_argument("--name", default="", help="what the kernel calls it and its descendants")
    parser.add_argument("--preload", default="", help="modules to import, separated by commas")
    parser.add_argument("--lifeline", type=int, help="inherited pipe that ends when the host does")
    parser.add_argument("--isolate", action="store_true", help="make sandboxes")
    kinds = [walls.value for walls in Walls]
    parser.add_argument("--at-most", choices=kinds, default=kinds[0], help="the best kind of sandbox to make")
    for name in ("readable", "writable", "hidden"):
        parser.add_argument(f"--{name}", action="append", default=[], help=f"a path that is {name} in sandboxes")
    parser.add_argument("--spill", default="", help="where each room has a folder of its own for spilled memory")
    options = parser.parse_args(arguments)
    sandbox.die_with_parent()
    if options.name:
        Path("/proc/self/comm").write_text(options.name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, which closes the link when it is done
    name_thread_count(os.environ, 1)
    link = Link(options.fd)
    for fd in (options.fd, options.lifeline):
        if fd is not None:
            os.set_inheritable(fd, False)
    began = _monotonic()
    sandboxes = None
    if options.isolate:
        shown = {"readable": options.readable, "writable": options.writable, "hidden": options.hidden}
        seen = view(**shown, spill=options.spill)
        sandboxes = Sandboxes.found(seen, link, options.lifeline, Walls(options.at_most))
        sandbox.die_with_parent()  # again: a change of user namespace may undo it
    gc.disable()
    _main()
    missing = preload([name for name in options.preload.split(",") if name])
    gc.collect()
    gc.freeze()  # so that a collection in a child doesn't touch, and copy, the zygote's pages
    with contextlib.suppress(PeerGone):  # the host did not wait for it: `serve` will find the end of the link
        isolation = Isolation(Walls.NONE) if sandboxes is None else sandboxes.isolation
        ready = wire.ZygoteReady(
            wire.VERSION, os.getpid(), _monotonic() - began, missing, isolation.walls, isolation.why_not
        )
        link.send(wire.encode(ready))
    Zygote(link, options.lifeline, sandboxes).serve()


if __name__ == "__main__":
    main()
