"""Memory that runs out, readers that are slow or gone: producers wait, and stop when nobody wants them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from engine_rig import CODE, PATIENCE_S, Rig, count, one_stage, opened, workflow

from dataflower.errors import Code, InvocationFailed, ResourceExhausted

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]

MIB = 1 << 20
CREDIT = 4
STREAM = workflow(
    "stream",
    f"""
inputs: {{n: int, nbytes: int, log: string}}
stages:
  make:
    function: fault_functions:blocks
    inputs: {{n: inputs.n, nbytes: inputs.nbytes, log: inputs.log}}
    credit: {{items: {CREDIT}}}
  relay:
    function: fault_functions:relayed
    inputs: {{items: make.out}}
    credit: {{items: {CREDIT}}}
outputs: {{out: relay.out}}
""",
)
DIRECT = one_stage("direct", "blocks", "n", "nbytes", "log", stage=f"credit: {{items: {CREDIT}}}")


# --- memory -------------------------------------------------------------------------------------------------------


def each_and_gather(function: str, reader: str, *inputs: str) -> str:
    declared = ", ".join(f"{name}: int" for name in inputs)
    edges = ", ".join(f"{name}: inputs.{name}" for name in inputs)
    return workflow(
        "full",
        f"""
inputs: {{{declared}}}
stages:
  make:
    function: fault_functions:{function}
    inputs: {{{edges}}}
  read:
    function: fault_functions:{reader}
    inputs: {{x: {{each: make.out}}}}
