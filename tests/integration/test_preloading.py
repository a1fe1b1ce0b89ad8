"""Cold starts of a real model with and without preloading: which of their phases a call still waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dataflower.checkpoint.settings import StoreConfig
from dataflower.config.sources import load_text
from dataflower.host.api import ContainerStart
from dataflower.host.runtime import Runtime
from dataflower.host.settings import GIB, MIB, HostConfig
from dataflower.wire import StartKind
from functions import assets

ROOT = str(Path(__file__).parents[2])
FILE = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: chat}}
inputs: {{request: json}}
stages:
  complete:
    function: functions.llm:Complete
    inputs: {{request: inputs.request}}
    model: {model}
    params: {{packed: false}} # the weights as they lie on the disk: the very ones that `model` names
    scaling: {{max_replicas: 1, max_ongoing_requests: 4, keep_alive_s: 600}}
    resources: {{memory: 2GiB}}
outputs: {{deltas: complete.deltas}}
"""
REQUEST = {"messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0, "max_tokens": 3}

pytestmark = [pytest.mark.models, pytest.mark.slow]


async def until_ready(host: Runtime, kinds: set[str]) -> None:
    """Everything that is held is there, and it is of these kinds."""
    while True:
        rows = host.preloaded()
        if {row.kind for row in rows if row.held and row.ready} == kinds == {row.kind for row in rows if row.held}:
            return
        await asyncio.sleep(0.05)


async def first_call(tmp_path: Path, kinds: set[str], **settings: Any) -> tuple[list[ContainerStart], list[Any], int]:
    """Starts, deltas and loads of weights of the first call after everything of these kinds is ready."""
    model = assets.find(assets.SMOLLM2)
    text = FILE.format(model=model)
    config = HostConfig(code_path=(ROOT,), cpus=1, models=StoreConfig(models_dir=tmp_path / "models"), **settings)
    async with Runtime(config) as host:
        starts: list[ContainerStart] = []
        host.on_start(starts.append)
        await host.apply(load_text(text, "chat.yaml", code_path=[ROOT]), text)
        async with asyncio.timeout(120):
            await until_ready(host, kinds)
        starts.clear()
        before = await host.weights()
        loads = 0 if before is None else before.loads
        found = await (await host.invoke("chat", {"request": REQUEST})).result()
        after = await host.weights()
        assert after is not None
        return starts, found["deltas"], after.loads - loads


async def test_without_preloading_the_first_call_waits_for_all_of_it(tmp_path: Path) -> None:
    (start,), deltas, loads = await first_call(tmp_path, set())
    phases = {phase.kind: phase for phase in start.phases}
    assert phases.keys() == {StartKind.WEIGHTS, StartKind.MAP, StartKind.MODEL, StartKind.WARM_UP}
    assert not phases[StartKind.WEIGHTS].was_there
    assert loads == 1
    assert deltas[-1]["finish_reason"] == "length"


async def test_weights_that_are_held_are_not_loaded_by_the_call(tmp_path: Path) -> None:
    size = sum(file.stat().st_size for file in assets.find(assets.SMOLLM2).glob("*.safetensors"))
    (start,), deltas, loads = await first_call(
        tmp_path,
        {"library", "backbone"},
        preload=True,
        preload_memory_bytes=size + 800 * MIB,  # libraries fit in besides, a container of 2 GiB does not
    )
    assert {phase.kind: phase.was_there for phase in start.phases}[StartKind.WEIGHTS]
    assert loads == 0
    assert deltas[-1]["finish_reason"] == "length"


async def test_container_that_is_ready_answers_without_a_start(tmp_path: Path) -> None:
    starts, deltas, loads = await first_call(
        tmp_path, {"library", "backbone", "kernels"}, preload=True, preload_memory_bytes=4 * GIB
    )
    assert starts == []
    assert loads == 0
    assert deltas[-1]["finish_reason"] == "length"
