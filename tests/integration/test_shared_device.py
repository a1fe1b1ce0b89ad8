"""LoRA functions that share a device and a cap on memory, in real containers: turns, and who leaves for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from engine_rig import CODE, Rig, opened, workflow
from transformers import AutoModelForCausalLM, LlamaConfig

from dataflower.checkpoint.settings import StoreConfig
from dataflower.host.settings import MIB

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("grpc_runtime"), pytest.mark.timeout(180)]

PROMPT = tiny.prompt(1, 9)
TOKENS = 24
BALLAST = 200 * MIB
CAP = 940 * MIB
"""For libraries, both backbones and two containers, one of which may not have been measured (256 MiB); not three."""


def make(folder: Path, seed: int, vocabulary: int) -> Path:
    """Random weights, large enough to be laid out for all."""
    torch.manual_seed(seed)
    net = AutoModelForCausalLM.from_config(LlamaConfig(**tiny._SHAPE | {"vocab_size": vocabulary}), dtype=torch.float32)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.3)
    net.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def lora(name: str, model: Path, adapter: str) -> str:
    """A function with an adapter of its own."""
    return workflow(
        name,
        "slo: {ttft_ms: 5000}\ninputs: {prompt: json, tokens: int, act: string}\nstages:\n  only:\n"
        f"    function: tenant_functions:Tenant\n    model: '{model}'\n    adapter: '{adapter}'\n"
        f"    params: {{ballast: {BALLAST}}}\n"
        "    inputs: {prompt: inputs.prompt, tokens: inputs.tokens, act: inputs.act}\n"
        "    scaling: {max_replicas: 1, max_ongoing_requests: 4, keep_alive_s: 600}\n    credit: {items: 64}\n"
        "    preload: [transformers.models.llama.modeling_llama]\n    resources: {cpu: 1}\n"
        "outputs: {out: only.out}\n",
    )


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Functions `a` and `b` on one backbone, `c` on another."""
    modules = {f"model.layers.{layer}.self_attn.q_proj": (32, 32) for layer in range(2)}
    settings: dict[str, Any] = {"models": StoreConfig(models_dir=tmp_path / "store")}
    settings["readable_paths"] = (str(tmp_path),)
    one, two = make(tmp_path / "one", 5, 100_000), make(tmp_path / "two", 6, 90_000)
    async with opened(
        code_path=(CODE,), cpus=4, device_batches=1, device_batch_size=4, device_memory_bytes=CAP, **settings
    ) as rig:
        for seed, (name, model) in enumerate({"a": one, "b": one, "c": two}.items()):
            adapter = tiny.adapter(tmp_path / f"adapter-{name}", modules, seed=seed)
            await rig.client.apply(lora(name, model, adapter))
        yield rig


async def ask(rig: Rig, name: str, tokens: int = TOKENS) -> list[int]:
    out = await rig.client.invoke(name, prompt=PROMPT, tokens=tokens, act="answer", deadline_s=60)
    return [item["token"] for item in out["out"]]


def containers(rig: Rig) -> dict[str, int]:
    """Containers of each function that are there."""
    found = {status.name: status.stages[0] for status in rig.host.workflows()}
    return {name: s.starting + s.idle + s.busy for name, s in found.items() if name in "abc"}


async def test_functions_take_turns_and_make_room_without_changing_a_token(rig: Rig) -> None:
    want = {"a": await ask(rig, "a"), "b": await ask(rig, "b")}
    assert want["a"] != want["b"]
    assert containers(rig) == {"a": 1, "b": 1, "c": 0}
    (device,) = (await rig.client.status()).devices
    assert (device.name, device.slots, device.running, device.batches) == ("cpu", 1, 0, 2)
    assert device.cap_bytes == CAP
    assert 0 < device.used_bytes < CAP
    assert {s.workflow: s.latency is not None for s in device.sharers} == {"a": True, "b": True, "c": False}
    held = await rig.host.weights()
    assert held is not None
    assert [model.clients for model in held.models] == [2]

    many = await asyncio.gather(*(ask(rig, name) for name in "abab"))  # at once: one batch at a time, the same tokens
    assert many == [want["a"], want["b"], want["a"], want["b"]]

    await ask(rig, "a")
    long = await rig.host.invoke("a", {"prompt": PROMPT, "tokens": 900, "act": "answer"})
    outputs = aiter(long.outputs())
    found = [(await anext(outputs)).value["token"]]
    want["c"] = await ask(rig, "c")  # `b` is idle, and leaves for it; `a` waits for its reader
    assert containers(rig) == {"a": 1, "b": 0, "c": 1}
    assert (await rig.client.status()).devices[0].offloaded == 1
    found += [item.value["token"] async for item in outputs]
    assert (len(found), found[:TOKENS]) == (900, want["a"])

    assert await ask(rig, "b") == want["b"]  # for which one of the others has to leave again
    assert await ask(rig, "c") == want["c"]
    (device,) = (await rig.client.status()).devices
    assert device.offloaded >= 2
    assert device.used_bytes < CAP
