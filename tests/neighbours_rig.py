"""An owner and two lenders, `b` and `c`, with a way from `b` to `c` that can be slowed and broken by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import workflows_for_tests as w
from hosts_rig import PATIENCE_S, Way, trio, until_settled

from dataflower.host.api import PeerState
from dataflower.host.runtime import Runtime
from dataflower.spec.workflow import Retry, Stage, Workflow

AGAIN = Retry(max_attempts=1000, interval_s=0.05, backoff_rate=1.0, jitter="none")


def on(host: str, name: str, function: str, inputs: dict[str, Any], **fields: Any) -> Stage:
    """A stage that runs on a host, and again if something is lost."""
    made = w.stage(name, function, inputs, **{"retry": AGAIN, **fields})
    return replace(made, resources=replace(made.resources, host=host))


def far(**fields: Any) -> Workflow:
    """Made on `b`, read on `c`."""
    stages = [
        on("b", "make", "fill", {"n": "inputs.x"}, **fields),
        on("c", "read", "checksum", {"x": "make.out"}),
    ]
    return w.workflow("far", stages, {"y": "read.out"})


def total(n: int) -> int:
    """What `far` says of `n` numbers."""
    return n * (n - 1) // 2


@dataclass(frozen=True)
class Three:
    """`way` leads from `b` to `c`; the owner goes past it."""

    owner: Runtime
    b: Runtime
    c: Runtime
    way: Way

    async def call(self, workflow: Workflow, **inputs: Any) -> dict[str, Any]:
        """Apply and invoke on the owner."""
        await self.owner.apply(workflow, workflow.name)
        return await (await self.owner.invoke(workflow.name, inputs)).result()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Return when nothing of any invocation is held any more."""
        await until_settled(self.owner)

    @property
    def passed(self) -> int:
        """Bytes of tensors that went through the owner."""
        return sum(peer.bytes_in + peer.bytes_out for peer in self.owner.peers())

    @property
    def straight(self) -> int:
        """Bytes of tensors that came to `c` over its line from `b`."""
        return sum(peer.bytes_in for peer in self.c.peers() if peer.state is not PeerState.OWNER)

    def lead(self, address: str) -> None:
        """Where `b` is told that `c` is."""
        self.owner._engine.remotes._remotes["c"].session.address = address


@asynccontextmanager
async def three(**settings: Any) -> AsyncIterator[Three]:
    """All of them in this process. `settings`: the owner's."""
    async with trio(**settings) as (owner, b, c):
        assert c.peer_port is not None
        way = Way(c.peer_port)
        await way.start()
        try:
            rig = Three(owner, b, c, way)
            rig.lead(f"127.0.0.1:{way.port}")
            yield rig
            await rig.settled()
        finally:
            await way.close()
