"""The kill storm against owners: servers with a lender and a journal, killed under load and started anew.

What they were asked to do at once fails with UNAVAILABLE; what was submitted to them runs when they are back. Of a
killed server nothing is left: no process (and with those no memory without a name and no file on disk without one), no
control group once the next server is there, and nothing of its on the lender, which serves the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench.engine import ROOT
from bench.footprint import Footprint, footprint
from bench.host_storm import Orphans
from bench.report import Report
from bench.second_host import THIRD, TOKEN, SecondHost, second_host
from bench.storm import SETTLE_S, left_behind
from bench.storm_flows import FLOWS, Tally, number
from dataflower.config.sources import load_text
from dataflower.errors import DataflowerError, Unavailable
from dataflower.gateway.async_client import AsyncClient
from dataflower.gateway.server import serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import InvocationRecord, State
from dataflower.host.groups import PREFIX
from dataflower.host.groups import ROOT as GROUPS
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

FAN = next(flow for flow in FLOWS if flow.name == "fan")
NBYTES = 20_000
CALLERS, SUBMITTED = 3, 4
PEER_TIMEOUT_S = 2
"""After which a lender lets go of what an owner that does not come back had there."""
CALL_S = 60.0


@dataclass
class Results:
    """Of a storm. `unclear`: calls that a killed server took along without saying UNAVAILABLE."""

    tally: Tally = field(default_factory=Tally)
    unavailable: int = 0
    unclear: int = 0
    submitted: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def leave(self, what: str, count: int) -> None:
        """So much was left behind."""
        if count:
            self.left[what] = self.left.get(what, 0) + count


class Owner:
    """A server in a process of its own, always at the same port and with the same journal."""

    def __init__(self, folder: Path, second: SecondHost) -> None:
        self._arguments = (sys.executable, "-P", "-m", "bench.owner_storm", str(folder), second.peer)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Of its front door."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns once it serves."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments, str(self._port), stdout=asyncio.subprocess.PIPE, cwd=ROOT, env=environment
        )
        assert self._process.stdout is not None
        self._port = int(await self._process.stdout.readline())

    async def end(self, how: signal.Signals) -> None:
        """Returns when the process has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            await self._process.wait()
            self._process = None


