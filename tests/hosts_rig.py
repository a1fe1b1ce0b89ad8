"""Two hosts that know each other, and a way between them that can be broken."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import workflows_for_tests as w

from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Workflow

TOKEN = "a token for tests"
PATIENCE_S = 20.0


def config(**settings: Any) -> HostConfig:
    places = {"code_path": w.CODE_PATH, "writable_paths": (tempfile.gettempdir(),)}  # functions leave marks there
    usual = {"cpus": 2, "cancel_grace_s": 0.3, "stop_grace_s": 2.0, "peer_token": TOKEN, "peer_timeout_s": 5.0}
    return HostConfig(**{**places, **usual, **settings})


class Way:
    """A proxy in front of a host: counts bytes, delays them, cuts connections, lets nobody through for a while."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.passed = 0
        """Bytes in both directions."""
        self.connections = 0
        self.open = asyncio.Event()
        self.open.set()
        self.piece = 1 << 16
        self.delay_s = 0.0
        """How long bytes are on their way, in each direction."""
        self._seen = b""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        self._pairs.add(writer)
        try:
            await self.open.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._pairs.add(back)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        late: deque[bytes] = deque()
        with contextlib.suppress(OSError):
            while data := await reader.read(self.piece):
                self.passed += len(data)
                self._seen = self._seen[-4096:] + data if len(self._seen) < 1 << 20 else self._seen
                if self.delay_s:
                    late.append(data)
                    loop.call_later(self.delay_s, lambda: writer.write(late.popleft()))
                else:
                    writer.write(data)
                    await writer.drain()
        loop.call_later(self.delay_s, writer.close)

    def has_seen(self, secret: bytes) -> bool:
        """Whether these bytes went by among the first."""
        return secret in self._seen

    def cut(self) -> None:
        """Break every connection, whatever is on its way."""
        pairs, self._pairs = self._pairs, set()
        for writer in pairs:
            writer.transport.abort()

    def refuse(self) -> None:
        """Be gone, as a host is that was shut down."""
        self._server.close()
        self.cut()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


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

        def clean() -> bool:
            core = self.owner.statistics().core
            return not (core.slots or core.invocations or core.tasks)

        await self.until(clean)

    def guests(self) -> int:
        """Containers that the lender runs for the owner."""
        return sum(peer.containers for peer in self.lender.peers())


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
async def trio(*placement: str) -> AsyncIterator[tuple[Runtime, Runtime, Runtime]]:
    """An owner and two lenders, `b` and `c`."""
    async with (
        Runtime(config(peer_port=0, host_name="b")) as b,
        Runtime(config(peer_port=0, host_name="c")) as c,
        Runtime(
            config(
                host_name="a",
                peers=tuple(f"{name}=127.0.0.1:{host.peer_port}" for name, host in (("b", b), ("c", c))),
                placement=placement,
            )
        ) as a,
    ):
        yield a, b, c
