"""A Redis of our own for the intermediate results: in memory, nothing on disk, on a TCP port or on a local socket.

One on another machine stands in a network namespace, where there can be one, behind a line that all share who use it:
50 MB/s each way, which is what FaaSFlow (ASPLOS 2022) gives the node with its store, of 25 to 100.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from bench.second_host import join, leave, network_of

LINE = "400mbit"
"""To a store on another machine, as `tc` writes it."""
_NETWORK, _PORT = 7, 6379
MISSING = "no redis-server found: sudo apt-get install redis-server, or name one in BENCH_REDIS"


@dataclass(frozen=True)
class Address:
    """Where it listens: `path` of its socket, or else `host` and `port`. `words`: how that is."""

    path: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    words: str = ""

    def options(self) -> dict[str, str | int | None]:
        """For a Redis client. No timeout: what many fetch at a time takes long over a narrow line."""
        where: dict[str, str | int | None] = {"host": self.host, "port": self.port}
        return {"socket_timeout": None, **({"unix_socket_path": self.path} if self.path else where)}


def binary() -> str | None:
    """The server's program, or None."""
    return shutil.which(os.environ.get("BENCH_REDIS", "redis-server"))


@contextmanager
def store(*, local: bool, line: str = LINE) -> Iterator[Address]:
    """Run one, empty. `local`: on a socket, as a store on the same machine; else over TCP, behind `line` if any."""
    program = binary()
    if program is None:
        raise FileNotFoundError(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        namespace = f"dfs{os.getpid()}"
        network = network_of(_NETWORK)
        apart = not local and bool(line) and join(namespace, line, network)
        if apart:
            address = Address(host=f"{network}.2", port=_PORT, words=f"a store behind a line of {line}")
        elif local:
            address = Address(path=str(Path(folder) / "redis"), words="a store on this machine")
        else:
            address = Address(port=free_port(), words="a store behind a line without a limit")
        command = [
            *(("ip", "netns", "exec", namespace) if apart else ()),
            program,
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
            "--port",
            str(address.port),
        ]
        command += [
            "--bind",
            address.host,
            "--protected-mode",
            "no",
            *(["--unixsocket", address.path] if local else []),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(**address.options())
            for _ in range(200):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.02)
            client.close()
            yield address
        finally:
            process.terminate()
            process.wait(10)
            if apart:
                leave(namespace)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
