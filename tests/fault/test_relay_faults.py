"""Containers that hand outputs to each other: the right bytes arrive, whoever dies or gives up meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal

import numpy as np
import pytest
from engine_rig import AGAIN, PATIENCE_S, Rig, opened, workflow

from dataflower.errors import InvocationFailed

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]

NBYTES = 50_000


def chain(each: str = "") -> str:
    """Tensors that are handed on as they came, and new ones, in turn."""
    extra = f"    {each}\n" if each else ""
    names = {"a": "echo", "b": "shifted", "c": "echo", "d": "shifted"}
    sources = dict(zip(names, ("inputs.x", "a.out", "b.out", "c.out"), strict=True))
    stages = "".join(
        f"  {name}:\n    function: fault_functions:{function}\n    inputs: {{x: {sources[name]}}}\n{extra}"
        for name, function in names.items()
    )
    return workflow("chain", f"inputs: {{x: any}}\nstages:\n{stages}outputs: {{y: d.out}}\n")


def brief(each: str = "") -> str:
    """Small values: each but the last hands on and posts its report."""
    extra = f"    {each}\n" if each else ""
    sources = {"a": "inputs.x", "b": "a.out", "c": "b.out"}
    stages = "".join(
        f"  {name}:\n    function: fault_functions:echo\n    inputs: {{x: {source}}}\n{extra}"
        for name, source in sources.items()
    )
    return workflow("brief", f"inputs: {{x: any}}\nstages:\n{stages}outputs: {{y: c.out}}\n")


async def run(rig: Rig, first: int) -> None:
    outputs = await rig.client.invoke("chain", x=np.full(NBYTES, first, np.uint8), deadline_s=PATIENCE_S)
    assert outputs["y"].nbytes == NBYTES
    assert (outputs["y"] == (first + 2) % 256).all()


async def test_tensors_handed_from_container_to_container_are_the_right_ones() -> None:
    async with opened() as rig:
        await rig.client.apply(chain())
        for first in range(60):
            await run(rig, first)
        assert rig.host.statistics().engine.relayed > 60
        await asyncio.gather(*(run(rig, first) for first in range(40)))
        assert rig.host.statistics().engine.violations == 0


@pytest.mark.parametrize("point", ["mid_handover", "after_handover"])
@pytest.mark.parametrize("stage", ["a", "b"])
async def test_a_container_that_dies_beside_its_posted_report(
    monkeypatch: pytest.MonkeyPatch, stage: str, point: str
) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", f"container.{point}:kill:stage={stage}:hit=5")
    async with opened(cpus=1) as rig:
        await rig.client.apply(brief(AGAIN))
        for number in range(20):
            assert (await rig.client.invoke("brief", x=number, deadline_s=PATIENCE_S))["y"] == number
        await rig.settled()
        statistics = rig.host.statistics()
        assert statistics.engine.relayed > 10
        assert statistics.engine.posted > 5
        assert (statistics.failed, statistics.engine.violations) == (0, 0)


async def test_a_container_that_dies_before_it_has_handed_on_what_it_posted_has_crashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATAFLOWER_FAILPOINTS", "container.mid_handover:kill:stage=b:hit=1")
    async with opened(cpus=1) as rig:
        await rig.client.apply(brief())
        failures = []
        for number in range(20):
            try:
                await rig.client.invoke("brief", x=number, deadline_s=PATIENCE_S)
            except InvocationFailed as error:
                failures.append(error.failure)
        kinds = {(failure.kind, failure.stage, failure.attempt) for failure in failures}
        assert kinds == {("ContainerCrashed", "b", 1)}


async def test_a_storm_of_kills_among_containers_that_hand_on() -> None:
    random_ = random.Random(7)
    async with opened(cpus=3) as rig:
        await rig.client.apply(chain(AGAIN))
        kills = done = 0

        async def load() -> None:
            nonlocal done
            while kills < 80:
                await run(rig, random_.randrange(256))
                done += 1

        async def kill() -> None:
            nonlocal kills
            while kills < 80:
                target = done + random_.randrange(1, 12)
                await rig.until(lambda enough=target: done >= enough)  # type: ignore[misc]
                pids = sorted(rig.host.container_pids().values())
                with contextlib.suppress(ProcessLookupError):  # killed before, and not yet heard of
                    os.kill(random_.choice(pids), signal.SIGKILL)
                    kills += 1

        await asyncio.gather(kill(), load(), load(), load())
        await rig.settled()
        statistics = rig.host.statistics()
        assert (statistics.failed, statistics.engine.violations) == (0, 0)
        assert statistics.engine.relayed > kills


async def test_a_storm_of_cancellations_among_containers_that_hand_on() -> None:
    random_ = random.Random(8)
    async with opened() as rig:
        await rig.client.apply(chain())
        for first in range(20):
            await run(rig, first)

        async def one() -> None:
            call = asyncio.ensure_future(run(rig, random_.randrange(256)))
            for _ in range(random_.randrange(12)):
                await asyncio.sleep(0)
            if random_.random() < 0.3:
                await asyncio.sleep(random_.random() * 0.004)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call

        for _ in range(60):
            await asyncio.gather(*(one() for _ in range(5)))
        await rig.settled()
        await run(rig, 1)
        assert rig.host.statistics().engine.violations == 0