outputs: {{out: {{gather: read.out}}}}
""",
    )


async def test_a_producer_waits_while_its_memory_is_full() -> None:
    async with opened(container_arena_bytes=4 * MIB, spill_dir=None) as rig:
        await rig.client.apply(each_and_gather("blocks", "slow_first_byte", "n", "nbytes"))
        await rig.client.invoke("full", n=1, nbytes=1)
        before = set(rig.host.container_pids().values())
        for _ in range(2):
            out = await rig.client.invoke("full", n=100, nbytes=MIB, deadline_s=PATIENCE_S)
            assert out == {"out": [i % 256 for i in range(100)]}
        assert before <= set(rig.host.container_pids().values())


async def test_nothing_of_a_container_stays_taken_when_its_invocation_was_cut_off() -> None:
    """With room for four items, a fifth of what was lost in one round would stop the next."""
    async with opened(container_arena_bytes=4 * MIB, spill_dir=None) as rig:
        await rig.client.apply(each_and_gather("blocks", "slow_first_byte", "n", "nbytes"))
        await rig.client.invoke("full", n=1, nbytes=1)
        (maker,) = await rig.pids("full", "make")
        for done in (2, 5, 9, 14):
            call = asyncio.ensure_future(rig.client.invoke("full", n=10_000, nbytes=MIB))
            start = rig.host.workflow("full").stages[1].done
            await rig.until(lambda most=start + done: rig.host.workflow("full").stages[1].done > most)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await rig.settled()
        assert await rig.client.invoke("full", n=1, nbytes=4 * MIB, deadline_s=PATIENCE_S) == {"out": [0]}
        assert await rig.pids("full", "make") == [maker]


async def test_a_gather_larger_than_the_memory_fails_instead_of_hanging() -> None:
    async with opened(container_arena_bytes=4 * MIB, spill_dir=None) as rig:
        text = each_and_gather("blocks", "listed", "n", "nbytes")
        text = text.replace("{x: {each: make.out}}", "{items: {gather: make.out}}").replace(
            "{gather: read.out}", "read.out"
        )
        await rig.client.apply(text)
        with pytest.raises(InvocationFailed, match="container_arena_bytes") as caught:
            await rig.client.invoke("full", n=10, nbytes=MIB)
        assert (caught.value.failure.kind, caught.value.failure.stage) == ("MemoryFull", "make")
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert len((await rig.client.invoke("full", n=3, nbytes=MIB))["out"]) == 3


async def test_what_has_no_room_in_memory_goes_to_disk_and_is_read_back(tmp_path: Path) -> None:
    """Five times what fits: kept whole by a gather, then again, in the same slots."""
    async with opened(container_arena_bytes=4 * MIB, spill_dir=tmp_path) as rig:
        text = each_and_gather("blocks", "listed", "n", "nbytes")
        text = text.replace("{x: {each: make.out}}", "{items: {gather: make.out}}").replace(
            "{gather: read.out}", "read.out"
        )
        await rig.client.apply(text)
        for _ in range(2):
            out = (await rig.client.invoke("full", n=20, nbytes=MIB, deadline_s=PATIENCE_S))["out"]
            assert [item[0] for item in out] == list(range(20))
        assert (await rig.client.invoke("full", n=1, nbytes=16 * MIB))["out"][0].nbytes == 16 * MIB
    assert list(tmp_path.iterdir()) == []


async def test_a_tensor_on_disk_is_handed_on_and_comes_out(tmp_path: Path) -> None:
    async with opened(container_arena_bytes=4 * MIB, spill_dir=tmp_path) as rig:
        await rig.client.apply(one_stage("big", "block", "n", stage="outputs: {out: any}"))
        assert (await rig.client.invoke("big", n=32 * MIB))["out"].nbytes == 32 * MIB
        (pid,) = await rig.pids("big", "only")
        await rig.client.invoke("big", n=8 * MIB)
        assert await rig.pids("big", "only") == [pid]


async def test_a_killed_reader_gives_back_what_it_read() -> None:
    async with opened(container_arena_bytes=4 * MIB, spill_dir=None) as rig:
        again = "\n    retry: {errors: [ContainerCrashed], max_attempts: 100, interval_s: 0, jitter: none}\n"
        text = each_and_gather("blocks", "slow_first_byte", "n", "nbytes")
        await rig.client.apply(text.replace("{each: make.out}}\n", "{each: make.out}}" + again))
        call = asyncio.ensure_future(rig.client.invoke("full", n=60, nbytes=MIB, deadline_s=PATIENCE_S))
        for killed in range(1, 6):
            await rig.until(lambda most=killed * 5: rig.host.workflow("full").stages[1].done > most)
            with contextlib.suppress(ProcessLookupError):  # the one before, of which the host has not heard yet
                os.kill((await rig.pids("full", "read"))[0], signal.SIGKILL)
        assert await call == {"out": list(range(60))}
        assert await rig.client.invoke("full", n=1, nbytes=4 * MIB, deadline_s=PATIENCE_S) == {"out": [0]}


async def test_a_tensor_that_can_never_fit_is_told_with_the_setting() -> None:
    async with opened(container_arena_bytes=4 * MIB, spill_dir=None) as rig:
        await rig.client.apply(one_stage("big", "block", "n", stage="outputs: {out: any}"))
        with pytest.raises(InvocationFailed, match=r"setting container_arena_bytes\b") as caught:
            await rig.client.invoke("big", n=4 * MIB + 1)
        failure = caught.value.failure
        assert (failure.code, failure.kind) == (Code.RESOURCE_EXHAUSTED, "ResourceExhausted")
        assert (failure.stage, failure.attempt) == ("only", 1)
        assert (await rig.client.invoke("big", n=4 * MIB))["out"].nbytes == 4 * MIB


async def test_inputs_that_can_never_fit_are_refused_with_the_setting() -> None:
    async with opened(host_arena_bytes=MIB) as rig:
        with pytest.raises(ResourceExhausted, match=r"setting host_arena_bytes\b"):
            await rig.client.invoke("echo", x=np.zeros(2 * MIB, np.uint8))


@pytest.mark.parametrize("spare", [2, 5])
async def test_without_descriptors_calls_fail_and_with_them_they_work_again(spare: int) -> None:
    async with opened() as rig:
        await rig.client.apply(each_and_gather("blocks", "first_byte", "n", "nbytes"))
        await rig.client.invoke("echo", x=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + spare, hard))
        try:
            with pytest.raises(InvocationFailed, match="Too many open files"):
                await rig.client.invoke("full", n=5, nbytes=100_000, deadline_s=PATIENCE_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await rig.settled()
        out = await rig.client.invoke("full", n=5, nbytes=100_000, deadline_s=PATIENCE_S)
        assert out == {"out": [0, 1, 2, 3, 4]}


# --- slow readers -------------------------------------------------------------------------------------------------


async def test_a_producer_is_never_more_than_its_credit_ahead_of_a_slow_reader(tmp_path: Path) -> None:
    """One item more has been begun: it waits for its credit."""
    log = tmp_path / "made"
    async with opened() as rig:
        await rig.client.apply(DIRECT)
        invocation = await rig.host.invoke("direct", {"n": 40, "nbytes": 1000, "log": str(log)})
        read, most = 0, 0
        async for item in invocation.outputs():  # in our hands: it is not taken before we ask for the next
            wanted = min(read + CREDIT, 40)
            await rig.until(lambda wanted=wanted: count(log) >= wanted)  # type: ignore[misc]
            await asyncio.sleep(0.02)  # for one that would go further than it may
            assert item.value[0] == read
            most = max(most, count(log) - read)
            read += 1
        assert (read, count(log)) == (40, 40)
        assert CREDIT <= most <= CREDIT + 1


async def test_a_slow_client_holds_back_a_chain_of_stages(tmp_path: Path) -> None:
    log, buffered = tmp_path / "made", 24 * MIB
    async with opened() as rig:
        await rig.client.apply(DIRECT)
        n, read = 80, 0
        # What is under way in gRPC and its sockets counts as read for the host: bounded by bytes, not by items.
        most_ahead = CREDIT + 2 + buffered // MIB
        async for item in rig.client.stream("direct", n=n, nbytes=MIB, log=str(log)):
            assert item.index == read
            read += 1
            assert count(log) <= read + most_ahead
            await asyncio.sleep(0.05 if read < 20 else 0)
        assert (read, count(log)) == (n, n)


# --- readers that are gone ----------------------------------------------------------------------------------------


async def test_a_reader_that_cancels_stops_everything_upstream(tmp_path: Path) -> None:
    log = tmp_path / "made"
    async with opened() as rig:
        await rig.client.apply(STREAM)
        stream = rig.client.stream("stream", n=10**9, nbytes=100_000, log=str(log))
        for i in range(10):
            assert (await anext(stream)).value == i
        processes = rig.host.container_pids()
        stream.cancel()
        await rig.settled()
        assert rig.host.statistics().cancelled == 1
        made = count(log)
        assert (await rig.client.invoke("stream", n=3, nbytes=10, log=""))["out"] == [0, 1, 2]
        assert count(log) == made
        assert rig.host.container_pids() == processes


LEAVERS = {
    "reading a stream": "for item in client.stream('stream', n=10**9, nbytes=100000, log=sys.argv[2]): say()",
    "waiting for the answer": "say(); client.invoke('stream', n=10**9, nbytes=100000, log=sys.argv[2])",
    "feeding a stream": "for item in client.stream('feed', items=numbers()): say()",
}
SCRIPT = """
import itertools, sys
import numpy as np
from dataflower.gateway.client import Client

