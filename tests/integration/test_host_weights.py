"""Containers of a real host hold one copy of a model between them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from engine_rig import load, workflow
from test_checkpoint_store import proportional_bytes
from weights_for_tests import make

from dataflower.checkpoint.settings import StoreConfig
from dataflower.host.api import ContainerStart
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

CODE = str(Path(__file__).parent.parent)


def two_holders(model: Path) -> str:
    stages = "".join(
        f"  {name}:\n    function: weights_functions:Holder\n    params: {{model: '{model}'}}\n"
        "    inputs: {x: inputs.x}\n"
        for name in ("left", "right")
    )
    return workflow("holders", f"inputs: {{x: any}}\nstages:\n{stages}outputs: {{l: left.out, r: right.out}}\n")


async def call(host: Runtime, text: str) -> dict[str, Any]:
    await host.apply(load(text, "<test>"), text)
    return await (await host.invoke("holders", {"x": 1})).result()


def store_pid() -> int:
    """The one child of this process that runs the store."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = [int(pid) for pid in children if b"dataflower.checkpoint.main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found[0] if found else 0


@pytest.mark.parametrize("death", [False, True])
async def test_containers_share_weights_and_outlive_the_store(tmp_path: Path, death: bool) -> None:
    make(tmp_path / "m", 20)
    make(tmp_path / "n", 3, seed=1)
    config = HostConfig(code_path=(CODE,), cpus=2, models=StoreConfig(models_dir=tmp_path / "store"))
    async with Runtime(config) as host:
        assert await host.weights() is None  # nobody has asked for any
        found = await call(host, two_holders(tmp_path / "m"))
        left, right = found["l"], found["r"]
        pids = set(host.container_pids().values())
        assert len(pids) == 2
        assert (left["digest"], left["sha256"]) == (right["digest"], right["sha256"])
        statistics = await host.weights()
        assert statistics is not None
        assert statistics.loads == 1
        assert statistics.models[0].clients == 2
        store = store_pid()
        most = 1.02 * statistics.models[0].nbytes + 2**20
        end = time.monotonic() + 60  # pages that are being joined to huge ones are there twice for a moment
        while (total := sum(proportional_bytes(pid)[0] for pid in (*pids, store))) > most:
            assert time.monotonic() < end, total
            await asyncio.sleep(0.01)
        if death:
            os.kill(store, signal.SIGKILL)
            again = await call(host, two_holders(tmp_path / "m"))  # the containers go on with what they have
            assert again["l"]["sha256"] == left["sha256"]
            other = await call(host, two_holders(tmp_path / "n"))  # a new version, new containers, a new store
            assert other["l"]["digest"] != left["digest"]
            assert store_pid() not in (0, store)
            statistics = await host.weights()
            assert statistics is not None
            assert [m.name for m in statistics.models] == ["n"]


PLAN = """apiVersion: dataflower/v1
kind: Plan
workflow: holders
rate_per_s: 2
slo_ms: 400
percentile: 100
arrivals: paced
billing: integer
cost_per_hour: 1
cost_per_1000: 0.01
worst_ms: 200
stages:
  left:
    budget_ms: 400
    rate_per_s: 2
    groups:
      - {device: cpu, batch: 1, machines: 1, replicas: 1, rate_per_s: 2, duration_ms: 100, timeout_ms: 0, worst_ms: 200}
    weights: {model: m, tier: disk, nbytes: 21000000, load_ms: 5000, prewarm: PREWARM}
"""


async def until_held(host: Runtime, *kinds: str) -> None:
    """Just these kinds of artifacts are to be ready, and are."""
    async with asyncio.timeout(60):
        while sorted(row.kind for row in host.preloaded() if row.held and row.ready) != sorted(kinds):
            await asyncio.sleep(0.05)


async def test_a_server_has_warm_what_its_plan_counts_on(tmp_path: Path) -> None:
    make(tmp_path / "m", 20)
    stage = f"  left:\n    function: weights_functions:Holder\n    params: {{model: '{tmp_path / 'm'}'}}\n"
    rest = "    scaling: {max_replicas: 1}\n    inputs: {x: inputs.x}\n"
    text = workflow("holders", f"inputs: {{x: any}}\nstages:\n{stage}{rest}outputs: {{l: left.out}}\n")
    config = HostConfig(code_path=(CODE,), cpus=2, models=StoreConfig(models_dir=tmp_path / "store"))
    async with Runtime(config) as host:
        starts: list[ContainerStart] = []
        host.on_start(starts.append)
        await host.apply(load(text, "<test>"), text)
        assert host.preloaded() == ()  # `preload` is off: nothing goes by calls
        await host.apply(load(text, "<test>"), text, plan=PLAN.replace("PREWARM", "true"))
        await host.wait_ready("holders")
        await until_held(host, "backbone", "kernels")
        statistics = await host.weights()
        assert statistics is not None
        assert [(model.held, model.ready) for model in statistics.models] == [(True, True)]
        starts.clear()
        await (await host.invoke("holders", {"x": 1})).result()
        assert starts == [], "no call waits for a start"
        (pid,) = host.container_pids().values()
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not starts:
                await asyncio.sleep(0.05)
        again = await host.weights()
        assert again is not None
        assert again.loads == 1, "the next container finds the weights there"
        await host.apply(load(text, "<test>"), text, plan=PLAN.replace("PREWARM", "false"))
        await until_held(host)
        async with asyncio.timeout(60):
            while [model.held for model in (await host.weights() or again).models] != [False]:
                await asyncio.sleep(0.05)
