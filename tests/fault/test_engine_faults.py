"""kill -9 of containers at named points, of the zygote, of the server, under a host with its front door open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_rig import AGAIN, CODE, PATIENCE_S, Rig, count, one_stage, opened, workflow

from dataflower.errors import Code, Failure, InvocationFailed, Unavailable
from dataflower.gateway.client import Client
from dataflower.host.api import State

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]

NBYTES = 100_000


def pipeline(name: str = "pipeline", *, each: str = "") -> str:
    """Arrays, one by one through a stage, into a list and a stream. `each`: a line for every stage."""
    extra = f"    {each}\n" if each else ""
    return workflow(
        name,
        f"""
inputs: {{n: int, nbytes: int}}
stages:
  make:
    function: fault_functions:blocks
    inputs: {{n: inputs.n, nbytes: inputs.nbytes}}
{extra}  shift:
    function: fault_functions:shifted
    inputs: {{x: {{each: make.out}}}}
{extra}  read:
    function: fault_functions:first_byte
    inputs: {{x: {{each: make.out}}}}
{extra}outputs:
  shifted: {{gather: shift.out}}
  read: {{gather: read.out}}
  made: make.out
""",
    )


async def run(rig: Rig, name: str, n: int) -> None:
    """Run a pipeline and hold the result against what it must be, item by item."""
    seen: dict[str, list[tuple[int, ...]]] = {"made": [], "read": [], "shifted": []}
    async for port, index, value in rig.client.stream(name, n=n, nbytes=NBYTES, deadline_s=PATIENCE_S):
        seen[port].append((index, value) if port == "read" else (index, int(value[0]), int(value[-1]), value.nbytes))
    assert seen["made"] == [(i, i % 256, i % 256, NBYTES) for i in range(n)]
    assert seen["read"] == [(i, i % 256) for i in range(n)]
    assert seen["shifted"] == [(i, (i + 1) % 256, (i + 1) % 256, NBYTES) for i in range(n)]


# --- containers ---------------------------------------------------------------------------------------------------

POINTS = {
    "shift": ["before_run:kill", "mid_write:kill", "mid_write:exit"],
    "read": ["before_run:exit", "mid_write:kill"],
    "make": ["before_run:kill", "mid_compute:kill", "mid_write:kill"],
}


@pytest.mark.parametrize(("stage", "point"), [(stage, point) for stage, points in POINTS.items() for point in points])
async def test_a_container_killed_without_retry_is_a_typed_failure(
    monkeypatch: pytest.MonkeyPatch, stage: str, point: str
) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", f"container.{point}:stage={stage}")
    async with opened() as rig:
        await rig.client.apply(pipeline())
        failure = await failure_of(rig)
        assert (failure.code, failure.kind) == (Code.INTERNAL, "ContainerCrashed")
        assert (failure.stage, failure.attempt) == (stage, 1)
        assert ("SIGKILL" if "kill" in point else "status 70") in failure.message


async def failure_of(rig: Rig) -> Failure:
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke("pipeline", n=4, nbytes=NBYTES, deadline_s=PATIENCE_S)
    return caught.value.failure


@pytest.mark.parametrize(
    "points",
    [
        "container.before_run:kill:stage=shift:attempt=1",
        "container.mid_write:kill:stage=shift:attempt=1",
        "container.after_handover:kill:stage=shift:hit=2",
        "container.after_handover:kill:stage=make",
        "container.mid_compute:kill:stage=make:attempt=1:hit=1",
        "container.mid_compute:kill:stage=make:attempt=1:hit=4",
        "container.mid_write:exit:stage=make:attempt=1:hit=6",
        "container.mid_write:kill:stage=make:attempt=1:hit=7",  # the last item has left, the end has not
        "container.mid_compute:kill:stage=make:attempt=1:hit=3,container.before_run:kill:stage=read:attempt=1",
    ],
)
async def test_with_retry_nothing_is_lost_and_nothing_doubled(monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", points)
    async with opened() as rig:
        await rig.client.apply(pipeline(each=AGAIN))
        await run(rig, "pipeline", 6)
        await rig.settled()
        monkeypatch.delenv("DATAFLOWER_FAILPOINTS")
        await run(rig, "pipeline", 3)


async def test_what_was_handed_over_needs_no_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", "container.after_handover:kill:stage=make")
    async with opened() as rig:
        await rig.client.apply(pipeline())
        for _ in range(3):
            await run(rig, "pipeline", 5)
            # The death may be heard of after the end of the call, and a call in between would meet it.
            await rig.until(lambda: not rig.host.workflow("pipeline").stages[0].idle)


@pytest.mark.parametrize("retry", ["", "retry: {errors: [ContainerCrashed], max_attempts: 2, interval_s: 0}"])
async def test_a_container_killed_at_each_start_is_given_up(monkeypatch: pytest.MonkeyPatch, retry: str) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", "container.before_start:kill:stage=shift")
    async with opened() as rig:
        await rig.client.apply(pipeline(each=retry))
        failure = await failure_of(rig)
        assert (failure.code, failure.kind, failure.stage) == (Code.INTERNAL, "ContainerCrashed", "shift")
        assert failure.attempt == (2 if retry else 1)
        assert "before it was ready" in failure.message


async def test_a_container_that_stops_dead_is_found_by_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", "container.mid_compute:stop:stage=make:attempt=1:hit=3")
    async with opened() as rig:
        retry = "timeout_s: 1\n    retry: {errors: [Timeout], max_attempts: 3, interval_s: 0}"
        await rig.client.apply(pipeline(each=retry))
        await run(rig, "pipeline", 6)


# --- the zygote ---------------------------------------------------------------------------------------------------


async def test_containers_work_on_without_their_zygote_and_the_next_cold_start_gets_a_new_one() -> None:
    async with opened() as rig:
        await rig.client.apply(pipeline(each="scaling: {max_replicas: 1}"))  # so that it asks for no more containers
        await rig.client.apply(one_stage("pid", "pid", "x"))
        running = asyncio.ensure_future(run(rig, "pipeline", 60))
        await rig.until(lambda: all(stage.done > 2 for stage in rig.host.workflow("pipeline").stages[1:]))
        (zygote,) = rig.host.zygote_pids()
        os.kill(zygote, signal.SIGKILL)
        await running
        await rig.until(lambda: rig.host.zygote_pids() == ())
        before = set(rig.host.container_pids().values())
        await rig.client.invoke("pid", x=1)
        assert set(rig.host.container_pids().values()) > before
        assert len(rig.host.zygote_pids()) == 1
        assert rig.host.zygote_pids() != (zygote,)


async def test_a_zygote_killed_with_an_order_in_its_hands() -> None:
    async with opened() as rig:
        await rig.client.invoke("echo", x=1)
        (zygote,) = rig.host.zygote_pids()
        os.kill(zygote, signal.SIGSTOP)
        await rig.client.apply(pipeline())
        running = asyncio.ensure_future(run(rig, "pipeline", 4))
        await rig.until(lambda: bool(rig.host.statistics().core.queued))
        os.kill(zygote, signal.SIGKILL)
        await running
        assert rig.host.statistics().engine.launcher.zygotes_lost == 1


async def test_zygotes_killed_while_they_fork() -> None:
    async with opened(cpus=4) as rig:
        for n in range(6):
            await rig.client.apply(pipeline(f"p{n}", each=AGAIN))
            known = set(rig.host.container_pids())
            running = asyncio.ensure_future(run(rig, f"p{n}", 6))
            await rig.until(lambda known=known: len(set(rig.host.container_pids()) - known) > 0)
            for zygote in rig.host.zygote_pids():
                os.kill(zygote, signal.SIGKILL)
            await running


# --- the server ---------------------------------------------------------------------------------------------------


class Server:
    """`dataflower serve` on a state directory, with a client; killed at the end if it still runs."""

    def __init__(self, state: Path) -> None:
        command = [sys.executable, "-m", "dataflower.cli", "serve", "--port", "0", "--code-path", CODE]
        self.process = subprocess.Popen(
            [*command, "--state-dir", str(state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "DATAFLOWER_WRITABLE_PATHS": tempfile.gettempdir()},  # functions leave marks there
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("listening on"), said
        self.client = Client(said.split()[-1])

    def family(self) -> set[int]:
        """Every process that the server has started, directly or not."""
        wanted = f"DATAFLOWER_HOST={self.process.pid}-".encode()
        return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if wanted in _environment(pid)}

    def rooms_are_made(self) -> bool:
        """Whether no room is on its way: what makes one has nothing yet, for a moment, that would end it."""
        family = self.family()
        return all(_is_made(pid, family) for pid in family)

    def kill(self) -> None:
        """SIGKILL, and wait for what it leaves behind to leave as well."""
        family: dict[int, int] = {}
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):  # a helper between the keeper and a room
                family[pid] = os.pidfd_open(pid)
        try:
            self.process.kill()
            self.process.wait()
            for pid, descriptor in family.items():
                assert ended(descriptor), f"{_command(pid)} ({pid}) outlives its server"
            wait_for(lambda: not self.family())  # one was perhaps just being forked
        finally:
            for descriptor in family.values():
                if not ended(descriptor, 0.0):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                os.close(descriptor)

    def close(self) -> None:
        assert self.process.stdout is not None
        try:
            if self.process.poll() is None:
                self.kill()
        finally:
            self.process.stdout.close()
            self.client.close()


def ended(descriptor: int, timeout_s: float = PATIENCE_S) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _is_made(pid: int, family: set[int]) -> bool:
    """False for helpers between the keeper and a room, and for the first process of a room until that is its root."""
    try:
        status = _status(pid)
        if len(status["NSpid"].split()) > 1:
            return not os.path.samefile(f"/proc/{pid}/root", "/")
        parent = int(status["PPid"])
        return parent not in family or int(_status(parent)["PPid"]) not in family
    except OSError:
        return False  # it has just ended


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.close()


BUSY = {
    "in Python": one_stage("busy", "answered", "path", "log"),
    "in C": one_stage("busy", "hang", "seconds", stage="outputs: {out: any}"),
    "in C with the interpreter's lock": one_stage("busy", "hang_with_lock", "seconds", stage="outputs: {out: any}"),
}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", BUSY)
def test_no_process_outlives_a_killed_server(servers: list[Server], tmp_path: Path, how: str) -> None:
    server = Server(tmp_path / "state")
    servers.append(server)
    client = server.client
    client.apply(BUSY[how])
    client.apply(pipeline())
    stream = client.stream("pipeline", n=100_000, nbytes=NBYTES)
    assert next(stream).port == "made"
    log = tmp_path / "log"
    inputs = {"path": str(tmp_path / "never"), "log": str(log)} if how == "in Python" else {"seconds": 600.0}
    client.submit("busy", inputs, request_id="job")

    def busy() -> bool:
        return client.workflow("busy").stages[0].busy == 1

    wait_for(busy)
    server.kill()
    with pytest.raises(Unavailable):
        _ = list(stream)


def test_stopped_processes_go_with_a_killed_server_too(servers: list[Server], tmp_path: Path) -> None:
    server = Server(tmp_path / "state")
    servers.append(server)
    server.client.apply(BUSY["in C"])
    server.client.submit("busy", seconds=600.0)
    wait_for(lambda: server.client.workflow("busy").stages[0].busy == 1)
    wait_for(server.rooms_are_made)
    for pid in server.family():
        os.kill(pid, signal.SIGSTOP)
    server.kill()


def test_a_restarted_server_goes_on_where_the_killed_one_was(servers: list[Server], tmp_path: Path) -> None:
    state, answer, log = tmp_path / "state", tmp_path / "answer", tmp_path / "log"
    first = Server(state)
    servers.append(first)
    first.client.apply(one_stage("ask", "answered", "path", "log"))
    first.client.apply(pipeline())
    first.client.submit("ask", path=str(answer), log=str(log), request_id="job")
    wait_for(lambda: count(log) == 1)
    first.kill()
    answer.write_text("42")
    second = Server(state)
    servers.append(second)
    *_, last = second.client.watch("job")
    assert (last.state, last.outputs) == (State.SUCCEEDED, {"out": "42"})
    assert count(log) == 2
    again = second.client.submit("ask", path=str(answer), log=str(log), request_id="job")
    assert (again.state, again.accepted_at) == (State.SUCCEEDED, last.accepted_at)
    assert second.client.invoke("pipeline", n=3, nbytes=10)["read"] == [0, 1, 2]
    second.kill()
    third = Server(state)
    servers.append(third)
    assert third.client.get("job").outputs == {"out": "42"}
    assert count(log) == 2  # what has ended is not run again


# --- all of it ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_storm_of_kills_loses_nothing_and_doubles_nothing() -> None:
    random_ = random.Random(20)
    async with opened(cpus=3) as rig:
        await rig.client.apply(pipeline(each=AGAIN))
        kills = 0

        async def load() -> None:
            while kills < 200:
                await run(rig, "pipeline", random_.randrange(2, 30))

        async def kill() -> None:
            nonlocal kills
            while kills < 200:
                await asyncio.sleep(random_.random() * 0.15)
                pids = sorted(rig.host.container_pids().values())
                with contextlib.suppress(ProcessLookupError, IndexError):  # it has ended, unheard as yet; there is none
                    os.kill(random_.choice(pids), signal.SIGKILL)
                    kills += 1

        await asyncio.gather(kill(), load(), load(), load())
        await rig.settled()
        await run(rig, "pipeline", 20)
        statistics = rig.host.statistics()
        assert (statistics.failed, statistics.engine.violations) == (0, 0)
