"""Other hosts for benchmarks: servers that lend containers, in network namespaces of their own where possible."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.engine import GIB, ROOT
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

NAME, THIRD = "b", "c"
"""Names of the hosts that there can be, besides the first."""
TOKEN = "between the hosts of one benchmark"
LINK = "1gbit"
ECHO_BYTES, SINK_BYTES = 1 << 10, 64 << 20
_NETWORKS = {NAME: 5, THIRD: 6}
_PORT = 8003


class Server:
    """The process of another host, which can be killed and started anew in the same place."""

    def __init__(self, command: tuple[str, ...]) -> None:
        """Started by `start`; `command` says three ports when it is ready, and answers what `_serve` knows."""
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> tuple[int, int, int]:
        """Returns once it listens: its ports, for hosts and for plain TCP."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment()
        )
        port, short, long = map(int, self._line().split())
        return port, short, long

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _ask(self, question: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._line()

    def containers(self) -> list[int]:
        """Process ids of the containers that it runs for others."""
        return [int(pid) for pid in self._ask("containers").split()]

    def held(self) -> int:
        """How many slots of its containers others have bytes of and still read, by its own books."""
        return int(self._ask("held"))

    def kill(self) -> None:
        """SIGKILL; what was below it is for whoever adopts orphans."""
        assert self._process is not None
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Let it leave."""
        if self._process is not None:
            self._process.terminate()
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@dataclass(frozen=True)
class SecondHost:
    """Where it is, as `name=host:port`, and in words."""

    peer: str
    words: str
    plain: Mapping[str, tuple[str, int]]
    """Plain TCP to the same place: says a byte for each 1 KB (`1KB`), and for each 64 MB (`64MB`)."""
    server: Server
    network: str = ""
    """The network namespace that it is in; empty if it is in ours."""

    @property
    def address(self) -> tuple[str, int]:
        """For other hosts."""
        host, _, port = self.peer.partition("=")[2].rpartition(":")
        return host, int(port)


@contextmanager
def second_host(link: str = LINK, name: str = NAME, *settings: str) -> Iterator[SecondHost]:
    """A running one; gone afterwards. `link`: how fast the line to it is, as `tc` writes it; empty: no limit.

    `settings`: of the host, over those that benchmarks have, as `key=number`.
    """
    namespace = f"df{name}{os.getpid()}"
    network = network_of(_NETWORKS[name])
    apart = join(namespace, link, network)
    prefix = ("ip", "netns", "exec", namespace) if apart else ()
    address, port = (f"{network}.2", _PORT) if apart else ("127.0.0.1", _free_port())
    command = (*prefix, sys.executable, "-P", "-m", "bench.second_host", address, str(port), name, *settings)
    server = Server(command)
    try:
        port, short, long = server.start()
        speed = f"{link} each way" if link else "a line without a limit"
        words = f"network namespaces, {speed}" if apart else "loopback (network namespaces need root and `ip`)"
        plain = {"1KB": (address, short), "64MB": (address, long)}
        yield SecondHost(f"{name}={address}:{port}", words, plain, server, namespace if apart else "")
    finally:
        server.stop()
        if apart:
            leave(namespace)


@contextmanager
def joined(one: SecondHost, other: SecondHost, link: str = "") -> Iterator[str]:
    """A line between two such hosts that does not lead past us, if they are in namespaces; says in words what it is."""
    if not (one.network and other.network):
        yield one.words
        return
    ends = ((one.network, other.address[0], one.address[0]), (other.network, one.address[0], other.address[0]))
    made = _run(
        *("ip", "-n", one.network, "link", "add", "between", "type", "veth"),
        *("peer", "name", "between", "netns", other.network),
    )
    for network, theirs, own in ends:
        made &= _run("ip", "-n", network, "link", "set", "between", "up")
        made &= _run("ip", "-n", network, "route", "add", f"{theirs}/32", "dev", "between", "src", own)
        if link:
            shape = ("root", "tbf", "rate", link, "burst", "256kb", "latency", "50ms")
            made &= _run("tc", "-n", network, "qdisc", "add", "dev", "between", *shape)
    if not made:
        raise OSError("two network namespaces could not be joined")
    yield f"network namespaces, {link} each way" if link else "network namespaces, lines without a limit"


def network_of(number: int) -> str:
    """The first three numbers of addresses, different for each process, so that two runs at a time don't meet."""
    return f"10.{64 + os.getpid() % 128}.{number}"


def _free_port() -> int:
    """One that a server can come back to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


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


async def _serve(address: str, port: int, name: str, *changes: str) -> None:
    settings: dict[str, Any] = {"container_arena_bytes": 4 * GIB, "max_containers": 256, "cpus": 64}
    settings |= {key: int(value) for key, value in (change.split("=") for change in changes)}
    config = HostConfig(
        host_name=name,
        peer_address=address,
        peer_port=port,
        peer_token=TOKEN,
        code_path=(str(ROOT),),
        writable_paths=(tempfile.gettempdir(),),
        **settings,
    )
    async with Runtime(config) as host:
        print(host.peer_port, _sink(address, ECHO_BYTES), _sink(address, SINK_BYTES), flush=True)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)

        def asked() -> None:
            match sys.stdin.readline().strip():
                case "containers":
                    print(*host.container_pids().values(), flush=True)
                case "held":
                    print(host.statistics().engine.slots_sent, flush=True)
                case _:  # whoever started it is gone
                    loop.remove_reader(sys.stdin)
                    stop.set()

        loop.add_reader(sys.stdin, asked)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], *sys.argv[4:]))
