"""A container that speaks for itself, and not the truth: it is named and ended, and others are served meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_rig import PATIENCE_S, Rig, opened, workflow
from hostile_functions import ACTS

from dataflower import wire
from dataflower.channel.arena import SEGMENT_BYTES
from dataflower.errors import Code, InvocationFailed
from dataflower.host.links import ProtocolViolation

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]

HOSTILE = workflow(
    "hostile",
    "inputs: {act: string}\nstages:\n  liar: {function: 'hostile_functions:hostile', inputs: {act: inputs.act}}\n"
    "outputs: {out: liar.out}\n",
)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened(code_path=(str(Path(__file__).parent), str(Path(__file__).parent.parent))) as rig:
        yield rig


@pytest.mark.parametrize("act", ACTS)
async def test_whatever_a_container_says_it_alone_is_ended(rig: Rig, act: str) -> None:
    await rig.client.apply(HOSTILE)
    assert await rig.client.invoke("echo", x=1) == {"out": 1}
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke("hostile", act=act, deadline_s=PATIENCE_S)
    failure = caught.value.failure
    told = (failure.code, failure.kind, failure.stage)
    assert told == (Code.INTERNAL, "ContainerCrashed", "liar"), failure
    assert "container of stage 'liar'" in failure.message
    assert "protocol" in failure.message or "did not leave" in failure.message or "exited" in failure.message
    assert await rig.client.invoke("echo", x=2) == {"out": 2}
    assert await rig.client.invoke("hostile", act="none") == {"out": "nothing"}


@pytest.mark.parametrize("act", [act for act in ACTS if "memory" in act or "arena" in act])
async def test_memory_that_is_not_its_own_is_none_without_a_sandbox_either(rig: Rig, act: str) -> None:
    await rig.client.apply(HOSTILE.replace("act: inputs.act}}", "act: inputs.act}, isolation: process}"))
    assert await rig.client.invoke("echo", x=1) == {"out": 1}
    with pytest.raises(InvocationFailed, match="ContainerCrashed"):
        await rig.client.invoke("hostile", act=act, deadline_s=PATIENCE_S)
    assert await rig.client.invoke("hostile", act="none") == {"out": "nothing"}


async def test_a_container_that_reads_nothing_does_not_fill_the_host(rig: Rig) -> None:
    assert await rig.client.invoke("echo", x=1) == {"out": 1}
    (pid,) = await rig.pids("echo", "only")
    (peer,) = rig.host._engine._peers.values()
    os.kill(pid, signal.SIGSTOP)
    try:
        for task in range(30_000):
            peer.tell(wire.Grant(1 << 40 | task, 1, 1))
        with pytest.raises(ProtocolViolation, match="does not read"):
            peer.check_heard()
    finally:
        os.kill(pid, signal.SIGCONT)
    await rig.until(lambda: peer.control.statistics().waiting == 0)
    peer.check_heard()
    assert await rig.pids("echo", "only") == [pid]


async def test_an_arena_on_disk_counts_for_what_may_be_spilled(rig: Rig) -> None:
    """As many segments as an honest container may make, of the sizes that it makes."""
    assert await rig.client.invoke("echo", x=1) == {"out": 1}
    (peer,) = rig.host._engine._peers.values()
    config = rig.host.config
    for _ in range(2 * config.container_spill_bytes // SEGMENT_BYTES):
        peer.add_arena(SEGMENT_BYTES)
    for _ in range(20):
        peer.add_arena(config.container_arena_bytes // 10)
