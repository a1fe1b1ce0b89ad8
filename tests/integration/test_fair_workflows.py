"""Two workflows on one host: who has much to do keeps nobody out who has little."""

from __future__ import annotations

import asyncio

import workflows_for_tests as w
from hosts_rig import config

from dataflower.host.runtime import Runtime
from dataflower.host.settings import DefaultIsolation

MANY, CALLS = 64, 30


async def test_one_call_at_a_time_beside_many_is_not_overtaken_more_often_than_its_turn_comes() -> None:
    """One of `MANY` + 1 that wait is its own, so it is every such one that ends, were all taken in turn."""
    async with Runtime(config(isolation=DefaultIsolation.PROCESS)) as host:
        for name in ("busy", "calm"):
            stages = [w.stage("only", "passthrough", {"x": "inputs.x"})]
            await host.apply(w.workflow(name, stages, {"y": "only.out"}), name)
            await (await host.invoke(name, {"x": 1})).result()
        ended, over = 0, False

        async def caller() -> None:
            nonlocal ended
            while not over:
                await (await host.invoke("busy", {"x": 1})).result()
                ended += 1

        callers = [asyncio.create_task(caller()) for _ in range(MANY)]
        while ended < 2 * MANY:
            await asyncio.sleep(0.01)
        before = ended
        for call in range(CALLS):
            assert (await (await host.invoke("calm", {"x": call})).result())["y"] == call
        others = ended - before
        over = True
        await asyncio.gather(*callers)
    assert CALLS <= others <= MANY * CALLS
