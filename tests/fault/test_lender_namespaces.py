"""An owner and two lenders in network namespaces of their own; each pair has a narrow line, which can be unplugged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path

import pytest
from hosts_rig import config, until_settled
from namespaces_rig import laid, run, within
from neighbours_rig import far, total

from dataflower.host.runtime import Runtime

pytestmark = pytest.mark.slow

ADDRESSES = {"a": "10.79.7.1", "b": "10.79.7.2", "c": "10.79.7.3"}
PORT = 8003
PROGRAM = """
import asyncio
from hosts_rig import config
from dataflower.host.runtime import Runtime
async def main():
    settings = config(peer_port=%d, peer_address="0.0.0.0", host_name="%s", peer_timeout_s=2.0)
    async with Runtime(settings) as host:
        print(host.peer_port, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
N = 3_000_000
NBYTES = 4 * N


class Triangle:
    """Three namespaces and three lines, 200 Mbit/s each way; the devices are named after who is at the other end."""

    def __init__(self) -> None:
        self.names = {host: f"df{host}{os.getpid()}" for host in ADDRESSES}

    def make(self) -> None:
        for name in self.names.values():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for one, other in combinations(ADDRESSES, 2):
            there = ("peer", "name", f"to{one}", "netns", self.names[other])
            run("ip", "-n", self.names[one], "link", "add", f"to{other}", "type", "veth", *there)
            for here, there_ in ((one, other), (other, one)):
                self._join(here, there_)

    def _join(self, here: str, there: str) -> None:
        name, device = self.names[here], f"to{there}"
        run("ip", "-n", name, "addr", "add", f"{ADDRESSES[here]}/32", "dev", device)
        run("ip", "-n", name, "link", "set", device, "up")
        run("ip", "-n", name, "route", "add", f"{ADDRESSES[there]}/32", "dev", device, "src", ADDRESSES[here])
        shape = ("tbf", "rate", "200mbit", "burst", "64kb", "latency", "100ms")
        run("tc", "-n", name, "qdisc", "add", "dev", device, "root", *shape)

    def plug(self, up: bool) -> None:
        """The line between the lenders: a rule drops what would go over it, or does not."""
        for here, there in (("b", "c"), ("c", "b")):
            kind = "unicast" if up else "blackhole"
            device = ("dev", f"to{there}", "src", ADDRESSES[here]) if up else ()
            run("ip", "-n", self.names[here], "route", "replace", kind, f"{ADDRESSES[there]}/32", *device)

    def passed(self) -> int:
        """Bytes that went over the lines of the owner, as the kernel counts them."""
        rows = run("ip", "netns", "exec", self.names["a"], "cat", "/proc/net/dev").splitlines()
        numbers = [row.partition(":")[2].split() for row in rows if row.strip().startswith(("tob:", "toc:"))]
        assert len(numbers) == 2
        return sum(int(row[0]) + int(row[8]) for row in numbers)

    def remove(self) -> None:
        for name in self.names.values():
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True, timeout=20)


@asynccontextmanager
async def owner_of(lines: Triangle) -> AsyncIterator[Runtime]:
    """The owner, in the calling thread's namespace; the lenders run in theirs. It has had its first call."""
    paths = os.pathsep.join((str(Path(__file__).parent.parent), *filter(None, sys.path)))
    async with contextlib.AsyncExitStack() as stack:
        for host in "bc":
            command = ("ip", "netns", "exec", lines.names[host], sys.executable, "-P", "-c", PROGRAM % (PORT, host))
            process = await asyncio.to_thread(
                subprocess.Popen, command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
            )
            stack.push_async_callback(asyncio.to_thread, _end, process)
            assert process.stdout is not None
            assert int(await asyncio.to_thread(process.stdout.readline)) == PORT
        peers = tuple(f"{host}={ADDRESSES[host]}:{PORT}" for host in "bc")
        owner = await stack.enter_async_context(Runtime(config(host_name="a", peers=peers, peer_timeout_s=2.0)))
        await owner.apply(far(), "far")
        assert await called(owner, 10) == total(10)
        yield owner
        await until_settled(owner)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def called(owner: Runtime, n: int) -> int:
    """What comes of one call."""
    found: int = (await (await owner.invoke("far", {"x": n})).result())["y"]
    return found


def test_a_tensor_does_not_touch_the_lines_of_the_owner() -> None:
    with laid(Triangle()) as lines:

        async def test() -> None:
            async with owner_of(lines) as owner:
                before = lines.passed()
                assert await called(owner, N) == total(N)
                assert lines.passed() - before < 100_000, "messages alone, of a call with 12 MB"

        within(lines.names["a"], test)


def test_an_unplugged_line_between_lenders_is_waited_for_and_then_gone_round() -> None:
    with laid(Triangle()) as lines:

        async def test() -> None:
            async with owner_of(lines) as owner:
                before = lines.passed()
                call = asyncio.create_task(called(owner, N))
                await asyncio.sleep(0.15)  # it takes half a second
                await asyncio.to_thread(lines.plug, False)
                await asyncio.sleep(0.3)  # shorter than anybody's patience
                await asyncio.to_thread(lines.plug, True)
                assert await call == total(N)
                assert lines.passed() - before < 100_000
                call = asyncio.create_task(called(owner, N))
                await asyncio.sleep(0.15)
                await asyncio.to_thread(lines.plug, False)
                assert await call == total(N)
                assert lines.passed() - before > 2 * NBYTES, "to the owner and from it"

        within(lines.names["a"], test)


def test_lenders_without_a_line_between_them_go_by_way_of_the_owner() -> None:
    with laid(Triangle()) as lines:
        lines.plug(False)

        async def test() -> None:
            async with owner_of(lines) as owner:
                before = lines.passed()
                assert await called(owner, N) == total(N)
                assert lines.passed() - before > 2 * NBYTES

        within(lines.names["a"], test)
