"""The system calls that Python has no names for: namespaces, mounts, capabilities, Landlock, seccomp.

Every wrapper raises OSError with the call's name. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import platform
import socket
import struct

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
_LANDLOCK_VERSION = 1
_LANDLOCK_RULE_PATH = 1
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# Numbers that differ between machines; those from 424 on are the same everywhere.
_NUMBERS = {"x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317}}
_NUMBERS["aarch64"] = {"pivot_root": 41, "capset": 91, "seccomp": 277}
_COMMON = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}


@functools.cache
def libc() -> ctypes.CDLL:
    """Opened by the zygote, so that its children needn't (1 ms)."""
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _numbers() -> dict[str, int]:
    return {**_COMMON, **_NUMBERS.get(platform.machine(), {})}


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _call(name: str, *arguments: object) -> int:
    number = _numbers().get(name)
    if number is None:
        raise OSError(38, f"{name}: not known for {platform.machine()}")
    return _check(libc().syscall(ctypes.c_long(number), *arguments), name)


def prctl(option: int, value: int = 0) -> None:
    """`prctl(option, value, 0, 0, 0)`."""
    _check(libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check(libc().unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter a namespace (for `CLONE_NEWPID`: the children to come do)."""
    _check(libc().setns(descriptor, kind), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """`mount(2)`; the error names the target."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(libc().mount(*texts, ctypes.c_ulong(flags), data), f"mount {target}")


def set_mount(target: str, attributes: int, *, recursive: bool = True) -> None:
    """Add attributes to a mount, and to all below it (Linux 5.12)."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    how = _AT_RECURSIVE if recursive else 0
    _call("mount_setattr", _AT_FDCWD, os.fsencode(target), how, wanted, ctypes.c_size_t(len(wanted)))


def swap_root(root: str, old: str) -> None:
    """Make `root` the root of this mount namespace; the old one shows at `old` (a path below `root`)."""
    _call("pivot_root", os.fsencode(root), os.fsencode(old))
    os.chdir("/")


def pivot_root(root: str) -> None:
    """Make `root` the root of this mount namespace and let go of the old one."""
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _check(libc().umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def map_self(inside_uid: int, inside_gid: int, uid: int, gid: int) -> None:
    """After `unshare(CLONE_NEWUSER)`: be the only user of the new namespace."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside_uid} {uid} 1"),
        ("gid_map", f"{inside_gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def drop_capabilities() -> None:
    """Give up all of them, for the calling thread and whatever it executes."""
    call = libc().prctl
    for capability in range(_LAST_CAPABILITY):
        if call(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break  # EINVAL: the kernel has no more; EPERM: without CAP_SETPCAP there is nothing to give up
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, bytes(24))


def loopback_up() -> None:
    """Bring up `lo` in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        request = bytearray(struct.pack("16sH14x", b"lo", 0))
        fcntl.ioctl(end, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("=H", request, 16)
        struct.pack_into("=H", request, 16, flags | _IFF_UP)
        fcntl.ioctl(end, _SIOCSIFFLAGS, request)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter: an array of `struct sock_filter`. Needs no_new_privs."""
    body = ctypes.create_string_buffer(program, len(program))

    class _Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    header = _Program(len(program) // 8, ctypes.addressof(body))
    # Without this flag old kernels also turn off store speculation, which slows all code of the process down.
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, ctypes.byref(header))


def landlock_version() -> int:
    """ABI of Landlock; OSError if the kernel has none."""
    return _call("landlock_create_ruleset", None, ctypes.c_size_t(0), _LANDLOCK_VERSION)


def landlock_ruleset(files: int, network: int, scoped: int) -> int:
    """Descriptor of a ruleset that takes away these rights; the caller closes it."""
    wanted = struct.pack("=QQQ", files, network, scoped)
    return _call("landlock_create_ruleset", wanted, ctypes.c_size_t(len(wanted)), 0)


def landlock_allow(ruleset: int, path: str, rights: int) -> None:
    """Give rights back below a path."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call("landlock_add_rule", ruleset, _LANDLOCK_RULE_PATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def landlock_enforce(ruleset: int) -> None:
    """Restrict the calling thread and its children. Needs no_new_privs."""
    _call("landlock_restrict_self", ruleset, 0)
