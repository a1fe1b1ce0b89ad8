"""What keeps a container's process in its place: session, limits, privileges, who dies first without memory."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import resource
import select
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_F_SETSIG = 10
_OOM_SCORE = 500
"""Added to a container's badness: when memory runs out the kernel takes a container, not the host."""


def enter(memory_bytes: int) -> None:
    """Shut the calling process in. `memory_bytes`: limit of its private data; 0 = none.

    The limit is RLIMIT_DATA: shared mappings (arenas, libraries) don't count, as they would under RLIMIT_AS,
    which torch's reservations alone exceed. What the zygote had already mapped counts, so it is added.
    """
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        limit = memory_bytes + _data_bytes()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    with contextlib.suppress(OSError):  # a hardened /proc may refuse; the container works without it
        _prefer_for_oom()


def reset_signals() -> None:
    """Default handling of everything, whatever the zygote ignores; SIGPIPE stays ignored, as Python has it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def die_with_parent() -> None:
    """SIGKILL when the parent thread ends. (The kernel watches the *thread* that started this process.)"""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_host(lifeline: int) -> None:
    """SIGKILL from the kernel when the host has gone, even while code in C holds the interpreter's lock.

    `lifeline`: the read end of a pipe that the host alone can write to, and never does. It is taken over. The parent
    won't do for this: it is the zygote, and containers outlive that.
    """
    # Opened anew, because the owner of a signal belongs to what is open, and that is shared by all that were forked.
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(lifeline)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(own, 0)
    if poll.poll(0):  # it went before this was set up
        os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def _libc() -> ctypes.CDLL:
    """Opened by the zygote, so that its children needn't (1 ms)."""
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


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
