"""Two hosts in network namespaces of their own, joined by a narrow line that is cut, killed and unplugged."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import functions_for_tests
import numpy as np
import pytest
import workflows_for_tests as w
from hosts_rig import config
from namespaces_rig import laid, run, within

from dataflower.errors import InvocationFailed
from dataflower.host.api import PeerState
from dataflower.host.runtime import Runtime
from dataflower.spec.workflow import Fanout

pytestmark = pytest.mark.slow

OWNER, LENDER = "10.79.3.1", "10.79.3.2"
PORT = 8003
PROGRAM = """
import asyncio
from hosts_rig import config
from dataflower.host.runtime import Runtime
async def main():
    settings = config(peer_port=%d, peer_address="0.0.0.0", host_name="b", peer_timeout_s=2.0)
    async with Runtime(settings) as host:
        print(host.peer_port, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


class Line:
    """The two namespaces and what joins them: 200 Mbit/s each way."""

    def __init__(self) -> None:
        self.owner, self.lender = f"dfo{os.getpid()}", f"dfl{os.getpid()}"

    def make(self) -> None:
        for name in (self.owner, self.lender):
            run("ip", "netns", "add", name)
        one, other = self.owner, self.lender
        run("ip", "-n", one, "link", "add", "line", "type", "veth", "peer", "name", "line", "netns", other)
        for name, address in ((one, OWNER), (other, LENDER)):
            run("ip", "-n", name, "addr", "add", f"{address}/30", "dev", "line")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "line", "up")
            shape = ("tbf", "rate", "200mbit", "burst", "64kb", "latency", "100ms")
            run("tc", "-n", name, "qdisc", "add", "dev", "line", "root", *shape)

    def kill_connections(self) -> None:
        """End every TCP connection to the lender, in both kernels, whatever is on its way."""
        run("ip", "netns", "exec", self.owner, "ss", "-K", "dst", LENDER, "dport", "=", str(PORT))

    def plug(self, state: str) -> None:
        """`up` or `down`."""
        run("ip", "-n", self.owner, "link", "set", "line", state)

    def remove(self) -> None:
        for name in (self.owner, self.lender):
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True, timeout=20)


@asynccontextmanager
async def hosts(joined: Line) -> AsyncIterator[Runtime]:
    """The owner, in the calling thread's namespace; the lender runs in the other one."""
    paths = os.pathsep.join((str(Path(__file__).parent.parent), *filter(None, sys.path)))
    command = ("ip", "netns", "exec", joined.lender, sys.executable, "-P", "-c", PROGRAM % PORT)
    process = await asyncio.to_thread(
        subprocess.Popen, command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    assert process.stdout is not None
    try:
        assert int(await asyncio.to_thread(process.stdout.readline)) == PORT
        placement = ("many.copy=b", "sleep.only=b")
        settings = config(host_name="a", peers=(f"b={LENDER}:{PORT}",), placement=placement, peer_timeout_s=2.0)
        async with Runtime(settings) as host:
            yield host
            async with asyncio.timeout(60):
                while host.statistics().core.slots or host.statistics().core.tasks:
                    await asyncio.sleep(0.01)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        process.stdout.close()


def many() -> w.Workflow:
    """Items of a megabyte, each copied on the other host, and put together again."""
    stages = [
        w.stage("make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True),
        w.stage("copy", "double", {"x": w.edge("make.out", Fanout.EACH)}),
        w.stage("all", "passthrough", {"x": w.edge("copy.out", Fanout.GATHER)}),
    ]
    (number,) = w.counting().inputs
    return w.workflow("many", stages, {"y": "all.out"}, (number, type(number)("nbytes", number.type)))


def test_killed_connections_lose_and_double_nothing() -> None:
    with laid(Line(), "ss") as joined:

        async def test() -> None:
            async with hosts(joined) as host:
                await host.apply(many(), "many")
                invocation = await host.invoke("many", {"n": 16, "nbytes": 1 << 20})
                result = asyncio.create_task(invocation.result())
                cuts = 0
                while not result.done() and cuts < 4:
                    before = host.peers()[0].bytes_out
                    while host.peers()[0].bytes_out < before + (2 << 20) and not result.done():
                        await asyncio.sleep(0.005)
                    await asyncio.to_thread(joined.kill_connections)
                    cuts += 1
                found = (await result)["y"]
                expected = [2 * array for array in functions_for_tests.arrays(16, 1 << 20)]
                assert len(found) == 16
                assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
                assert host.workflow("many").stages[1].done == 16
                assert cuts > 1

        within(joined.owner, test)


def test_an_unplugged_line_is_survived_if_it_is_short_and_told_of_if_it_is_long() -> None:
    with laid(Line(), "ss") as joined:

        async def test() -> None:
            async with hosts(joined) as host:
                await host.apply(w.single("sleep"), "sleep")
                first = await host.invoke("sleep", {"x": 1.0})
                while not host.workflow("sleep").stages[0].busy:
                    await asyncio.sleep(0.01)
                joined.plug("down")
                await asyncio.sleep(0.3)  # shorter than anybody's patience
                joined.plug("up")
                assert await first.result() == {"y": 1.0}
                second = await host.invoke("sleep", {"x": 60.0})
                while not host.workflow("sleep").stages[0].busy:
                    await asyncio.sleep(0.01)
                joined.plug("down")
                with pytest.raises(InvocationFailed, match=r"ContainerCrashed.*host 'b'"):
                    await second.result()
                assert host.peers()[0].state is PeerState.LOST
                joined.plug("up")
                async with asyncio.timeout(60):
                    while host.peers()[0].state is not PeerState.CONNECTED:
                        await asyncio.sleep(0.01)
                assert await (await host.invoke("sleep", {"x": 0.0})).result() == {"y": 0.0}

        within(joined.owner, test)
