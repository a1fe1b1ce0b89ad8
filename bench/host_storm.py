"""The kill storm over two hosts: containers of both are killed, their connection broken, the second server killed."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import random
import shutil
import socket
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.engine import engine
from bench.footprint import footprint
from bench.processes import descendants
from bench.report import Report
from bench.second_host import NAME, TOKEN, SecondHost, second_host
from bench.storm import ARENA_BYTES, MAX_ITEMS, NBYTES, SETTLE_S, Load, idle, kill, left_behind, progress
from bench.storm_flows import FLOWS
from dataflower.host.api import PeerState
from dataflower.host.runtime import Runtime
from dataflower.testing.leaks import held

LINK = "500mbit"
_ENDED_S = 20.0


class Blow(enum.Enum):
    """What can happen to two hosts."""

    HERE = "containers of the first host killed"
    THERE = "containers of the second host killed"
    CONNECTION = "connections broken"
    SERVER = "servers killed"


def plan(blows: int, servers: int, rng: random.Random) -> list[Blow]:
    """That many blows in a random order, `servers` of them against the second server."""
    rest = blows - servers
    kinds = [Blow.CONNECTION] * (rest // 2) + [Blow.THERE] * (rest // 3)
    kinds += [Blow.HERE] * (rest - len(kinds)) + [Blow.SERVER] * servers
    rng.shuffle(kinds)
    return kinds


@dataclass
class Results:
    """Of a storm. `left`: what was left behind, by host."""

    load: Load
    left: dict[str, dict[str, int]] = field(default_factory=dict)
    struck: dict[Blow, int] = field(default_factory=lambda: dict.fromkeys(Blow, 0))


class HostStorm:
    """Blows against two hosts under load."""

    def __init__(self, host: Runtime, second: SecondHost, blows: list[Blow], seed: int) -> None:
        self.results = Results(Load(host, seed))
        self._host = host
        self._second = second
        self._blows = blows
        self._random = random.Random(seed)
        self._orphans = Orphans()

    async def run(self) -> None:
        """Load until the last blow has been dealt, and all that was called is over."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._strike())
            tasks.create_task(self.results.load.run(lambda: bool(self._blows)))

    async def _strike(self) -> None:
        while self._blows:
            await progress(self._host, self._random)
            if await self._deal(self._blows[0]):
                self.results.struck[self._blows.pop(0)] += 1
            else:
                self._blows.append(self._blows.pop(0))

    async def _deal(self, blow: Blow) -> bool:
        match blow:
            case Blow.HERE:
                return self._kill_one(list(self._host.container_pids().values()))
            case Blow.THERE:
                return self._kill_one(await asyncio.to_thread(self._second.server.containers))
            case Blow.CONNECTION:
                return await asyncio.to_thread(break_connection, self._second)
        self._orphans.add(self._second.server.pid)
        await asyncio.to_thread(self._second.server.kill)
        await asyncio.sleep(self._random.uniform(0.0, 0.3))
        await asyncio.to_thread(self._second.server.start)
        return True

    def _kill_one(self, pids: list[int]) -> bool:
        return bool(pids) and kill(self._random.choice(sorted(pids)))

    async def orphans(self) -> int:
        """Processes of killed servers that have not ended by themselves after a while."""
        end = time.monotonic() + _ENDED_S
        while (left := self._orphans.collect()) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return left


class Orphans:
    """Processes of servers that were killed, which become this process's children: it has to collect them."""

    def __init__(self) -> None:
        self._marks: set[bytes] = set()
        self._names: set[str] = set()
        """What the kernel calls them: those that have ended have no environment any more."""

    def add(self, server: int) -> None:
        """This server is about to be killed."""
        self._marks.add(b"DATAFLOWER_HOST=%d-" % server)
        self.collect()

    def collect(self) -> int:
        """How many there are; those that have ended are not there any more afterwards."""
        left = [pid for pid in descendants(os.getpid()) if self._is_one(pid)]
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return len(left)

    def _is_one(self, pid: int) -> bool:
        name, environment = "", [b""]
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if not any(entry.startswith(mark) for entry in environment for mark in self._marks):
            return name in self._names
        if name.startswith("dataflower-"):
            self._names.add(name)
        return True


