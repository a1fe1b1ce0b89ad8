"""Containers of a real host hold one copy of a model between them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from engine_rig import load, workflow
from test_checkpoint_store import proportional_bytes
from weights_for_tests import make

from dataflower.checkpoint.settings import StoreConfig
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
        total = sum(proportional_bytes(pid)[0] for pid in (*pids, store))
        assert total <= 1.02 * statistics.models[0].nbytes + 2**20
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