def numbers():
    for i in itertools.count():
        yield np.full(100000, i % 256, np.uint8)

def say():
    print("here", flush=True)

client = Client(sys.argv[1])
{}
"""
FEED = workflow(
    "feed",
    """
inputs: {items: {type: any, stream: true}}
stages:
  relay: {function: "fault_functions:relayed", inputs: {items: inputs.items}}
outputs: {out: relay.out}
""",
)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened() as rig:
        yield rig


@pytest.mark.parametrize("how", LEAVERS)
@pytest.mark.parametrize("stopped", [False, True])
async def test_a_client_killed_on_the_way_leaves_nothing_running(
    rig: Rig, tmp_path: Path, how: str, stopped: bool
) -> None:
    log = tmp_path / "made"
    await rig.client.apply(STREAM)
    await rig.client.apply(FEED)
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT.format(LEAVERS[how]), rig.address, str(log)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([CODE, *sys.path])},
    )
    assert client.stdout is not None
    try:
        assert await client.stdout.readline() == b"here\n"
        await rig.until(lambda: rig.host.statistics().core.tasks > 0)
        if stopped:
            client.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.3)  # for the buffers on the way to fill
    finally:
        client.kill()
        await client.communicate()
    await rig.settled()
    statistics = rig.host.statistics()
    assert (statistics.cancelled, statistics.running) == (1, 0)
    made = count(log)
    assert (await rig.client.invoke("stream", n=3, nbytes=10, log=""))["out"] == [0, 1, 2]
    assert count(log) == made


async def test_fork_servers_of_a_removed_workflow_end_and_come_back_with_it() -> None:
    text = one_stage("other", "echo", "x", stage="preload: [torch]")
    async with opened() as rig:
        before = rig.host.zygote_pids()
        await rig.client.apply(text)
        await rig.until(lambda: len(rig.host.zygote_pids()) == len(before) + 1)
        assert await rig.client.invoke("other", x=1) == {"out": 1}
        await rig.client.delete("other")
        await rig.until(lambda: rig.host.zygote_pids() == before)  # with its last container
        await rig.client.apply(text)
        assert await rig.client.invoke("other", x=2) == {"out": 2}
        assert rig.host.statistics().engine.launcher.zygotes_lost == 0
