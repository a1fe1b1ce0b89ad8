"""A lender dies while it sends another one what that is to read, or while it receives it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import workflows_for_tests as w
from hosts_rig import config, until_settled
from neighbours_rig import far, on, total
from test_host_links import _all_reaped, _until, lender

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
