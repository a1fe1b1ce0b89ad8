"""A Redis of our own for the intermediate results: in memory, nothing on disk, on a TCP port or on a local socket."""

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

MISSING = "no redis-server found: sudo apt-get install redis-server, or name one in BENCH_REDIS"


@dataclass(frozen=True)
class Address:
    """Where it listens: `path` of its socket, or else `port` on this machine."""

    path: str = ""
    port: int = 0

    def options(self) -> dict[str, str | int]:
        """For a Redis client."""
        return {"unix_socket_path": self.path} if self.path else {"host": "127.0.0.1", "port": self.port}


def binary() -> str | None:
    """The server's program, or None."""
    return shutil.which(os.environ.get("BENCH_REDIS", "redis-server"))


@contextmanager
def store(*, local: bool) -> Iterator[Address]:
    """Run one, empty. `local`: on a socket, as a store on the same machine; otherwise over TCP."""
    program = binary()
    if program is None:
        raise FileNotFoundError(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        address = Address(path=str(Path(folder) / "redis")) if local else Address(port=free_port())
        command = [program, "--save", "", "--appendonly", "no", "--dir", folder, "--port", str(address.port)]
        command += ["--bind", "127.0.0.1", *(["--unixsocket", address.path] if local else [])]
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


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
