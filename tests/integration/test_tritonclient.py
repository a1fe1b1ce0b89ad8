"""The unchanged client of another inference server talks to ours."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import opened, workflow
from inference_models import host_with_models

from dataflower.gateway.server import serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.testing.fake_host import FakeHost

pytestmark = pytest.mark.usefixtures("grpc_runtime")


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = host_with_models()
    yield host
    await host.close()


SEEN = {
    "live": True,
    "ready": True,
    "model_ready": [True, False],
    "metadata": "dataflower",
    "double": [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]],
    "id": "r7",
    "text": "HÉ",
    "frames": [3, 2, 2],
    "half": "float16",
    "json": {"a": [1]},
    "unknown": "StatusCode.NOT_FOUND",
    "version": "StatusCode.NOT_FOUND",
    "dtype": "StatusCode.INVALID_ARGUMENT",
    "shape": "StatusCode.INVALID_ARGUMENT",
    "missing": "StatusCode.INVALID_ARGUMENT",
    "extra": "StatusCode.INVALID_ARGUMENT",
    "output": "StatusCode.INVALID_ARGUMENT",
    "timeout": "StatusCode.DEADLINE_EXCEEDED",
    "client_timeout": "StatusCode.DEADLINE_EXCEEDED",
    "not_offered": "StatusCode.UNIMPLEMENTED",
    "cancelled": True,
}


async def called(port: int) -> dict[str, Any]:
    """What tritonclient saw, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("triton_caller.py")),
        f"127.0.0.1:{port}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    seen: dict[str, Any] = json.loads(out)
    return seen


def check(seen: dict[str, Any]) -> None:
    model = seen.pop("model")
    assert (model["name"], model["platform"], model["versions"]) == ("double", "dataflower_workflow", ["1"])
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert seen == SEEN


async def test_tritonclient_works_unchanged(host: FakeHost) -> None:
    async with await serve(host, GatewayConfig(port=0)) as gateway:
        check(await called(gateway.grpc_port))


ENGINE = {
    "double": ("x: {dtype: FP32, shape: [N, 3]}", "x"),
    "shout": ("text: string", "text"),
    "frames": ("n: int", "n"),
    "same": ("x: any", "x"),
    "forever": ("", ""),
}


async def test_tritonclient_works_with_real_containers() -> None:
    async with opened() as rig:
        for name, (declared, port) in ENGINE.items():
            edges = f"{port}: inputs.{port}" if port else ""
            stage = f"{{function: 'door_functions:{name}', inputs: {{{edges}}}}}"
            text = f"inputs: {{{declared}}}\nstages:\n  only: {stage}\noutputs: {{out: only.out}}\n"
            await rig.client.apply(workflow(name, text))
        check(await called(int(rig.address.rpartition(":")[2])))
