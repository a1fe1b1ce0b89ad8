"""A function that attacks what lies outside of its container. Each act gives a word for what came of it, or ends it."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_PRLIMIT = getattr(_libc, "prlimit", None)


def refusal(attempt: Callable[[], Any]) -> str:
    """Name of the errno with which it fails; "done" if it doesn't."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def _open_descriptors() -> list[tuple[int, os.stat_result]]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((int(name), os.stat(f"/proc/self/fd/{name}")))
        except OSError:
            continue
    return found


def pull_lifelines() -> int:
    """Write into every pipe that it holds an end of, whichever; what it prints goes elsewhere."""
    written = 0
    for descriptor, found in _open_descriptors():
        if stat.S_ISFIFO(found.st_mode) and descriptor > 2:
            other = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            written += os.write(other, b"x")
    return written


def shut_sockets() -> str:
    """Shut every socket that it holds, for whoever else holds it too."""
    for descriptor, found in _open_descriptors():
        if stat.S_ISSOCK(found.st_mode):
            with socket.socket(fileno=os.dup(descriptor)) as end:
                refusal(lambda end=end: end.shutdown(socket.SHUT_RDWR))
    time.sleep(60)
    return "nobody minded"


def kill_host(host: int) -> str:
    return refusal(lambda: os.kill(host, signal.SIGKILL))


def limit_host(host: int) -> str:
    """Let the kernel kill another process: a limit of processor time that it has long passed."""
    wanted = (ctypes.c_ulong * 2)(1, 1)
    return refusal(lambda: _checked(_libc.prlimit(host, resource.RLIMIT_CPU, ctypes.byref(wanted), None)))


def starve_host(host: int) -> str:
    """Have it run only when nobody else wants to."""
    return refusal(lambda: os.sched_setscheduler(host, os.SCHED_IDLE, os.sched_param(0)))


def pin_host(host: int) -> str:
    return refusal(lambda: os.sched_setaffinity(host, {0}))


def nice_host(host: int) -> str:
    return refusal(lambda: os.setpriority(os.PRIO_PROCESS, host, 19))


def shared_segment(key: int) -> str:
    """Memory of System V, which has neither an owner to answer for it nor an end."""
    return refusal(lambda: _checked(_libc.shmget(key, 4096, 0o1600)))


def limits() -> dict[str, int]:
    wanted = {"files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}
    return {name: resource.getrlimit(limit)[1] for name, limit in wanted.items()}


def flying_descriptors() -> str:
    """As many descriptors under way in sockets of its own as the kernel lets it have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ends, sent = [], 0
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, np.zeros(250, np.int32).tobytes())]
    word = "done"
    try:
        while sent < 4 * hard:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            ends.append(pair)
            for _ in range(8):
                pair[0].sendmsg([b"x"], rights)
                sent += 250
    except OSError as error:
        word = errno.errorcode[error.errno or 0]
    _KEPT.extend(ends)
    return word


def descriptors() -> str:
    """As many open files as there may be."""
    try:
        while True:
            _KEPT.append(os.dup(0))
    except OSError as error:
        word = errno.errorcode[error.errno or 0]
    for one in _KEPT:
        os.close(one)
    _KEPT.clear()
    return word


_KEPT: list[Any] = []


def search(secret: str, mine: Any) -> int:
    """How often `secret`, written backwards, shows in the memory of others that this process has mapped."""
    wanted = secret[::-1].encode()
    with open("/proc/self/maps") as maps:
        rows = [line.split() for line in maps if "dataflower-arena" in line and line.split()[1].startswith("r--")]
    found = 0
    for row in rows:
        begin, end = (int(part, 16) for part in row[0].split("-"))
        found += ctypes.string_at(begin, end - begin).count(wanted)
    return found


def multiply() -> None:
    """Become 128 processes, which stay. More would be no other test, and a danger to the machine."""
    for _ in range(7):
        os.fork()
    while True:
        time.sleep(60)


def reopen(items: list[Any]) -> list[str]:
    """By its own /proc, open what it was handed of others' files anew to write to it, and cut it short."""
    paths = [
        f"/proc/self/fd/{descriptor}"
        for descriptor, found in _open_descriptors()
        if stat.S_ISREG(found.st_mode) and not found.st_nlink and descriptor > 2  # not what it prints to
    ]
    paths = [path for path in paths if "/memfd:" not in os.readlink(path)]
    flags = (os.O_RDWR, os.O_WRONLY | os.O_TRUNC)
    return [
        *(refusal(lambda path=path, flag=flag: os.close(os.open(path, flag))) for path in paths for flag in flags),
        *(refusal(lambda path=path: os.truncate(path, 0)) for path in paths),
    ]


def leave_note(folder: str) -> str:
    """For others, in a folder that they all might know."""
    return refusal(lambda: os.mkdir(os.path.join(folder, "note")))


def forget_note(folder: str) -> str:
    return refusal(lambda: os.rmdir(os.path.join(folder, "note")))


def find_notes(folder: str) -> list[str]:
    """What there is to see, or why nothing is."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        return [errno.errorcode[error.errno or 0]]


def siege(act: str, about: Any) -> Any:
    """Do it."""
    return globals()[act](about) if about is not None else globals()[act]()


def linger(x: Any) -> None:
    """Have it for a while."""
    time.sleep(1.0)
