"""Whatever a stage is doing: a cancellation and a deadline end it, no later stage runs, and nothing stays held."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_rig import CODE, Rig, load, opened, workflow
from hosts_rig import Pair, pair

from dataflower.errors import Code, InvocationFailed
from dataflower.host.runtime import Runtime

pytestmark = pytest.mark.usefixtures("grpc_runtime")

DEADLINE_S = 1.0
SETTINGS: dict[str, Any] = {"code_path": (CODE,), "container_arena_bytes": 2 << 20, "spill_dir": None}
WARM = ", scaling: {min_replicas: 1}"


@dataclass(frozen=True)
class Kind:
    """What a call is found at. `begun`: functions of it that run then; `ended`: those that can say that they ended."""

    stages: str
    reads: str
    begun: int = 1
    ended: int = 1


def one(function: str, more: str = "") -> str:
    """A stage."""
    return f"  first: {{function: 'ending_functions:{function}', inputs: {{log: inputs.log}}{more or WARM}}}\n"


def two(producer: str, reader: str, given: str = "", more: str = "") -> str:
    """A producer of a stream and a reader of it."""
    return (
        f"  first: {{function: 'ending_functions:{producer}', inputs: {{log: inputs.log{given}}}{more}{WARM}}}\n"
        f"  second: {{function: 'ending_functions:{reader}', inputs: {{item: first.item, log: inputs.log}}{WARM}}}\n"
    )


KINDS = {
    "sleeps": Kind(one("sleeps"), "first.out"),
    "spins": Kind(one("spins"), "first.out"),
    "reads": Kind(one("reads"), "first.out"),
    "computes in C": Kind(one("computes"), "first.out", ended=0),
    "awaits": Kind(one("awaits"), "first.out"),
    "batch": Kind(one("sleeps_together"), "first.out"),
    "stream": Kind(one("one_item"), "{gather: first.item}"),
    "async stream": Kind(one("one_item_async"), "{gather: first.item}"),
    "reader": Kind(two("one_item", "takes_all"), "second.out", 2, 2),
    "no credit": Kind(two("endless_items", "takes_one", ", nbytes: inputs.small"), "second.out", 2, 2),
    "no room": Kind(
        two("endless_items", "takes_one", ", nbytes: inputs.large", ", credit: {items: 1000}"), "second.out", 2, 2
    ),
}


def source(kind: Kind) -> str:
    """The workflow of a kind, with a stage that must not run."""
    ports = "inputs: {log: string, small: {type: int, default: 10}, large: {type: int, default: 300000}}\n"
    last = f"  last: {{function: 'ending_functions:later', inputs: {{x: {kind.reads}, log: inputs.log}}{WARM}}}\n"
    return workflow("ends", f"{ports}stages:\n{kind.stages}{last}outputs: {{out: last.out}}\n")


def said(log: Path) -> bytes:
    """What the functions noted, in order."""
    return bytes(sorted(log.read_bytes())) if log.exists() else b""


@pytest.fixture(params=["cancel", "deadline"])
def by_deadline(request: pytest.FixtureRequest) -> bool:
    """How the call ends."""
    return bool(request.param == "deadline")


async def end(host: Runtime, rig: Rig | Pair, kind: Kind, log: Path, *, by_deadline: bool) -> set[int]:
    """Call it, end it while it runs, and see what is left of it. Gives the processes that it was found in."""
    await host.apply(load(source(kind), "ends"), source(kind))
    await host.wait_ready("ends")  # a start may take longer than the deadline allows
    deadline = time.monotonic() + DEADLINE_S if by_deadline else None
    invocation = await host.invoke("ends", {"log": str(log)}, deadline=deadline)
    await rig.until(lambda: said(log).count(b"b") == kind.begun)
    pids = set(host.container_pids().values())
    if not by_deadline:
        await host.cancel(invocation.id)
    with pytest.raises(InvocationFailed) as caught:
        await invocation.result()
    assert caught.value.code is (Code.DEADLINE_EXCEEDED if by_deadline else Code.CANCELLED)
    await rig.settled()
    await rig.until(lambda: said(log) == b"b" * kind.begun + b"e" * kind.ended)
    return pids


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
async def test_it_ends(kind: Kind, by_deadline: bool, tmp_path: Path) -> None:
    async with opened(**SETTINGS, cancel_grace_s=2.0) as rig:
        pids = await end(rig.host, rig, kind, tmp_path / "log", by_deadline=by_deadline)
        if kind.ended:
            assert pids <= set(rig.host.container_pids().values())  # none had to be killed for it


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
async def test_it_ends_on_another_host(kind: Kind, by_deadline: bool, tmp_path: Path) -> None:
    places = [f"ends.{stage}=b" for stage in ("first", "second", "last") if f"  {stage}:" in source(kind)]
    async with pair(*places, lender=SETTINGS, **SETTINGS) as hosts:
        await end(hosts.owner, hosts, kind, tmp_path / "log", by_deadline=by_deadline)


async def test_what_waits_for_a_container_never_runs(by_deadline: bool, tmp_path: Path) -> None:
    kind = Kind(one("sleeps", ", scaling: {min_replicas: 1, max_replicas: 1}"), "first.out")
    async with opened(**SETTINGS) as rig:
        await rig.client.apply(source(kind))
        await rig.host.wait_ready("ends")
        busy = await rig.host.invoke("ends", {"log": str(tmp_path / "log")})
        await rig.until(lambda: said(tmp_path / "log") == b"b")
        deadline = time.monotonic() + DEADLINE_S if by_deadline else None
        waits = await rig.host.invoke("ends", {"log": str(tmp_path / "other")}, deadline=deadline)
        await rig.until(lambda: rig.host.statistics().core.queued == 1)
        if not by_deadline:
            await rig.host.cancel(waits.id)
        with pytest.raises(InvocationFailed) as caught:
            await waits.result()
        assert caught.value.code is (Code.DEADLINE_EXCEEDED if by_deadline else Code.CANCELLED)
        await rig.until(lambda: rig.host.statistics().core.queued == 0)
        await rig.host.cancel(busy.id)
        await rig.settled()
    assert said(tmp_path / "log") == b"be"
    assert said(tmp_path / "other") == b""


async def test_a_deadline_is_told_over_grpc(tmp_path: Path) -> None:
    kind = KINDS["sleeps"]
    async with opened(**SETTINGS) as rig:
        await rig.client.apply(source(kind))
        record = await rig.client.submit("ends", log=str(tmp_path / "log"), deadline_s=DEADLINE_S)
        async for seen in rig.client.watch(record.id):
            record = seen
        assert record.failure is not None
        assert record.failure.code is Code.DEADLINE_EXCEEDED
