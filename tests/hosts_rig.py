"""Two hosts that know each other, and a way between them that can be broken."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import workflows_for_tests as w

from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Workflow
from dataflower.testing.line import Line

TOKEN = "a token for tests"
PATIENCE_S = 60.0


def config(**settings: Any) -> HostConfig:
    places = {"code_path": w.CODE_PATH, "writable_paths": (tempfile.gettempdir(),)}  # functions leave marks there
    usual = {"cpus": 2, "cancel_grace_s": 0.3, "stop_grace_s": 2.0, "peer_token": TOKEN, "peer_timeout_s": 5.0}
    return HostConfig(**{**places, **usual, **settings})


class Way(Line):
    """The way to a host, which also knows what went by first."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port))
        self._seen = b""

    def saw(self, data: bytes) -> None:
        self._seen = self._seen[-4096:] + data if len(self._seen) < 1 << 20 else self._seen

    def has_seen(self, secret: bytes) -> bool:
        """Whether these bytes went by among the first."""
        return secret in self._seen


@dataclass(frozen=True)
class Pair:
    """`owner` has the workflows; `lender` is its host `b`."""

    owner: Runtime
    lender: Runtime
    way: Way

    async def call(self, workflow: Workflow, **inputs: Any) -> dict[str, Any]:
        """Apply and invoke on the owner."""
        await self.owner.apply(workflow, workflow.name)
        return await (await self.owner.invoke(workflow.name, inputs)).result()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"it never came true; {self.owner.peers()}, {self.owner.statistics()}"
            await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Return when nothing of any invocation is held any more."""
        await until_settled(self.owner)

    def guests(self) -> int:
        """Containers that the lender runs for the owner."""
        return sum(peer.containers for peer in self.lender.peers())


async def until_settled(owner: Runtime) -> None:
    """Return when nothing of any invocation is held any more."""
    async with asyncio.timeout(PATIENCE_S):
        while (core := owner.statistics().core).slots or core.invocations or core.tasks:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def pair(*placement: str, lender: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Pair]:
    """`placement`: `workflow.stage=b`. `settings`: the owner's, `lender`: of the other."""
    async with Runtime(config(peer_port=0, host_name="b", **(lender or {}))) as there:
        assert there.peer_port is not None
        way = Way(there.peer_port)
        await way.start()
        try:
            peers = (f"b=127.0.0.1:{way.port}",)
            async with Runtime(config(host_name="a", peers=peers, placement=placement, **settings)) as here:
                rig = Pair(here, there, way)
                yield rig
                await rig.settled()
        finally:
            await way.close()


@asynccontextmanager
async def trio(
    *placement: str, lenders: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Runtime, Runtime, Runtime]]:
    """An owner and two lenders, `b` and `c`. `settings`: the owner's, `lenders`: of the others."""
    async with (
        Runtime(config(peer_port=0, host_name="b", **(lenders or {}))) as b,
        Runtime(config(peer_port=0, host_name="c", **(lenders or {}))) as c,
        Runtime(
            config(
                host_name="a",
                peers=tuple(f"{name}=127.0.0.1:{host.peer_port}" for name, host in (("b", b), ("c", c))),
                placement=placement,
                **settings,
            )
        ) as a,
    ):
        yield a, b, c
