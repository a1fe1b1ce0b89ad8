"""Connections between hosts that break, and hosts that die: nothing is lost, nothing comes twice, nobody hangs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import workflows_for_tests as w
from hosts_rig import TOKEN, config, pair

from dataflower.channel.mux import HEADER, Kind
from dataflower.errors import InvocationFailed
from dataflower.host.api import PeerState
from dataflower.host.meeting import Credentials, meet_lender
from dataflower.host.runtime import Runtime
from dataflower.spec.workflow import Fanout, Retry

AGAIN = Retry(max_attempts=1000, interval_s=0.05, backoff_rate=1.0, jitter="none")


async def test_a_connection_that_breaks_again_and_again_loses_nothing() -> None:
    """Large tensors both ways, and a stream of items each of which must come once and in order."""
    stages = [
        w.stage("make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True),
        w.stage("copy", "double", {"x": w.edge("make.out", Fanout.EACH)}),
        w.stage("all", "passthrough", {"x": w.edge("copy.out", Fanout.GATHER)}),
    ]
    inputs = w.counting().inputs
    workflow = w.workflow("many", stages, {"y": "all.out"}, (*inputs, type(inputs[0])("nbytes", inputs[0].type)))
    rng = random.Random(7)
    async with pair("many.copy=b") as hosts:
        await hosts.owner.apply(workflow, "many")
        invocation = await hosts.owner.invoke("many", {"n": 24, "nbytes": 1 << 20})
        result = asyncio.create_task(invocation.result())
        for _ in range(12):
            goal = hosts.way.passed + rng.randint(1 << 16, 3 << 20)
            while hosts.way.passed < goal and not result.done():
                await asyncio.sleep(0.001)
            hosts.way.cut()
        found = (await result)["y"]
        assert len(found) == 24
        expected = [2 * array for array in _arrays(24, 1 << 20)]
        assert all(np.array_equal(left, right) for left, right in zip(found, expected, strict=True))
        assert hosts.owner.workflow("many").stages[1].done == 24
        assert hosts.way.connections > 3
        assert hosts.owner.statistics().engine.violations == 0


def _arrays(count: int, nbytes: int) -> list[np.ndarray]:
    import functions_for_tests

    return list(functions_for_tests.arrays(count, nbytes))


async def test_a_cut_in_the_middle_of_one_tensor_goes_on_where_it_was() -> None:
    x = np.frombuffer(random.Random(1).randbytes(48 << 20), np.uint8)
    async with pair("checksum.only=b") as hosts:
        await hosts.call(w.single("checksum"), x=np.zeros(1, np.uint8))
        passed = hosts.way.passed
        answer = asyncio.create_task(hosts.call(w.single("checksum"), x=x))
        for part in (1, 2, 3):
            await hosts.until(lambda part=part: hosts.way.passed - passed > part * 10 << 20)
            hosts.way.cut()
        assert (await answer)["y"] == int(x.sum(dtype=np.int64))
        # What had arrived is not sent again; what was in buffers on the way is.
        assert hosts.way.passed - passed < 48 << 20 | 24 << 20


async def test_a_host_that_hears_nothing_for_too_long_counts_as_gone() -> None:
    async with pair("sleep.only=b", peer_timeout_s=0.5, lender={"peer_timeout_s": 0.5}) as hosts:
        await hosts.owner.apply(w.single("sleep"), "sleep")
        invocation = await hosts.owner.invoke("sleep", {"x": 60.0})
        await hosts.until(lambda: hosts.owner.workflow("sleep").stages[0].busy == 1)
        hosts.way.open.clear()
        hosts.way.cut()
        with pytest.raises(InvocationFailed, match=r"ContainerCrashed.*host 'b'"):
            await invocation.result()
        await hosts.until(lambda: not hosts.lender.container_pids() and not hosts.lender.peers())
        hosts.way.open.set()
        hosts.way.cut()
        await hosts.until(lambda: hosts.owner.peers()[0].state is PeerState.CONNECTED)
        assert await hosts.call(w.single("sleep"), x=0.0) == {"y": 0.0}


@asynccontextmanager
async def lender(port: int = 0, name: str = "b") -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A host in a process of its own, and its port."""
    program = str(Path(__file__).parent / "lender_process.py")
    paths = os.pathsep.join((str(Path(__file__).parent.parent), *filter(None, sys.path)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        program,
        str(port),
        name,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout is not None
    try:
        yield process, int(await process.stdout.readline())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_killed_host_costs_its_tasks_an_attempt_and_no_more() -> None:
    chain = w.chain(2)
    waiting = dataclasses.replace(chain.stages["s1"], retry=AGAIN, function="functions_for_tests:wait_for_file")
    workflow = dataclasses.replace(chain, stages={**chain.stages, "s1": waiting})
    async with contextlib.AsyncExitStack() as stack:
        process, port = await stack.enter_async_context(lender())
        settings = config(host_name="a", peers=(f"b=127.0.0.1:{port}",), placement=("chain.s1=b",))
        host = await stack.enter_async_context(Runtime(settings))
        await host.apply(workflow, "chain")
        gate = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gate"
        invocation = await host.invoke("chain", {"x": str(gate)})
        result = asyncio.create_task(invocation.result())
        await _until(gate.with_suffix(".started").exists)  # what has not begun may be given out again for nothing
        process.kill()
        await process.wait()
        await _until(lambda: host.peers()[0].state is PeerState.LOST)
        await _until(lambda: "Connect" in host.peers()[0].reason)
        assert not result.done()
        await stack.enter_async_context(lender(port))
        await _until(lambda: host.workflow("chain").stages[1].busy == 1)
        gate.write_text("open")
        assert (await result)["y"] == "open"
        assert invocation.trace is not None
        assert max(task.attempt for task in invocation.trace.tasks) > 1
        await _until(lambda: not host.statistics().core.slots)
    await _until(_all_reaped)


def _all_reaped() -> bool:
    """The processes of a killed host become this process's: it is a subreaper as long as a host lives in it."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


async def _until(condition: object) -> None:
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff" * 100,
        HEADER.pack(Kind.RESUME, 0, 0, 0) + HEADER.pack(Kind.MESSAGE, 4, 0, 0) + b"\xc1\xc1\xc1\xc1",
        HEADER.pack(Kind.RESUME, 0, 0, 0) + HEADER.pack(Kind.OPEN, 16, 1, 1 << 40) + bytes(16),
        HEADER.pack(Kind.RESUME, 0, 0, 0) + HEADER.pack(Kind.MESSAGE, 10, 0, 0) + b"\x93\xa1m\x00\xcf" + b"\xff" * 5,
    ],
    ids=["noise", "no message", "no memory", "no arena"],
)
async def test_nonsense_of_one_who_was_let_in_ends_his_session_alone(
    noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair("chain.s0=b") as hosts:
        assert await hosts.call(w.chain(1), x=1) == {"y": 1}
        address = f"127.0.0.1:{hosts.lender.peer_port}"
        sock, _, _ = await meet_lender(address, Credentials(TOKEN), None, ("evil", os.urandom(16), False), 5.0)
        await hosts.until(lambda: len(hosts.lender.peers()) == 2)
        await asyncio.get_running_loop().sock_sendall(sock, noise)
        await hosts.until(lambda: len(hosts.lender.peers()) == 1)
        sock.close()
        assert await hosts.call(w.chain(1), x=2) == {"y": 2}
    assert "broke the protocol" in caplog.text
