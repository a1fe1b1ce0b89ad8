"""Landlock: what a process may do with files, ports and signals, laid down by itself and for good.

In a room it is the second line: no signals and no abstract sockets out of the container, and no file that came by a
descriptor from outside can be opened anew to write to it, as others' spilled outputs could. Where there are no rooms it
is the wall itself: only the files of the view can be opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from dataflower.container import kernel
from dataflower.container.view import MACHINE_FILES, View

SCOPED_SINCE = 6
"""The first ABI that keeps signals and abstract sockets inside."""
_READ = 1 | 4 | 8  # execute, read files, read directories
_FILE_RIGHTS = 1 | 2 | 4 | (1 << 14) | (1 << 15)
_WRITE, _MOVE, _CUT = 1 << 1, 1 << 13, 1 << 14
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_BIND_TCP, _CONNECT_TCP = 1, 2


def scope() -> None:
    """Keep signals and abstract sockets inside, and writing to what the room's own mounts lead to.

    Nothing where the kernel can't. Needs no_new_privs.
    """
    with contextlib.suppress(OSError):
        if kernel.landlock_version() >= SCOPED_SINCE:
            # Below this root, which is the room's alone: whatever other mounts lead to is not. Moving files between
            # folders is named because it is refused by every ruleset that doesn't allow it.
            ruleset = kernel.landlock_ruleset(_WRITE | _MOVE | _CUT, 0, _ABSTRACT_SOCKETS | _SIGNALS)
            _allow(ruleset, ["/"], _WRITE | _MOVE | _CUT)
            _enforce(ruleset)


def confine(view: View, own: Iterable[str], *, network: bool, gpu: bool) -> None:
    """Let the calling process open nothing but the view, its own /proc entry, and its `own` folders to write in.

    What others have in folders of theirs it can't open anew, whatever descriptors of that it is handed. Raises OSError
    if the kernel's Landlock is too old for all that.
    """
    version = kernel.landlock_version()
    if version < SCOPED_SINCE:
        raise OSError(95, f"Landlock ABI {version}; {SCOPED_SINCE} is needed")
    everything = (1 << 16) - 1
    ports = 0 if network else _BIND_TCP | _CONNECT_TCP
    ruleset = kernel.landlock_ruleset(everything, ports, _ABSTRACT_SOCKETS | _SIGNALS)
    machine = [f"/proc/{name}" for name in MACHINE_FILES]
    _allow(ruleset, [*view.readable, *machine, f"/proc/{os.getpid()}"], _READ)
    _allow(ruleset, [*view.writable, *own, *view.devices, *(view.gpu if gpu else ())], everything)
    _enforce(ruleset)


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        wanted = rights if os.path.isdir(path) else rights & _FILE_RIGHTS
        with contextlib.suppress(FileNotFoundError, PermissionError):
            kernel.landlock_allow(ruleset, path, wanted)


def _enforce(ruleset: int) -> None:
    try:
        kernel.landlock_enforce(ruleset)
    finally:
        os.close(ruleset)
