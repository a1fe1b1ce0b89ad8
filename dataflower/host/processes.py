"""What Linux offers for keeping track of child processes: descriptors of processes, and adopting orphans."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37


_lock = threading.Lock()
_adopting = 0
"""How many hosts of this process want its orphans: they may end in any order."""
_adopted_before = False


def adopt_orphans() -> None:
    """From now on orphaned descendants become children of this process, until as many calls of `disown_orphans`."""
    global _adopting, _adopted_before
    with _lock:
        if not _adopting:
            _adopted_before = is_subreaper()
            _set_subreaper(True)
        _adopting += 1


def disown_orphans() -> None:
    """The last of those who wanted orphans leaves it as the first has found it."""
    global _adopting
    with _lock:
        _adopting -= 1
        if not _adopting:
            _set_subreaper(_adopted_before)


def is_subreaper() -> bool:
    """Whether orphaned descendants become children of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = ctypes.c_int()
    if libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_GET_CHILD_SUBREAPER)")
    return bool(found.value)


def _set_subreaper(wanted: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def open_process(pid: int) -> int | None:
    """A descriptor of a process that becomes readable when it ends; None if it is gone. The caller closes it."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def kill_process(descriptor: int) -> None:
    """SIGKILL; no-op if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def reap(descriptor: int) -> int | None:
    """Exit code of an ended child (negative: signal); None if it still runs or was never this process's child."""
    try:
        ended = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def children_in_group(group: int) -> list[int]:
    """Children of this process, adopted and ended ones too, that belong to a process group."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in map(int, (thread / "children").read_bytes().split()):
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(pid) == group:
                        found.append(pid)
    return found


def family_name(marker: str) -> str:
    """What processes that were started with `marker` are called by the kernel, which allows 15 bytes."""
    return f"dataflower-{marker[-4:]}"


def marked_children(marker: str) -> list[int]:
    """Children of this process, adopted ones too, that were started with `marker` in their environment.

    One that ends, or has ended, has no environment any more; it is known by its name.
    """
    wanted, name, me = marker.encode(), family_name(marker).encode(), os.getpid()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The command name, in parentheses, may hold anything; the fields behind it are state and parent.
            head, _, tail = (folder / "stat").read_bytes().rpartition(b")")
            if int(tail.split()[1]) != me:
                continue
            environment = b""
            with contextlib.suppress(ProcessLookupError, PermissionError):  # its memory is gone
                environment = (folder / "environ").read_bytes()
            if wanted in environment.split(b"\0") or (not environment and head.partition(b"(")[2] == name):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def describe_exit(code: int | None) -> str:
    """What to tell a user about how a container ended."""
    if code is None:
        return "ended for an unknown reason"
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory, or killed from outside)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
