"""A room: the namespaces that one sandboxed container lives in, made before it is asked for.

`build` runs in a process that has its own user, mount, process, IPC, network and UTS namespaces. Afterwards the root
of the mount namespace is a read-only view (`view`) with a private /tmp and /proc, and a folder of its own for what its
memory has no room for: once to write to, and once (`SPILLED`) to open what others are to read.
"""

from __future__ import annotations

import os
import sys
import tempfile

from dataflower.container import kernel
from dataflower.container.view import View

NAMESPACES = {
    "user": kernel.CLONE_NEWUSER,
    "mnt": kernel.CLONE_NEWNS,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "net": kernel.CLONE_NEWNET,
    "pid": kernel.CLONE_NEWPID,
}
"""In the order in which they are entered: the user namespace gives the right to enter the others."""
HOST_NAME = "container"
USER = "dataflower"
_PRIVATE_BYTES = 1 << 30
_PRIVATE_FILES = 200_000
_STAGING = "/tmp"
_OLD, _NEW = "/old", "/new"
SPILLED = "/dataflower-spilled"
"""Where a room shows its own spill folder read-only: whoever is handed a file opened there can't open it to write."""


def unshare(uid: int, gid: int) -> None:
    """New namespaces of every kind; the process namespace is for the children to come."""
    flags = 0
    for kind in NAMESPACES.values():
        flags |= kind
    kernel.unshare(flags)
    kernel.map_self(inside(uid), inside(gid), uid, gid)


def inside(number: int) -> int:
    """Id of a user or group in the room: root outside is nobody special inside."""
    return number or 1000


def make_spill(view: View) -> str:
    """A new folder in which the room to be may spill; empty if it may not, or can't."""
    try:
        return tempfile.mkdtemp(prefix="room-", dir=view.spill) if view.spill else ""
    except OSError as error:
        print(f"zygote: a container can't spill to disk: {error}", file=sys.stderr, flush=True)
        return ""


def build(view: View, *, gpu: bool, spill: str = "") -> None:
    """Make the view the root. The process must be the first of its process namespace, with all capabilities.

    `spill`: what shows in place of `view.spill`.
    """
    sources = {path: os.path.realpath(path) for path in (*view.readable, *view.writable, *view.devices, *view.gpu)}
    if spill:
        sources |= dict.fromkeys((view.spill, SPILLED), os.path.realpath(spill))
    hidden = {path: os.path.isdir(path) for path in view.hidden}
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    _stage()
    _tmpfs("/", "mode=755,size=4m")
    for path in view.private:
        _tmpfs(path, f"mode=1777,size={_PRIVATE_BYTES},nr_inodes={_PRIVATE_FILES}")
    flags = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV
    devices = (*view.devices, *(view.gpu if gpu else ()))
    shown = [(path, flags) for path in view.readable]
    shown += [(path, kernel.ATTR_NOSUID | kernel.ATTR_NODEV) for path in view.writable]
    shown += [(path, kernel.ATTR_NOSUID if path.startswith("/dev/") else flags) for path in devices]
    if spill:
        shown += [(view.spill, kernel.ATTR_NOSUID | kernel.ATTR_NODEV), (SPILLED, flags)]
    for path, attributes in sorted(shown, key=lambda entry: entry[0].count("/")):
        _bind(sources[path], path, attributes)
    for path, is_directory in hidden.items():
        if os.path.lexists(_NEW + path):
            _cover(path, is_directory)
    _write_accounts()
    _mount_proc()
    kernel.set_mount(_NEW, kernel.ATTR_RDONLY, recursive=False)
    kernel.pivot_root(_NEW)


def _stage() -> None:
    """Put the old root aside, so that the new one can be put together whatever it is made of."""
    kernel.mount("tmpfs", _STAGING, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    for name in (_OLD, _NEW):
        os.mkdir(_STAGING + name)
    kernel.swap_root(_STAGING, _STAGING + _OLD)


def _tmpfs(path: str, options: str) -> None:
    target = _NEW + path if path != "/" else _NEW
    os.makedirs(target, exist_ok=True)
    kernel.mount("tmpfs", target, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def _bind(source: str, path: str, attributes: int) -> None:
    target = _NEW + path
    if os.path.isdir(_OLD + source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o444))
    kernel.mount(_OLD + source, target, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.set_mount(target, attributes)


def _cover(path: str, is_directory: bool) -> None:
    if is_directory:
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", _NEW + path, "tmpfs", flags, "mode=755,size=4k")
    else:
        kernel.mount(_OLD + "/dev/null", _NEW + path, None, kernel.MS_BIND)


def _write_accounts() -> None:
    uid, gid = os.getuid(), os.getgid()
    os.makedirs(_NEW + "/etc", exist_ok=True)
    for name, text in (
        ("passwd", f"{USER}:x:{uid}:{gid}::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
        ("group", f"{USER}:x:{gid}:\nnogroup:x:65534:\n"),
        ("hostname", HOST_NAME + "\n"),
    ):
        with open(f"{_NEW}/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _mount_proc() -> None:
    """Of this process namespace. Read-only: to the kernel a root outside is one still, as far as /proc/sys goes."""
    os.makedirs(_NEW + "/proc", exist_ok=True)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", _NEW + "/proc", "proc", flags)
    kernel.set_mount(_NEW + "/proc", kernel.ATTR_RDONLY)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{_NEW}/dev/{name}")
