"""A lender dies while it sends another one what that is to read, or while it receives it."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
import workflows_for_tests as w
from hosts_rig import config, until_settled
from neighbours_rig import far, on, three, total
from test_host_links import _all_reaped, _until, lender

from dataflower.core import lines
from dataflower.host.api import PeerState
from dataflower.host.runtime import Runtime
from dataflower.spec.workflow import Batch, Fanout, Resources, Workflow

pytestmark = pytest.mark.fault
N = 1_000_000
SLOW = Resources(host="b", bandwidth=4e6)


def streamed() -> Workflow:
    """Items of `b` that are read on `c` one after the other."""
    stages = [
        on("b", "make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True, resources=SLOW),
        on("c", "read", "sum_items", {"items": w.edge("make.out")}),
    ]
    ports = (w.Port("n", w.INT), w.Port("nbytes", w.INT))
    return w.workflow("streamed", stages, {"y": "read.out"}, ports)


def together() -> Workflow:
    """A batch on `c` of arrays that `b` made."""
    stages = [
        on("b", "make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True, resources=SLOW),
        on("c", "read", "sum_together", {"x": w.edge("make.out", Fanout.EACH)}, batch=Batch(max_size=4, wait_ms=50.0)),
        w.stage("all", "total", {"items": w.edge("read.out", Fanout.GATHER)}),
    ]
    ports = (w.Port("n", w.INT), w.Port("nbytes", w.INT))
    return w.workflow("together", stages, {"y": "all.out"}, ports)


MANY = {"n": 8, "nbytes": 500_000}
CASES = (
    (far(resources=SLOW), {"x": N}, {"x": 10}, total(N)),
    (streamed(), MANY, {"n": 1, "nbytes": 10}, 500_000 * 28),
    (together(), MANY, {"n": 1, "nbytes": 10}, 500_000 * 28),
)


@pytest.mark.parametrize("victim", ["b", "c"])
async def test_a_lender_that_dies_on_the_way_loses_nothing(victim: str) -> None:
    """Values, items of a stream, and members of a batch."""
    async with contextlib.AsyncExitStack() as stack:
        started = {name: await stack.enter_async_context(lender(0, name)) for name in "bc"}
        peers = tuple(f"{name}=127.0.0.1:{port}" for name, (_, port) in started.items())
        owner = await stack.enter_async_context(Runtime(config(host_name="a", peers=peers)))
        for flow, _, small, _ in CASES:
            await owner.apply(flow, flow.name)
            await (await owner.invoke(flow.name, small)).result()
        calls = [await owner.invoke(flow.name, given) for flow, given, _, _ in CASES]
        results = [asyncio.create_task(call.result()) for call in calls]
        await asyncio.sleep(0.4)  # a part of it is on its way: all of it takes a second
        assert not any(result.done() for result in results)
        process, port = started[victim]
        process.kill()
        await process.wait()
        await _until(lambda: _state(owner, victim) is PeerState.LOST)
        await stack.enter_async_context(lender(port, victim))
        assert [await result for result in results] == [{"y": expected} for *_, expected in CASES]
        await until_settled(owner)
        if victim == "b":  # while `c` is not known to be gone, what can't go there straight comes to the owner
            assert sum(peer.bytes_in + peer.bytes_out for peer in owner.peers()) == 0
    await _until(_all_reaped)


def _state(owner: Runtime, name: str) -> PeerState:
    return next(peer.state for peer in owner.peers() if peer.name == name)


async def test_a_storm_of_cuts_and_cancels_loses_doubles_and_mixes_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are used again and again, straight and by way of the owner, while lines break for a while and for good."""
    monkeypatch.setattr(lines, "FIRST_PAUSE_S", 0.05)
    rng = random.Random(11)
    flow = far(resources=Resources(host="b", bandwidth=80e6))
    async with three() as hosts:
        await hosts.owner.apply(flow, "far")

        async def one() -> None:
            n = rng.randint(1, 300_000)
            call = await hosts.owner.invoke("far", {"x": n})
            if rng.random() < 0.25:
                await asyncio.sleep(rng.random() * 0.1)
                call.cancel()
            else:
                assert await call.result() == {"y": total(n)}

        async def some() -> None:
            for _ in range(15):
                await one()

        async def weather() -> None:
            while True:
                await asyncio.sleep(rng.random() * 0.15)
                if rng.random() < 0.5:
                    hosts.way.cut()
                    continue
                hosts.lead("127.0.0.1:1" if rng.random() < 0.3 else f"127.0.0.1:{hosts.way.port}")
                for owner in hosts.b._engine.lender._owners.values():
                    for outward in list(owner.neighbours._outward.values()):
                        if outward._connection is not None:
                            outward._connection._lose("lightning", fatal=True)

        clouds = asyncio.create_task(weather())
        try:
            await asyncio.gather(*(some() for _ in range(6)))
        finally:
            clouds.cancel()
        await hosts.settled()
        assert hosts.way.passed > 0, "straight"
        assert hosts.passed > 0, "and by way of the owner"
        await hosts.until(lambda: all(not _waits(lender) for lender in (hosts.b, hosts.c)))
        book = hosts.owner._engine.remotes.lines
        assert not book._tickets
        assert not book._fetching


def _waits(lender: Runtime) -> list[object]:
    """What a lender still holds of messages that wait for bytes."""
    found: list[object] = []
    assert lender._engine.lender is not None
    for owner in lender._engine.lender._owners.values():
        inbox = owner.ferry.inbox
        found.extend((*inbox._queues, *inbox._waiters, *inbox._came, *inbox._void, *inbox._over))
        for outward in owner.neighbours._outward.values():
            found.extend(outward._shipped)
    return found
