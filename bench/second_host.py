"""Other hosts for benchmarks: servers that lend containers, in network namespaces of their own where possible."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import uvloop

from bench.engine import GIB, ROOT
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

NAME, THIRD = "b", "c"
"""Names of the hosts that there can be, besides the first."""
TOKEN = "between the hosts of one benchmark"
LINK = "1gbit"
ECHO_BYTES, SINK_BYTES = 1 << 10, 64 << 20
_NETWORKS = {NAME: "10.79.5", THIRD: "10.79.6"}
_PORT = 8003


@dataclass(frozen=True)
class SecondHost:
    """Where it is, as `name=host:port`, and in words."""

    peer: str
    words: str
    plain: Mapping[str, tuple[str, int]]
    """Plain TCP to the same place: says a byte for each 1 KB (`1KB`), and for each 64 MB (`64MB`)."""


@contextmanager
def second_host(link: str = LINK, name: str = NAME) -> Iterator[SecondHost]:
    """A running one; gone afterwards. `link`: how fast the line to it is, as `tc` writes it; empty: no limit."""
    namespace = f"df{name}{os.getpid()}"
    apart = join(namespace, link, _NETWORKS[name])
    prefix = ("ip", "netns", "exec", namespace) if apart else ()
    address, port = (f"{_NETWORKS[name]}.2", _PORT) if apart else ("127.0.0.1", 0)
    command = (*prefix, sys.executable, "-P", "-m", "bench.second_host", address, str(port), name)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment())
    try:
        assert process.stdout is not None
        port, short, long = map(int, process.stdout.readline().split())
        speed = f"{link} each way" if link else "a line without a limit"
        words = f"network namespaces, {speed}" if apart else "loopback (network namespaces need root and `ip`)"
        yield SecondHost(f"{name}={address}:{port}", words, {"1KB": (address, short), "64MB": (address, long)})
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if apart:
            leave(namespace)


def _environment() -> dict[str, str]:
    paths = (str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _run(*command: str) -> bool:
    return not subprocess.run(command, check=False, capture_output=True, timeout=20).returncode


def leave(namespace: str) -> None:
    """The end of a namespace, and of the line to it."""
    _run("ip", "netns", "del", namespace)


def join(namespace: str, link: str, network: str) -> bool:
    """A namespace and a line to it, in which it is `network`.2 and we .1; False if there can't be one."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc"))) or not _run("ip", "netns", "add", namespace):
        return False
    ours = f"{namespace}o"
    shape = ("root", "tbf", "rate", link, "burst", "256kb", "latency", "50ms")
    steps = (
        ("ip", "link", "add", ours, "type", "veth", "peer", "name", "line", "netns", namespace),
        ("ip", "addr", "add", f"{network}.1/30", "dev", ours),
        ("ip", "link", "set", ours, "up"),
        ("ip", "-n", namespace, "addr", "add", f"{network}.2/30", "dev", "line"),
        ("ip", "-n", namespace, "link", "set", "line", "up"),
        ("ip", "-n", namespace, "link", "set", "lo", "up"),
    )
    shaped = (
        ("tc", "qdisc", "add", "dev", ours, *shape),
        ("tc", "-n", namespace, "qdisc", "add", "dev", "line", *shape),
    )
    steps += shaped if link else ()
    if all(_run(*step) for step in steps):
        return True
    _run("ip", "netns", "del", namespace)
    return False


def _sink(address: str, nbytes: int) -> int:
    """A plain TCP server that says a byte for each `nbytes` that it got into warm memory; its port."""
    listener = socket.create_server((address, 0))

    def serve() -> None:
        memory = memoryview(bytearray(nbytes))
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                got = 0
                while count := connection.recv_into(memory[got:]):
                    got = (got + count) % nbytes
                    if not got:
                        connection.send(b"!")

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


async def _serve(address: str, port: int, name: str) -> None:
    settings = HostConfig(
        host_name=name,
        peer_address=address,
        peer_port=port,
        peer_token=TOKEN,
        code_path=(str(ROOT),),
        container_arena_bytes=4 * GIB,
        max_containers=256,
        cpus=64,
    )
    async with Runtime(settings) as host:
        print(host.peer_port, _sink(address, ECHO_BYTES), _sink(address, SINK_BYTES), flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
