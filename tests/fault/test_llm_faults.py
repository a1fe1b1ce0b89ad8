"""Isolated LoRA functions over one backbone: what one does or suffers changes nothing for its neighbours."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from engine_rig import CODE, Rig, opened, workflow
from transformers import AutoModelForCausalLM, LlamaConfig

from dataflower.checkpoint.settings import StoreConfig
from dataflower.errors import Code, InvocationFailed

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.usefixtures("grpc_runtime"), pytest.mark.timeout(180)]

SHAPE = LlamaConfig(**tiny._SHAPE | {"vocab_size": 100_000})
PROMPT = tiny.prompt(1, 9)
TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough to be laid out for all."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    net = AutoModelForCausalLM.from_config(SHAPE, dtype=torch.float32)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.3)
    net.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
async def rig(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """Two functions, `a` and `b`, each with an adapter of its own."""
    modules = {f"model.layers.{layer}.self_attn.q_proj": (32, 32) for layer in range(2)}
    settings: dict[str, Any] = {"models": StoreConfig(models_dir=model.parent / "store")}
    settings["readable_paths"] = (str(model), str(tmp_path_factory.getbasetemp()))
    async with opened(code_path=(CODE,), cpus=4, **settings) as rig:
        for seed, name in enumerate("ab"):
            adapter = tiny.adapter(tmp_path_factory.mktemp(name), modules, seed=seed)
            await rig.client.apply(
                workflow(
                    name,
                    "inputs: {prompt: json, tokens: int, act: string}\nstages:\n  only:\n"
                    f"    function: tenant_functions:Tenant\n    params: {{model: '{model}', adapter: '{adapter}'}}\n"
                    "    inputs: {prompt: inputs.prompt, tokens: inputs.tokens, act: inputs.act}\n"
                    "    scaling: {max_replicas: 1, max_ongoing_requests: 4}\n    credit: {items: 64}\n"
                    "    preload: [torch, dataflower.llm.chat, dataflower.llm.files]\n    resources: {cpu: 1}\n"
                    "outputs: {out: only.out}\n",
                )
            )
        yield rig


async def ask(rig: Rig, name: str, act: str = "answer", tokens: int = TOKENS) -> list[Any]:
    out = await rig.client.invoke(name, prompt=PROMPT, tokens=tokens, act=act, deadline_s=100)
    return [item.get("token", item) for item in out["out"]]


async def test_killed_while_it_writes(rig: Rig) -> None:
    want = {name: await ask(rig, name) for name in "ab"}
    assert want["a"] != want["b"]
    (pid,) = await rig.pids("a", "only")
    invocation = await rig.host.invoke("a", {"prompt": PROMPT, "tokens": 900, "act": "answer"})
    seen: list[int] = []
    neighbours: list[Any] = []

    async def read() -> None:
        async for item in invocation.outputs():
            seen.append(item.value["token"])
            if len(seen) == 3:
                neighbours.append(await rig.host.invoke("b", {"prompt": PROMPT, "tokens": TOKENS, "act": "answer"}))
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(InvocationFailed) as caught:
        await read()
    assert caught.value.failure.kind == "ContainerCrashed"
    assert seen == want["a"][: len(seen)] or seen[:TOKENS] == want["a"]
    assert [item["token"] for item in (await neighbours[0].result())["out"]] == want["b"]
    assert await ask(rig, "a") == want["a"]
    assert (await rig.pids("a", "only")) != [pid]
    statistics = await rig.host.weights()
    assert statistics is not None
    assert [(held.clients, ".packed-float32-" in held.name) for held in statistics.models] == [(2, True)]
    await rig.settled()


async def test_the_backbone_can_not_be_written_nor_others_be_seen(rig: Rig) -> None:
    want = {name: await ask(rig, name) for name in "ab"}
    found = (await ask(rig, "a", "look"))[0]
    assert found == {"rights": ["r--s"], "protect": os.strerror(13), "others": []}
    with pytest.raises(InvocationFailed) as caught:
        await ask(rig, "a", "write")
    assert (caught.value.failure.code, caught.value.failure.kind) == (Code.INTERNAL, "ContainerCrashed")
    assert "SIGSEGV" in caught.value.failure.message
    assert await ask(rig, "b") == want["b"]
    assert await ask(rig, "a") == want["a"]
    await rig.settled()
