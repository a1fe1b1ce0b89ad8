"""What a hostile function tries. Each gives a word for what happened, or raises."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_MADV_REMOVE = 9
_PUNCH_HOLE = 1 | 2  # and keep the size


def refusal(attempt: Callable[[], Any]) -> str:
    """Name of the errno with which it fails; "done" if it doesn't."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def syscall(number: int, *arguments: Any) -> Callable[[], None]:
    def call() -> None:
        if _libc.syscall(ctypes.c_long(number), *arguments) < 0:
            raise OSError(ctypes.get_errno(), "syscall")

    return call


def read(path: str) -> str:
    return refusal(lambda: open(path, "rb").read(1))


def write(path: str) -> str:
    return refusal(lambda: open(path, "ab").write(b"x"))


def write_scratch() -> str:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"mine")
    return os.environ["TMPDIR"]


def environment() -> dict[str, str]:
    with open("/proc/self/environ", "rb") as file:
        started = file.read().decode()
    return {"now": "\n".join(f"{k}={v}" for k, v in os.environ.items()), "started": started}


def processes() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def me() -> dict[str, Any]:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    names = ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")
    return {"pid": os.getpid(), "uid": os.getuid(), **{name: status[name].strip() for name in names}}


def make_device() -> str:
    """A way of one's own to the first disk."""
    path = os.path.join(os.environ["TMPDIR"], "disk")
    return refusal(lambda: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(8, 0)))


def kill(pid: int) -> str:
    return refusal(lambda: os.kill(pid, signal.SIGKILL))


def memory_of(pid: int) -> str:
    return refusal(lambda: open(f"/proc/{pid}/mem", "rb").close())


def connect(host: str, port: int) -> str:
    def attempt() -> None:
        with socket.create_connection((host, port), 2.0):
            pass

    return refusal(attempt)


def connect_abstract(name: str) -> str:
    def attempt() -> None:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect("\0" + name)

    return refusal(attempt)


def local_socket() -> str:
    """A server and a client within the container."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.send(b"x")
        return server.accept()[0].recv(1).decode()


X86 = {
    "ptrace": (101, 16, 1),
    "mount": (165, 0, 0, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "setns": (308, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "keyctl": (250, 0, -3, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "userfaultfd": (323, 0),
    "io_uring_setup": (425, 1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "clone into a namespace": (56, 0x10000000, 0, 0, 0, 0),
}


def calls() -> dict[str, str]:
    found = {name: refusal(syscall(*numbers)) for name, numbers in X86.items()}
    found["vsock"] = refusal(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close())
    found["packet"] = refusal(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
    return found


def tamper(x: np.ndarray) -> dict[str, str]:
    """Everything that could change an input under others that read it."""
    address, nbytes = x.__array_interface__["data"][0], x.nbytes
    page = address & ~(mmap.PAGESIZE - 1)

    def protect() -> None:
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def by_proc() -> None:
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(b"x")

    def remove() -> None:
        if _libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _MADV_REMOVE):
            raise OSError(ctypes.get_errno(), "madvise")

    found = {"mprotect": refusal(protect), "mem": refusal(by_proc), "remove": refusal(remove)}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "memfd:dataflower" in target:
            found["ftruncate"] = refusal(lambda name=name: os.ftruncate(int(name), 0))
    for region in _regions():
        found.setdefault("open again", refusal(lambda region=region: _cut_again(region)))
        found.setdefault("punch", refusal(lambda region=region: _punch(region)))
    assert nbytes > 0
    return found


def _regions() -> list[str]:
    with open("/proc/self/maps") as file:
        rows = [line.split() for line in file if "memfd:dataflower" in line]
    return [row[0] for row in rows if row[1].startswith("r--")]


def _cut_again(region: str) -> None:
    descriptor = os.open(f"/proc/self/map_files/{region}", os.O_RDWR)
    try:
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _punch(region: str) -> None:
    descriptor = os.open(f"/proc/self/map_files/{region}", os.O_RDWR)
    try:
        page = ctypes.c_long(mmap.PAGESIZE)
        if _libc.fallocate(descriptor, _PUNCH_HOLE, ctypes.c_long(0), page):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(descriptor)


def forks(path: str) -> int:
    """A child in a session of its own that would leave a mark after its parent."""
    child = os.fork()
    if not child:
        os.setsid()
        signal.pause()
    return child


def spawns() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"], start_new_session=True)
    return child.pid


def orphans() -> int:
    """Processes whose parent has gone are collected."""
    child = os.fork()
    if not child:
        if not os.fork():
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
    while True:
        left = [pid for pid in processes() if pid not in (1, os.getpid())]
        if not left:
            return 0


def fork_bomb() -> str:
    """How many children there can be before the limit stops them; they are ended again."""
    children = []
    try:
        while True:
            child = os.fork()
            if not child:
                signal.pause()
            children.append(child)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def threads() -> dict[str, int]:
    from threadpoolctl import threadpool_info

    np.ones((64, 64)) @ np.ones((64, 64))
    return {entry["internal_api"]: entry["num_threads"] for entry in threadpool_info()}
