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
from collections.abc import Sequence

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.clock import SystemClock
from dataflower.container import sandbox
from dataflower.container.threads import name_thread_count
from dataflower.errors import Closed, EndOfStream, PeerGone

FORK_FAILED_STATUS = 71
"""Status in `Exited` for a container that could not be forked (there was no `Forked` then)."""

_monotonic = SystemClock().monotonic


class Zygote:
    """Serves one host over one link until the host is gone."""

    def __init__(self, link: Link, lifeline: int | None = None) -> None:
        """`lifeline`: see `sandbox.die_with_host`."""
        self._link = link
        self._lifeline = lifeline
        self._poll = select.epoll()
        self._poll.register(link.fileno(), select.EPOLLIN)
        self._children: dict[int, tuple[int, int]] = {}
        """pidfd -> (pid, container)."""

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
        order = wire.decode_fork(payload)
        inbox, task, control, log = fds
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no process left: the host may try again later
            print(f"zygote: can't fork: {error}", file=sys.stderr, flush=True)
            pid = -1
        if not pid:
            self._become_container(order, (inbox, task, control), log)
        for fd in fds:
            os.close(fd)
        if pid < 0:
            self._link.send(wire.encode(wire.Exited(order.container, FORK_FAILED_STATUS)))
            return
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, order.container)
        self._poll.register(pidfd, select.EPOLLIN)
        self._link.send(wire.encode(wire.Forked(order.container, pid)))

    def _become_container(self, order: wire.Fork, sockets: tuple[int, int, int], log: int) -> None:
        """In the child: let go of all that is the zygote's, then never come back."""
        try:
            os.close(self._link.detach())
            self._poll.close()
            for pidfd in self._children:
                os.close(pidfd)
            if self._lifeline is not None:
                sandbox.die_with_host(self._lifeline)
            from dataflower.container import main as container

            container.run(order, sockets, log)
        finally:
            os._exit(70)

    def _reap(self, pidfd: int) -> None:
        pid, container = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._link.send(wire.encode(wire.Exited(container, os.waitstatus_to_exitcode(status))))


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
    parser.add_argument("--preload", default="", help="modules to import, separated by commas")
    parser.add_argument("--lifeline", type=int, help="inherited pipe that ends when the host does")
    parser.add_argument("--keep", type=int, action="append", default=[], help="inherited for the containers' own use")
    options = parser.parse_args(arguments)
    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host, which closes the link when it is done
    name_thread_count(os.environ, 1)
    link = Link(options.fd)
    for fd in (options.fd, options.lifeline, *options.keep):
        if fd is not None:
            os.set_inheritable(fd, False)
    began = _monotonic()
    gc.disable()
    importlib.import_module("dataflower.container.main")
    missing = preload([name for name in options.preload.split(",") if name])
    gc.collect()
    gc.freeze()  # so that a collection in a child doesn't touch, and copy, the zygote's pages
    with contextlib.suppress(PeerGone):  # the host did not wait for it: `serve` will find the end of the link
        link.send(wire.encode(wire.ZygoteReady(wire.VERSION, os.getpid(), _monotonic() - began, missing)))
    Zygote(link, options.lifeline).serve()


if __name__ == "__main__":
    main()
