"""A host with its front door, and what must be true of it after every fault."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflower.config.sources import load_text
from dataflower.gateway.async_client import AsyncClient
from dataflower.gateway.server import serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

CODE = str(Path(__file__).parent)
load = functools.partial(load_text, code_path=(CODE,))
HEAD = "apiVersion: dataflower/v1\nkind: Workflow\nmetadata: {name: %s}\n"
AGAIN = "retry: {errors: [ContainerCrashed], max_attempts: 1000, interval_s: 0.01, backoff_rate: 1, jitter: none}"
PATIENCE_S = 60.0
"""For what must come about by itself, on a machine that others use as well."""


def workflow(name: str, body: str) -> str:
    """A workflow file."""
    return HEAD % name + body


def one_stage(name: str, function: str, *inputs: str, stage: str = "") -> str:
    """A workflow file with one stage, `only`, and the output `out`; `stage`: further keys of the stage."""
    declared = ", ".join(f"{port}: any" for port in inputs)
    edges = ", ".join(f"{port}: inputs.{port}" for port in inputs)
    extra = f"    {stage}\n" if stage else ""
    return workflow(
        name,
        f"inputs: {{{declared}}}\nstages:\n  only:\n    function: fault_functions:{function}\n"
        f"    inputs: {{{edges}}}\n{extra}outputs: {{out: only.out}}\n",
    )


ECHO = one_stage("echo", "echo", "x")


@dataclass(frozen=True)
class Rig:
    """A host, its front door's address, a client of it."""

    host: Runtime
    address: str
    client: AsyncClient

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"it never came true; the host: {self.host.statistics()}"
            await asyncio.sleep(0.005)

    async def pids(self, workflow: str, stage: str) -> list[int]:
        """Process ids of a stage's containers, once there is one that has been forked."""

        def found() -> list[int]:
            numbers = [n for n, peer in self.host._engine._peers.items() if peer.stage == stage and peer.key == key]
            known = self.host.container_pids()
            return [known[n] for n in numbers if n in known]

        key = f"{workflow}@{self.host.workflow(workflow).version}"
        await self.until(lambda: bool(found()))
        return found()

    async def settled(self) -> None:
        """Return when everything that was ended has been given back; fails if that never comes."""

        def clean() -> bool:
            core = self.host.statistics().core
            own = self.host._engine.arenas.statistics().slots
            return (core.slots, core.tasks, core.queued, core.invocations, own) == (0, 0, 0, 0, 0)

        await self.until(clean)
        self.host._core.check_integrity()


@contextlib.asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Rig]:
    """A host that is as good as new when the block ends: nothing held, nothing running, and it still works."""
    places = {"code_path": (CODE,), "writable_paths": (tempfile.gettempdir(),)}
    given = {"cpus": 2, "cancel_grace_s": 0.3, "stop_grace_s": 3.0, **places, **settings}
    async with (
        Runtime(HostConfig(**given), load=load) as host,
        await serve(host, GatewayConfig(port=0), load=load) as gateway,
        AsyncClient(f"127.0.0.1:{gateway.grpc_port}") as client,
    ):
        rig = Rig(host, f"127.0.0.1:{gateway.grpc_port}", client)
        await client.apply(ECHO)
        yield rig
        await rig.settled()
        assert await client.invoke("echo", x={"still": ["here"]}, deadline_s=PATIENCE_S) == {"out": {"still": ["here"]}}
        await rig.settled()


def count(path: Path) -> int:
    """How often `fault_functions.mark` left its byte."""
    return path.stat().st_size if path.exists() else 0
