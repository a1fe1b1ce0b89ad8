"""Weights under a cap on memory, in real containers: they leave the store with those who used them, and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from engine_rig import load, workflow
from weights_for_tests import make

from dataflower.checkpoint.settings import StoreConfig
from dataflower.errors import DataflowerError, FailedPrecondition
from dataflower.host.runtime import Runtime
from dataflower.host.settings import MIB, HostConfig

CODE = str(Path(__file__).parent.parent)


def holder(name: str, model: Path) -> str:
    """A function on weights."""
    return workflow(
        name,
        "inputs: {x: any}\nstages:\n  only:\n    function: weights_functions:Holder\n"
        f"    model: '{model}'\n    inputs: {{x: inputs.x}}\n    scaling: {{max_replicas: 1, keep_alive_s: 600}}\n"
        "outputs: {out: only.out}\n",
    )


async def test_weights_leave_the_store_with_all_who_used_them(tmp_path: Path) -> None:
    make(tmp_path / "m", 40)
    make(tmp_path / "n", 40, seed=1)
    config = HostConfig(
        code_path=(CODE,),
        cpus=2,
        models=StoreConfig(models_dir=tmp_path / "store"),
        device_batches=2,
        device_memory_bytes=335
        * MIB,  # libraries, and weights of 40 beside a container not measured yet (256), not twice
    )

    async def call(host: Runtime, name: str) -> Any:
        return (await (await host.invoke(name, {"x": 1})).result())["out"]["sha256"]

    async def held(host: Runtime) -> tuple[list[str], int]:
        statistics = await host.weights()
        assert statistics is not None
        return [model.name for model in statistics.models], statistics.held_bytes

    async with Runtime(config) as host:
        for name in "mn":
            text = holder(name, tmp_path / name)
            await host.apply(load(text, "<test>"), text)
        first = await call(host, "m")
        names, nbytes = await held(host)
        assert names == ["m"]
        second = await call(host, "n")
        assert second != first
        assert (await held(host))[0] == ["n"]
        assert (await held(host))[1] <= nbytes  # what `m` took went back to the system
        assert [s.idle + s.busy for w in host.workflows() for s in w.stages] == [0, 1]
        (device,) = host.devices()
        assert (device.offloaded, device.cap_bytes) == (2, 335 * MIB)
        assert await call(host, "m") == first


async def test_stage_whose_weights_are_larger_than_the_cap_is_refused_when_it_is_applied(tmp_path: Path) -> None:
    make(tmp_path / "m", 40)
    models = StoreConfig(models_dir=tmp_path / "store")
    config = HostConfig(code_path=(CODE,), cpus=2, models=models, device_batches=2, device_memory_bytes=20 * MIB)
    text = holder("m", tmp_path / "m")
    async with Runtime(config) as host:
        with pytest.raises(FailedPrecondition) as refused:
            await host.apply(load(text, "<test>"), text)
        assert "stage 'only' needs 41 MiB of memory (41 MiB of weights" in refused.value.message
        assert "device_memory_bytes allows 20 MiB: set it to 41MiB at least" in refused.value.message
        assert host.workflows() == ()


async def test_stage_that_turns_out_to_be_larger_than_the_cap_is_refused_when_it_starts(tmp_path: Path) -> None:
    make(tmp_path / "m", 40)
    models = StoreConfig(models_dir=tmp_path / "store")
    config = HostConfig(code_path=(CODE,), cpus=2, models=models, device_batches=2, device_memory_bytes=42 * MIB)
    text = holder("m", tmp_path / "m")
    async with Runtime(config) as host:
        await host.apply(load(text, "<test>"), text)  # what a container takes nobody knows yet
        found = ""
        async with asyncio.timeout(120):
            while not found:  # the first may be over before its container has been measured
                try:
                    await (await host.invoke("m", {"x": 1})).result()
                except DataflowerError as error:
                    found = error.message
        assert "stage 'only' needs" in found
        assert "for a container), and device_memory_bytes allows 42 MiB" in found
        assert [s.idle + s.busy for w in host.workflows() for s in w.stages] == [0]
