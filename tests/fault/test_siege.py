"""A function attacks its neighbours and its host from within a sandbox: nobody but itself is any the worse for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from engine_rig import PATIENCE_S, Rig, one_stage, opened, workflow

from dataflower.errors import InvocationFailed
from dataflower.host import zygote
from dataflower.host.isolation import ask
from dataflower.wire import Walls

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]
HERE = (str(Path(__file__).parent), str(Path(__file__).parent.parent))
RAIDER = workflow(
    "raider",
    "inputs: {act: string, about: any}\nstages:\n"
    "  raider: {function: 'siege_functions:siege', inputs: {act: inputs.act, about: inputs.about}}\n"
    "outputs: {out: raider.out}\n",
)
PRYING = workflow(
    "prying",
    "inputs: {secret: string, mine: any}\nstages:\n"
    "  prying: {function: 'siege_functions:search', inputs: {secret: inputs.secret, mine: inputs.mine}}\n"
    "outputs: {out: prying.out}\n",
)
KEEPER = workflow(
    "keeper",
    "inputs: {x: any}\nstages:\n  keeper: {function: 'siege_functions:linger', inputs: {x: inputs.x}}\n"
    "outputs: {out: keeper.out}\n",
)
SPILLED = workflow(
    "spilled",
    "inputs: {n: int, nbytes: int}\nstages:\n"
    "  make: {function: 'fault_functions:blocks', inputs: {n: inputs.n, nbytes: inputs.nbytes}}\n"
    "  raider: {function: 'siege_functions:reopen', inputs: {items: {gather: make.out}}}\n"
    "outputs: {out: raider.out, all: {gather: make.out}}\n",
)
VISITOR = workflow(
    "visitor",
    "inputs: {act: string, about: any}\nstages:\n"
    "  visitor: {function: 'siege_functions:siege', inputs: {act: inputs.act, about: inputs.about}}\n"
    "outputs: {out: visitor.out}\n",
)
REFUSED = {"EPERM", "EACCES", "ESRCH", "ENOSYS"}


@pytest.fixture(params=[Walls.ROOM, Walls.LANDLOCK], ids=["room", "landlock"])
def walls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Walls:
    layers = {layer.layer: layer for layer in ask().layers}
    needed = layers["namespaces" if request.param is Walls.ROOM else "landlock"]
    if not needed.possible:
        pytest.skip(f"not possible on this machine: {needed.detail}")
    given = zygote._arguments
    monkeypatch.setattr(zygote, "_arguments", lambda *a: [*given(*a), f"--at-most={request.param.value}"])
    return request.param


@pytest.fixture
async def rig(walls: Walls) -> AsyncIterator[Rig]:
    async with opened(code_path=HERE) as rig:
        await rig.client.apply(RAIDER)
        assert await rig.client.invoke("echo", x=1) == {"out": 1}
        yield rig


async def raid(rig: Rig, act: str, about: object = None) -> object:
    return (await rig.client.invoke("raider", act=act, about=about, deadline_s=PATIENCE_S))["out"]


async def test_nobody_ends_with_a_container_that_pulls_its_lifeline(rig: Rig) -> None:
    before, zygotes = await rig.pids("echo", "only"), rig.host._engine.zygote_pids()
    with contextlib.suppress(InvocationFailed):
        await raid(rig, "pull_lifelines")
    assert await rig.client.invoke("echo", x=2) == {"out": 2}
    assert (await rig.pids("echo", "only"), rig.host._engine.zygote_pids()) == (before, zygotes)


async def test_sockets_that_it_shuts_are_its_own(rig: Rig) -> None:
    before = await rig.pids("echo", "only")
    with pytest.raises(InvocationFailed, match="ContainerCrashed"):
        await raid(rig, "shut_sockets")
    assert await rig.pids("echo", "only") == before
    assert await rig.host._engine.weights() is None, "it has knocked at the door of the store"


@pytest.mark.parametrize("act", ["kill_host", "limit_host", "starve_host", "pin_host", "nice_host"])
async def test_the_host_is_out_of_reach(rig: Rig, act: str) -> None:
    assert await raid(rig, act, os.getpid()) in REFUSED


async def test_it_shares_no_memory_with_others_by_number(rig: Rig, walls: Walls) -> None:
    assert await raid(rig, "shared_segment", 0x0DF10) == ("done" if walls is Walls.ROOM else "EPERM")
    assert str(0x0DF10) not in {line.split()[0] for line in Path("/proc/sysvipc/shm").read_text().splitlines()}


async def test_inputs_of_another_workflow_are_nowhere_in_its_memory(rig: Rig) -> None:
    """Neither those that wait nor those that once were."""
    secret = "the-other-tenant-s"
    await rig.client.apply(PRYING)
    await rig.client.apply(KEEPER)
    assert await pry(rig, secret.swapcase(), f"{secret.swapcase()}{'.' * 100_000}") > 0, "it finds what is its own"
    slow = asyncio.ensure_future(rig.client.invoke("keeper", x=f"{secret}{'.' * 200_000}", deadline_s=PATIENCE_S))
    await rig.until(lambda: rig.host.statistics().core.invocations == 1)
    assert await pry(rig, secret, "." * 100_000) == 0
    assert (await slow)["out"] is None
    assert await pry(rig, secret, "." * 100_000) == 0


async def pry(rig: Rig, secret: str, mine: str) -> int:
    # As it is searched for it must not be written anywhere in the message.
    return int((await rig.client.invoke("prying", secret=secret[::-1], mine=mine, deadline_s=PATIENCE_S))["out"])


async def test_open_files_run_out_for_itself_alone(rig: Rig) -> None:
    files, processes = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    most = 4096 if processes < 0 else min(4096, processes)
    assert await raid(rig, "limits") == {"files": min(4096, files // 2), "processes": most}
    assert await raid(rig, "descriptors") == "EMFILE"
    assert await rig.client.invoke("echo", x="." * 100_000) == {"out": "." * 100_000}


async def test_the_host_can_still_pass_memory_on_when_too_many_descriptors_are_under_way(rig: Rig) -> None:
    """The kernel counts them for all processes of a user: the containers share one limit, the host has another."""
    await rig.client.apply(one_stage("taker", "first_byte", "x"))
    assert await raid(rig, "flying_descriptors") == "ETOOMANYREFS"
    given = np.full(100_000, 7, np.uint8)
    assert await rig.client.invoke("taker", x=given, deadline_s=PATIENCE_S) == {"out": 7}
    (pid,) = await rig.pids("raider", "raider")
    waiting = asyncio.ensure_future(rig.client.invoke("echo", x="." * 100_000))
    await rig.until(lambda: rig.host.statistics().core.tasks > 0)
    os.kill(pid, signal.SIGKILL)
    assert await waiting == {"out": "." * 100_000}
    await rig.until(lambda: pid not in rig.host.container_pids().values())


async def test_what_others_have_on_disk_is_read_by_it_and_no_more(walls: Walls, tmp_path: Path) -> None:
    places = {"code_path": HERE, "writable_paths": (), "spill_dir": tmp_path}
    async with opened(container_arena_bytes=4 << 20, **places) as rig:
        await rig.client.apply(SPILLED)
        answer = await rig.client.invoke("spilled", n=12, nbytes=1 << 20, deadline_s=PATIENCE_S)
        assert set(answer["out"]) == {"EROFS" if walls is Walls.ROOM else "EACCES"}
        assert [int(block.min()) for block in answer["all"]] == list(range(12))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("walls", [Walls.ROOM], indirect=True)
async def test_nor_is_it_changed_in_rooms_without_landlock(
    walls: Walls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "MODULE", "zygote_without_landlock")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((*HERE, os.environ.get("PYTHONPATH", ""))))
    await test_what_others_have_on_disk_is_read_by_it_and_no_more(walls, tmp_path)


async def test_it_leaves_no_notes_where_all_of_them_spill(walls: Walls, tmp_path: Path) -> None:
    """In a room it sees a folder of its own there, in which it may leave what it likes: nobody else ever sees it."""
    async with opened(code_path=HERE, writable_paths=(), spill_dir=tmp_path) as rig:
        await rig.client.apply(RAIDER)
        await rig.client.apply(VISITOR)
        (folder,) = tmp_path.iterdir()
        assert await raid(rig, "leave_note", str(folder)) == ("done" if walls is Walls.ROOM else "EACCES")
        found = await rig.client.invoke("visitor", act="find_notes", about=str(folder), deadline_s=PATIENCE_S)
        assert found["out"] == ([] if walls is Walls.ROOM else ["EACCES"])
        (pid,) = await rig.pids("raider", "raider")
        assert await raid(rig, "forget_note", str(folder)) == ("done" if walls is Walls.ROOM else "ENOENT")
        before = set(folder.iterdir())
        os.kill(pid, signal.SIGKILL)
        await rig.until(lambda: pid not in rig.host.container_pids().values())
        await rig.until(lambda: not before <= set(folder.iterdir()))
        if walls is Walls.LANDLOCK:
            assert len(list(folder.iterdir())) == len(rig.host.container_pids()), "those of containers, and no more"
    assert not list(tmp_path.iterdir())


async def test_all_that_it_forks_end_with_it_while_others_are_served(rig: Rig) -> None:
    call = asyncio.create_task(raid(rig, "multiply"))
    (pid,) = await rig.pids("raider", "raider")
    await rig.until(lambda: len(session(pid)) >= 128)
    assert await rig.client.invoke("echo", x=2, deadline_s=PATIENCE_S) == {"out": 2}
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    os.kill(pid, signal.SIGKILL)
    await rig.until(lambda: not session(pid))
    assert await rig.client.invoke("echo", x=3) == {"out": 3}


def session(pid: int) -> list[str]:
    """The processes of a container, which is the first of its session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[3]) == pid:
                found.append(status.parent.name)
    return found