class OwnerStorm:
    """Load on an owner that is killed again and again."""

    def __init__(self, owner: Owner, second: SecondHost, seed: int) -> None:
        self.results = Results()
        self._owner = owner
        self._second = second
        self._random = random.Random(seed)
        self._orphans = Orphans()
        self._is_dying = False

    async def round(self, before: Footprint, client: AsyncClient) -> None:
        """One kill under load; what was submitted has run, and nothing is left behind when this returns."""
        self._is_dying = False
        calls = [asyncio.create_task(self._call_on(client)) for _ in range(CALLERS)]
        await asyncio.sleep(self._random.uniform(0.3, 1.0))
        wanted = {}
        for _ in range(SUBMITTED):
            n = self._random.randrange(4, 20)
            record = await client.submit(FAN.name, {"n": n, "nbytes": NBYTES})
            wanted[record.id] = n
            await asyncio.sleep(self._random.uniform(0.0, 0.02))
        killed = self._owner.pid
        self._orphans.add(killed)
        self._is_dying = True
        await self._owner.end(signal.SIGKILL)
        await asyncio.gather(*calls)
        await self._settled(before)
        await self._owner.start()
        self.results.leave("control groups", len(groups_of(killed)))
        self.results.submitted += len(wanted)
        async with AsyncClient(self._owner.address) as again:
            for invocation, n in wanted.items():
                await self._look(again, invocation, n)
            await self._call(again)  # the lender serves the next one

    async def _settled(self, before: Footprint) -> None:
        end = time.monotonic() + SETTLE_S
        while (left := self._orphans.collect()) and time.monotonic() < end:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.1)
        self.results.leave("processes of killed servers", left)
        server = self._second.server
        while (guests := await asyncio.to_thread(server.containers)) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.results.leave("containers on the lender", len(guests))
        for what, count in (await left_behind(server.pid, before)).items():
            self.results.leave(f"{what} on the lender", count)

    async def _call_on(self, client: AsyncClient) -> None:
        while not self._is_dying:
            await self._call(client)

    async def _call(self, client: AsyncClient) -> None:
        n = self._random.randrange(2, 30)
        try:
            found = await client.invoke(FAN.name, {"n": n, "nbytes": NBYTES}, deadline_s=CALL_S)
        except Unavailable:
            self.results.unavailable += 1
            if not self._is_dying:
                self.results.tally.add(FAN, n, {}, "UNAVAILABLE though nobody was killed")
        except DataflowerError as error:
            self.results.unclear += 1
            self.results.tally.add(FAN, n, {}, f"{type(error).__name__}: {error}")
        else:
            self.results.tally.add(FAN, n, numbers(found))

    async def _look(self, client: AsyncClient, invocation: str, n: int) -> None:
        """At one that was submitted before the kill."""
        record: InvocationRecord | None = None
        error = ""
        try:
            async with asyncio.timeout(CALL_S):
                async for latest in client.watch(invocation):
                    record = latest
        except (DataflowerError, TimeoutError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        if record is None or record.state is not State.SUCCEEDED:
            state = record.state.value if record is not None else "not known"
            self.results.tally.add(FAN, n, {}, f"submitted, but {state} {record and record.failure} {error}")
        else:
            self.results.tally.add(FAN, n, numbers(record.outputs or {}))


def numbers(outputs: Mapping[str, Any]) -> dict[str, list[int]]:
    """Which arrays came, by port."""
    return {port: [number(value, NBYTES) for value in values] for port, values in outputs.items()}


def groups_of(pid: int) -> list[Path]:
    """Control groups of a server that there are."""
    return [path for path in GROUPS.rglob(f"{PREFIX}{pid}*") if path.is_dir()]


@contextlib.asynccontextmanager
async def _owner(second: SecondHost) -> AsyncIterator[Owner]:
    with tempfile.TemporaryDirectory() as folder:
        owner = Owner(Path(folder), second)
        try:
            await owner.start()
            yield owner
        finally:
            await owner.end(signal.SIGTERM)


async def storm(kills: int, seed: int = 9) -> Results:
    """Owners under fire."""
    with second_host("", THIRD, f"peer_timeout_s={PEER_TIMEOUT_S}", "max_containers=32", "cpus=2") as second:
        async with _owner(second) as owner:
            async with AsyncClient(owner.address) as client:
                await client.apply(FAN.source)
                await client.invoke(FAN.name, {"n": 4, "nbytes": NBYTES}, deadline_s=CALL_S)
            await owner.end(signal.SIGTERM)
            await asyncio.sleep(PEER_TIMEOUT_S + 1.0)
            before = footprint(second.server.pid)
            await owner.start()
            load = OwnerStorm(owner, second, seed)
            for _ in range(kills):
                async with AsyncClient(owner.address) as client:
                    await load.round(before, client)
    return load.results


async def measure(report: Report, kills: int = 10) -> Results:
    """The figure of owners alone; what they lost, doubled and left counts together with that of containers."""
    begun = time.monotonic()
    results = await storm(kills)
    tally = results.tally
    words = f"{results.submitted} submitted before, {results.unavailable} calls ended with UNAVAILABLE"
    print(
        f"owners: {kills} killed; {tally.calls} invocations, {words}", *tally.words, f"left: {results.left}", sep="\n  "
    )
    took = f"{kills} servers killed in {time.monotonic() - begun:.0f} s, {tally.items} arrays of {NBYTES} bytes"
    report.add(
        "owner_kill_unclear", f"{took}: calls that failed otherwise than UNAVAILABLE", results.unclear, at_most=0
    )
    return results


async def _serve(folder: Path, peer: str, port: int) -> None:
    load = functools.partial(load_text, code_path=(str(ROOT),))
    config = HostConfig(
        host_name="a",
        state_dir=folder / "state",
        code_path=(str(ROOT),),
        peers=(peer,),
        peer_token=TOKEN,
        peer_timeout_s=PEER_TIMEOUT_S,
        placement=(f"{FAN.name}.{FAN.away[0]}={THIRD}",),
        cpus=2,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        Runtime(config, load=load) as host,
        await serve(host, GatewayConfig(port=port), load=load) as gateway,
    ):
        print(gateway.grpc_port, flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
