"""The filter of system calls that a sandboxed container runs under, as a program for the kernel's BPF machine.

What it refuses: looking into and changing other processes, mounts, namespaces, kernel modules, keys, BPF, io_uring,
clocks, injected terminal input, and sockets of odd families. Everything else is allowed whatever its arguments, which
lets the kernel cache the verdict in a bitmap; only `clone`, `ioctl` and `socket` are looked at each time.
"""

from __future__ import annotations

import functools
import platform
import socket
import struct

from dataflower.container import kernel

_EPERM, _ENOSYS, _EACCES = 1, 38, 13
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x50000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
_X32 = 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_ALLOWED = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_NEW_NAMESPACES = (
    kernel.CLONE_NEWTIME
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWCGROUP
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
)

_EVERYWHERE = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "process_mrelease": 448,
    "open_tree_attr": 467,
}
_REFUSED = {
    "x86_64": {
        "ptrace": 101,
        "syslog": 103,
        "uselib": 134,
        "personality": 135,
        "sysfs": 139,
        "vhangup": 153,
        "modify_ldt": 154,
        "pivot_root": 155,
        "adjtimex": 159,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "iopl": 172,
        "ioperm": 173,
        "init_module": 175,
        "delete_module": 176,
        "quotactl": 179,
        "lookup_dcookie": 212,
        "clock_settime": 227,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "migrate_pages": 256,
        "unshare": 272,
        "move_pages": 279,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "clock_adjtime": 305,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "lookup_dcookie": 18,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "vhangup": 58,
        "quotactl": 60,
        "acct": 89,
        "personality": 92,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "settimeofday": 170,
        "adjtimex": 171,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "migrate_pages": 238,
        "move_pages": 239,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "clock_adjtime": 266,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
    },
}
_LOOKED_AT = {
    "x86_64": {"ioctl": 16, "socket": 41, "clone": 56, "clone3": 435},
    "aarch64": {"ioctl": 29, "socket": 198, "clone": 220, "clone3": 435},
}
_KEPT_BY_ALL = {
    "x86_64": {
        "shmget": 29,
        "shmat": 30,
        "shmctl": 31,
        "semget": 64,
        "semop": 65,
        "semctl": 66,
        "msgget": 68,
        "msgsnd": 69,
        "msgrcv": 70,
        "msgctl": 71,
        "semtimedop": 220,
        "mq_open": 240,
        "mq_unlink": 241,
    },
    "aarch64": {
        "mq_open": 180,
        "mq_unlink": 181,
        "msgget": 186,
        "msgctl": 187,
        "msgrcv": 188,
        "msgsnd": 189,
        "semget": 190,
        "semctl": 191,
        "semtimedop": 192,
        "semop": 193,
        "shmget": 194,
        "shmctl": 195,
        "shmat": 196,
    },
}
"""Memory and queues that belong to nobody: out of reach in an IPC namespace of one's own, refused without one."""
_OF_A_PROCESS = {
    "x86_64": {
        "setpriority": 141,
        "sched_setparam": 142,
        "sched_setscheduler": 144,
        "sched_setaffinity": 203,
        "ioprio_set": 251,
        "prlimit64": 302,
        "sched_setattr": 314,
    },
    "aarch64": {
        "ioprio_set": 30,
        "sched_setparam": 118,
        "sched_setscheduler": 119,
        "sched_setaffinity": 122,
        "setpriority": 140,
        "prlimit64": 261,
        "sched_setattr": 274,
    },
}
"""What the kernel lets a process do to any other of its user: kill it (a limit of processor time), or starve it."""
_ONLY_ITSELF = {"setpriority": ((0, 0), (1, 0)), "ioprio_set": ((0, 1), (1, 0))}
"""(argument, value) pairs that mean the caller; of the others, that the first is 0."""
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def refused(machine: str) -> dict[str, int]:
    """The system calls that are refused outright, by name. KeyError for a machine that is not known."""
    return {**_REFUSED[machine], **_EVERYWHERE}


def _step(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, on_true, on_false, value)


@functools.cache
def program(*, network: bool, among_others: bool = False, machine: str | None = None) -> bytes:
    """The filter. Made once, by the zygote.

    `network` False also refuses sockets that reach further than this machine, for containers that share the network
    namespace; `among_others` refuses what concerns other processes of the user, for those that share the others.

    Raises OSError for a machine that is not known.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT:
        raise OSError(_ENOSYS, f"no system call filter for {machine}")
    looked_at = _LOOKED_AT[machine]
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, _AUDIT[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    # glibc takes clone where it is told that there is no clone3, whose flags lie in memory that a filter can't read.
    steps += [_step(_EQUAL, looked_at["clone3"], 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    for name, number in sorted((refused(machine) | (_KEPT_BY_ALL[machine] if among_others else {})).items()):
        errno = _ENOSYS if name.startswith("io_uring") else _EPERM
        steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ERRNO | errno)]
    steps += _one_of(looked_at["clone"], 0, [_step(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _step(_RETURN, _ERRNO | _EPERM)])
    refusal = _step(_RETURN, _ERRNO | _EPERM)
    inputs = [_step(_EQUAL, _TIOCSTI, 1, 0), _step(_EQUAL, _TIOCLINUX, 0, 1), refusal]
    steps += _one_of(looked_at["ioctl"], 1, inputs)
    families = _AF_ALLOWED if network else (socket.AF_UNIX,)
    checks = [_step(_EQUAL, int(family), len(families) - at, 0) for at, family in enumerate(families)]
    steps += _one_of(looked_at["socket"], 0, [*checks, _step(_RETURN, _ERRNO | _EACCES)])
    if among_others:
        for name, number in _OF_A_PROCESS[machine].items():
            steps += _only(number, _ONLY_ITSELF.get(name, ((0, 0),)))
    steps.append(_step(_RETURN, _ALLOW))
    return b"".join(steps)


def _only(number: int, wanted: tuple[tuple[int, int], ...]) -> list[bytes]:
    """This call is allowed if each of these arguments has this value."""
    body = []
    for argument, value in wanted:
        load = _step(_LOAD, _ARGUMENT + 8 * argument)
        body += [load, _step(_EQUAL, value, 1, 0), _step(_RETURN, _ERRNO | _EPERM)]
    body.append(_step(_RETURN, _ALLOW))
    return [_step(_EQUAL, number, 0, len(body)), *body]


def _one_of(number: int, argument: int, checks: list[bytes]) -> list[bytes]:
    """For this call, look at an argument; checks that refuse nothing end in "allow"."""
    body = [_step(_LOAD, _ARGUMENT + 8 * argument), *checks, _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, 0, len(body)), *body]
