"""Outputs that stay on the host that made them: what that saves, and what happens when they are gone with it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import workflows_for_tests as w
from hosts_rig import config, pair
from test_host_links import AGAIN, _all_reaped, _until, lender

from dataflower.host.api import Invocation, PeerState
from dataflower.host.runtime import Runtime
from dataflower.host.settings import DefaultIsolation
from dataflower.spec.workflow import Fanout, Retry, Workflow

pytestmark = pytest.mark.fault
ITEMS, NBYTES = 6, 300_000
TOTAL = sum(NBYTES * i for i in range(ITEMS))


def gated(name: str, retry: Retry | None) -> Workflow:
    """Arrays one by one, each passed on, all of them summed when a file is there: on `b`, but for who looks at it."""
    stages = [
        w.stage("make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True, retry=retry),
        w.stage("pass", "passthrough", {"x": w.edge("make.out", Fanout.EACH)}, retry=retry),
        w.stage("gate", "wait_for_file", {"x": "inputs.gate"}),
        w.stage("sum", "sum_all", {"items": w.edge("pass.out", Fanout.GATHER), "gate": "gate.out"}, retry=AGAIN),
    ]
    ports = (w.Port("n", w.INT), w.Port("nbytes", w.INT), w.Port("gate"))
    return w.workflow(name, stages, {"sum": "sum.out"}, ports)


def refilled() -> Workflow:
    """An array made of another, which waits for the file and then goes home from where it was only passed on."""
    stages = [
        w.stage("fill", "fill", {"n": "inputs.n"}, retry=AGAIN),
        w.stage("scale", "scale", {"x": "fill.out"}, retry=AGAIN),
        w.stage("gate", "wait_for_file", {"x": "inputs.gate"}),
        w.stage("back", "after", {"x": "scale.out", "gate": "gate.out"}),
    ]
    return w.workflow("refilled", stages, {"y": "back.out"}, (w.Port("n", w.INT), w.Port("gate")))


PLACES = (
    *(f"{name}.{stage}=b" for name in ("again", "once") for stage in ("make", "pass", "sum")),
    *(f"refilled.{stage}=b" for stage in ("fill", "scale", "back")),
)


def attempts(invocation: Invocation, stage: str) -> list[int]:
    """Of the tasks of a stage."""
    assert invocation.trace is not None
    return sorted(task.attempt for task in invocation.trace.tasks if task.stage == stage)


async def test_outputs_that_only_their_host_reads_do_not_leave_it() -> None:
    async with pair(*PLACES) as hosts:
        gate = Path(tempfile.gettempdir()) / f"dataflower-gate-{os.getpid()}"
        gate.write_text("open")
        try:
            for retry, least, most in ((AGAIN, 0, 50_000), (None, ITEMS * NBYTES, ITEMS * NBYTES + 50_000)):
                before = hosts.owner.peers()[0].bytes_in
                name = "once" if retry is None else "again"
                await hosts.owner.apply(gated(name, retry), name)
                call = await hosts.owner.invoke(name, {"n": ITEMS, "nbytes": NBYTES, "gate": str(gate)})
                assert await call.result() == {"sum": TOTAL}
                assert least <= hosts.owner.peers()[0].bytes_in - before <= most
                await hosts.settled()
        finally:
            gate.unlink()


async def test_what_a_killed_host_took_along_is_made_again() -> None:
    """Three calls wait at a gate with all that they need on a host that dies and comes back empty."""
    async with contextlib.AsyncExitStack() as stack:
        process, port = await stack.enter_async_context(lender())
        settings = config(host_name="a", peers=(f"b=127.0.0.1:{port}",), placement=PLACES)
        host = await stack.enter_async_context(Runtime(settings))
        gate = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gate"
        for flow in (gated("again", AGAIN), gated("once", None), refilled()):
            await host.apply(flow, flow.name)
        given = {"n": ITEMS, "nbytes": NBYTES, "gate": str(gate)}
        again, once = [await host.invoke(name, given) for name in ("again", "once")]
        chain = await host.invoke("refilled", {"n": 100_000, "gate": str(gate)})
        for name, count in (("again", ITEMS), ("once", ITEMS), ("refilled", 1)):
            await _until(lambda name=name, count=count: host.workflow(name).stages[1].done == count)
        process.kill()
        await process.wait()
        await _until(lambda: host.peers()[0].state is PeerState.LOST)
        await stack.enter_async_context(lender(port))
        await _until(lambda: host.peers()[0].state is PeerState.CONNECTED)
        gate.write_text("open")
        assert await again.result() == {"sum": TOTAL}
        assert attempts(again, "make") == [1, 2]
        assert attempts(again, "pass") == [1] * ITEMS, "what it passed on is where its maker put it"
        assert attempts(again, "sum") == [1]
        assert await once.result() == {"sum": TOTAL}
        assert attempts(once, "make") == [1], "it may not run again, so its outputs had left the host"
        assert np.array_equal((await chain.result())["y"], 2 * np.arange(100_000, dtype=np.float32))
        assert (attempts(chain, "fill"), attempts(chain, "scale"), attempts(chain, "back")) == ([1, 2], [1, 2], [1])
        await _until(lambda: not host.statistics().core.slots)
    await _until(_all_reaped)


async def test_a_killed_container_takes_nothing_along_that_it_had_handed_over() -> None:
    """Here, and on another host where its outputs stay: they are mapped by nobody when it dies."""
    settings = {"isolation": DefaultIsolation.PROCESS}
    for places in ((), PLACES):
        async with pair(*places, lender=settings, **settings) as hosts:
            with tempfile.TemporaryDirectory() as folder:
                gate = Path(folder) / "gate"
                await hosts.owner.apply(gated("again", AGAIN), "again")
                invocation = await hosts.owner.invoke("again", {"n": ITEMS, "nbytes": NBYTES, "gate": str(gate)})
                started = gate.with_suffix(".started")
                await hosts.until(lambda path=started: path.exists() and bool(path.read_text()))
                await hosts.until(lambda owner=hosts.owner: owner.workflow("again").stages[1].done == ITEMS)
                for pid in (*hosts.lender.container_pids().values(), *hosts.owner.container_pids().values()):
                    if pid != int(started.read_text()):
                        os.kill(pid, signal.SIGKILL)
                gate.write_text("open")
                assert await invocation.result() == {"sum": TOTAL}
                assert invocation.trace is not None
                ran = [task.stage for task in invocation.trace.tasks]
                assert sorted(ran) == ["gate", "make", *["pass"] * ITEMS, "sum"]


async def test_what_lay_on_a_disk_that_failed_is_made_again(tmp_path: Path) -> None:
    """The files with outputs that found no room in memory are cut while their reader waits at the gate.

    In plain processes: what rooms hand over of a disk can't be opened anew to be cut.
    """
    flow = dataclasses.replace(refilled(), name="disk")
    settings = config(container_arena_bytes=1 << 20, spill_dir=tmp_path, isolation=DefaultIsolation.PROCESS)
    async with Runtime(settings) as host:
        await host.apply(flow, "disk")
        gate = tmp_path / "gate"
        call = await host.invoke("disk", {"n": 1 << 20, "gate": str(gate)})
        await _until(lambda: host.workflow("disk").stages[1].done == 1)
        views = host._engine.views
        files = [arena for arena in host._engine._sizes if views.is_on_disk(arena)]
        assert len(files) == 2, "one of each stage"
        for arena in files:
            with open(f"/proc/self/fd/{views.descriptor(arena)}", "r+b") as file:
                file.truncate(0)
        gate.write_text("open")
        assert np.array_equal((await call.result())["y"], 2 * np.arange(1 << 20, dtype=np.float32))
        assert max(attempts(call, "scale")) > 1
        await _until(lambda: not host.statistics().core.slots)