def _mode(descriptor: str) -> int:
    try:
        return os.fstat(int(descriptor)).st_mode
    except OSError:  # the one that listed the folder
        return 0


def break_connection(second: SecondHost) -> bool:
    """Break what connects this process to the second host, whatever is on its way; False if nothing did."""
    address, port = second.address
    if second.network and shutil.which("ss"):
        command = ("ss", "-K", "-H", "-t", "state", "established", "dst", address, "dport", "=", str(port))
        return bool(subprocess.run(command, check=False, capture_output=True, timeout=20).stdout.strip())
    found = False
    for name in os.listdir("/proc/self/fd"):
        if not stat.S_ISSOCK(_mode(name)):  # a copy of what is no socket would stay open
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.family == socket.AF_INET and sock.getpeername() == (address, port):
                sock.shutdown(socket.SHUT_RDWR)
                found = True
    return found


async def storm(blows: int, servers: int, seed: int = 3) -> Results:
    """Two hosts under fire; what came, and what was left behind on each."""
    places = tuple(f"{flow.name}.{stage}={NAME}" for flow in FLOWS for stage in flow.away)
    small = f"container_arena_bytes={ARENA_BYTES}"
    with second_host(LINK, NAME, small, "max_containers=32", "cpus=2") as second:
        settings = {"host_name": "a", "peers": (second.peer,), "peer_token": TOKEN, "placement": places}
        sources = [flow.source for flow in FLOWS]
        async with engine(*sources, max_containers=32, container_arena_bytes=ARENA_BYTES, cpus=2, **settings) as host:
            for flow in FLOWS:
                await Load(host, 0).call(flow, MAX_ITEMS)
            await idle(host)
            other = second.server.pid
            before, there, own = footprint(os.getpid(), other), footprint(other), held(host)
            order = plan(blows, servers, random.Random(seed))
            hosts = HostStorm(host, second, order, seed)
            await hosts.run()
            async with asyncio.timeout(SETTLE_S):
                while host.peers()[0].state is not PeerState.CONNECTED:  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0.05)
            for flow in FLOWS:  # it works as before
                await hosts.results.load.call(flow, MAX_ITEMS)
            await idle(host)
            orphans = await hosts.orphans()
            other = second.server.pid
            first = await left_behind(os.getpid(), before, other)
            first |= {name: count - own[name] for name, count in held(host).items() if count > own[name]}
            second_left = await left_behind(other, there)
            if orphans:
                second_left["orphans"] = orphans
            hosts.results.left = {"first": first, "second": second_left}
            host._core.check_integrity()
    return hosts.results


async def measure(report: Report, blows: int = 300, servers: int = 20) -> None:
    """All figures of two hosts."""
    begun = time.monotonic()
    results = await storm(blows, servers)
    tally = results.load.tally
    struck = ", ".join(f"{count} {blow.value}" for blow, count in results.struck.items())
    print(f"two hosts: {struck}; {tally.calls} invocations", *tally.words, f"left behind: {results.left}", sep="\n  ")
    took = f"two hosts, {blows} blows in {time.monotonic() - begun:.0f} s, {tally.items} arrays of {NBYTES} bytes"
    report.add("hosts_kill_lost", f"{took}: lost", tally.lost, at_most=0)
    report.add("hosts_kill_doubled", f"{took}: twice", tally.doubled, at_most=0)
    for host in ("first", "second"):
        left = sum(results.left[host].values())
        report.add(f"hosts_kill_leaked_{host}", f"{took}: left behind on the {host}", left, at_most=0)
