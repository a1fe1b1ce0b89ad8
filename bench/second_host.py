"""Another host for benchmarks: a server that lends containers, in a network namespace of its own where possible."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvloop

from bench.engine import GIB, ROOT
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

NAME = "b"
TOKEN = "between the hosts of one benchmark"
LINK = "1gbit"
_HERE, _THERE, _PORT = "10.79.5.1", "10.79.5.2", 8003


@dataclass(frozen=True)
class SecondHost:
    """Where it is, as `name=host:port`, and in words."""

    peer: str
    words: str


@contextmanager
def second_host() -> Iterator[SecondHost]:
    """A running one; gone afterwards."""
    namespace = f"dfb{os.getpid()}"
    apart = _join(namespace)
    prefix = ("ip", "netns", "exec", namespace) if apart else ()
    address, port = (_THERE, _PORT) if apart else ("127.0.0.1", 0)
    command = (*prefix, sys.executable, "-P", "-m", "bench.second_host", address, str(port))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment())
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        words = f"network namespaces, {LINK} each way" if apart else "loopback (network namespaces need root and `ip`)"
        yield SecondHost(f"{NAME}={address}:{port}", words)
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if apart:
            _run("ip", "netns", "del", namespace)


def _environment() -> dict[str, str]:
    paths = (str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _run(*command: str) -> bool:
    return not subprocess.run(command, check=False, capture_output=True, timeout=20).returncode


def _join(namespace: str) -> bool:
    """A namespace and a shaped line to it; False if there can't be one."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc"))) or not _run("ip", "netns", "add", namespace):
        return False
    ours = f"{namespace}o"
    shape = ("root", "tbf", "rate", LINK, "burst", "256kb", "latency", "50ms")
    steps = (
        ("ip", "link", "add", ours, "type", "veth", "peer", "name", "line", "netns", namespace),
        ("ip", "addr", "add", f"{_HERE}/30", "dev", ours),
        ("ip", "link", "set", ours, "up"),
        ("ip", "-n", namespace, "addr", "add", f"{_THERE}/30", "dev", "line"),
        ("ip", "-n", namespace, "link", "set", "line", "up"),
        ("ip", "-n", namespace, "link", "set", "lo", "up"),
        ("tc", "qdisc", "add", "dev", ours, *shape),
        ("tc", "-n", namespace, "qdisc", "add", "dev", "line", *shape),
    )
    if all(_run(*step) for step in steps):
        return True
    _run("ip", "netns", "del", namespace)
    return False


async def _serve(address: str, port: int) -> None:
    settings = HostConfig(
        host_name=NAME,
        peer_address=address,
        peer_port=port,
        peer_token=TOKEN,
        code_path=(str(ROOT),),
        container_arena_bytes=4 * GIB,
        max_containers=256,
        cpus=64,
    )
    async with Runtime(settings) as host:
        print(host.peer_port, flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
