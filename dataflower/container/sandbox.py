"""What keeps a container's process in its place: session, limits, privileges, who dies first without memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
from collections.abc import Iterable

from dataflower.container import kernel, landlock, seccomp
from dataflower.container.view import View
from dataflower.errors import PeerGone
from dataflower.wire import Fork, Spare, Walls

_F_SETSIG = 10
_OOM_SCORE = 500
"""Added to a container's badness: when memory runs out the kernel takes a container, not the host."""
_NICE = 5
"""How much a container yields the processor to the host, which must not queue behind what computes."""
_MOST_PROCESSES = 4096
"""Threads and processes of a sandboxed container."""
_MOST_FILES = 4096
"""Descriptors that a sandboxed process may have open; no more than half of the host's, too.

The kernel also counts those that are under way in sockets, for all processes of a user together, and lets nobody send
more who is over his own limit: containers reach theirs before the host does.
"""
_REMOVED = (errno.ENOENT, errno.ENODEV)
"""What comes of writing into a control group that is removed: before its file is opened, and after."""


def settle(spare: Spare, lifeline: int | None) -> int | None:
    """Session, limits and control groups of the calling process; while it still sees the host's /proc and /sys.

    Moving into a group waits for all processors to have switched tasks: milliseconds, in which nothing is computed.

    `lifeline`: see `die_with_host`, which gives what this gives.

    Raises:
        PeerGone: the groups are not there any more; the host removes them when it stops, or has given this process up.
    """
    os.setsid()
    _yield_to_host()
    own = None if lifeline is None else die_with_host(lifeline)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spare.isolated:
        _lower(resource.RLIMIT_NPROC, _MOST_PROCESSES)
        hosts = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        _lower(resource.RLIMIT_NOFILE, min(_MOST_FILES, hosts // 2) if hosts != resource.RLIM_INFINITY else _MOST_FILES)
    with contextlib.suppress(OSError):  # a hardened /proc may refuse; the container works without it
        _prefer_for_oom()
    _join(spare.groups)
    return own


def enter(walls: Walls) -> None:
    """Shut the calling process in, for good. It is in its room already, if it has one. Raises OSError."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if walls is Walls.ROOM:
        kernel.drop_capabilities()
        landlock.scope()
        kernel.install_filter(seccomp.program(network=True))  # it has a network of its own, or may use the host's


def confine(fork: Fork, view: View) -> None:
    """`enter` where there are no rooms, after which the process sees what `fork` and `view` say. Raises OSError."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # another container of the same user must not look into this one
    os.makedirs(fork.scratch, mode=0o700, exist_ok=True)
    landlock.confine(view, filter(None, (fork.scratch, fork.spill_dir)), network=fork.network, gpu=fork.gpu)
    kernel.drop_capabilities()  # a server of root's has them all: to make devices, say
    kernel.install_filter(seccomp.program(network=fork.network, among_others=True))


def limit(memory_bytes: int) -> None:
    """Limit the private data of the calling process; 0: don't.

    The limit is RLIMIT_DATA: shared mappings (arenas, libraries) don't count, as they would under RLIMIT_AS,
    which torch's reservations alone exceed. What the zygote had already mapped counts, so it is added.
    """
    if memory_bytes:
        _lower(resource.RLIMIT_DATA, memory_bytes + _data_bytes())


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _join(groups: Iterable[str]) -> None:
    for path in groups:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("0")  # whoever writes
        except OSError as error:
            if error.errno in _REMOVED:
                raise PeerGone(f"{path} was removed") from None
            raise


def reset_signals() -> None:
    """Default handling of everything, whatever the zygote ignores; SIGPIPE stays ignored, as Python has it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def die_with_parent() -> None:
    """SIGKILL when the parent thread ends. (The kernel watches the *thread* that started this process.)"""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_host(lifeline: int) -> int:
    """SIGKILL from the kernel when the host has gone, even while code in C holds the interpreter's lock.

    `lifeline`: the read end of a pipe that the host alone can write to, and never does. It is taken over. The parent
    won't do for this: it is the zygote, and containers outlive that. The leader of a process group takes it along,
    what its user code has forked included.

    Gives the descriptor that this lasts as long as. User code must not come by one of a pipe that others hang on:
    whoever has the read end can open the other one in /proc, and a byte written there is the end of all.
    """
    # Opened anew, because the owner of a signal belongs to what is open, and that is shared by all that were forked.
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(lifeline)
    me = os.getpid()
    fcntl.fcntl(own, fcntl.F_SETOWN, -me if os.getpgrp() == me else me)
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(own, 0)
    if poll.poll(0):  # it went before this was set up
        os.kill(os.getpid(), signal.SIGKILL)
    return own


def _yield_to_host() -> None:
    """Less weight for this process than for the host: its own, and that of its session where sessions share fairly."""
    with contextlib.suppress(OSError):  # already at the bottom, or not allowed to
        os.nice(_NICE)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
        file.write(str(_NICE))


def _data_bytes() -> int:
    """Private data that this process has mapped already."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[5])
    return pages * resource.getpagesize()


def _prefer_for_oom() -> None:
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = min(1000, max(int(file.read()), 0) + _OOM_SCORE)
        file.seek(0)
        file.write(str(score))
