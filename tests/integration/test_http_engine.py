"""HTTP in front of real containers: values, streams, leaving, counting; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import engine_rig
import pytest
from http_rig import events

from dataflower.gateway.server import serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import State
from dataflower.host.runtime import Runtime

pytestmark = pytest.mark.usefixtures("grpc_runtime")
STAGE = "stages:\n  only: {function: 'door_functions:%s', inputs: {%s}}\noutputs: {out: only.out}\n"


def flow(name: str, function: str, declared: str = "", edges: str = "") -> str:
    return engine_rig.workflow(name, f"inputs: {{{declared}}}\n" + STAGE % (function, edges))


@dataclass(frozen=True)
class Server:
    rig: engine_rig.Rig
    url: str
    session: aiohttp.ClientSession

    @property
    def host(self) -> Runtime:
        return self.rig.host

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body, **more) as answer:
            return answer.status, await answer.json()

    async def metric(self, line: str) -> float:
        async with self.session.get(self.url + "/metrics") as answer:
            found = re.search(rf"^{re.escape(line)} (\S+)$", await answer.text(), re.MULTILINE)
        assert found is not None, line
        return float(found[1])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with contextlib.AsyncExitStack() as stack:
        rig = await stack.enter_async_context(engine_rig.opened())
        config = GatewayConfig(port=0, http_port=0)
        gateway = await stack.enter_async_context(
            await serve(rig.host, config, load=functools.partial(engine_rig.load))
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        assert gateway.http_url is not None
        for text in (
            flow("double", "double", "x: {dtype: FP32, shape: [N, 3]}", "x: inputs.x"),
            flow("frames", "frames", "n: int", "n: inputs.n"),
            flow("forever", "forever"),
        ):
            await rig.client.apply(text)
        yield Server(rig, gateway.http_url, session)


async def test_tensors_and_streams_cross_containers(server: Server) -> None:
    status, body = await server.post("/v1/workflows/double/invoke", {"inputs": {"x": [[1, 2, 3]]}})
    assert (status, body["outputs"]) == (200, {"out": {"dtype": "FP32", "shape": [1, 3], "data": [[2, 4, 6]]}})
    status, body = await server.post("/v1/workflows/double/invoke", {"inputs": {"x": [[1, 2]]}})
    assert (status, "3" in body["error"]["message"]) == (400, True)
    request = {"inputs": {"n": 3}, "stream": True}
    async with server.session.post(f"{server.url}/v1/workflows/frames/invoke", json=request) as answer:
        got = [data["value"]["data"] async for name, data in events(answer) if name == "output"]
    assert got == [[[i, i], [i, i]] for i in range(3)]
    infer = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    _, body = await server.post("/v2/models/double/infer", infer)
    assert body["outputs"][0]["data"] == [2, 4, 6]


async def test_who_leaves_leaves_nothing_behind(server: Server) -> None:
    call = asyncio.create_task(server.post("/v1/workflows/forever/invoke", {}))
    await server.rig.until(lambda: server.host.workflow("forever").running == 1)
    call.cancel()
    await server.rig.until(lambda: server.host.workflow("forever").running == 0)
    (record,) = server.host.recent("forever")
    assert record.state is State.CANCELLED
    request = {"inputs": {"n": 100_000}, "stream": True}
    answer = await server.session.post(f"{server.url}/v1/workflows/frames/invoke", json=request)
    await anext(aiter(events(answer)))
    answer.close()
    await server.rig.until(lambda: server.host.workflow("frames").running == 0)
    assert server.host.recent("frames")[0].state is State.CANCELLED
    await server.rig.settled()


async def test_a_submission_is_found_again(server: Server) -> None:
    headers = {"idempotency-key": "k"}
    first = await server.post("/v1/workflows/double/invoke", {"inputs": {"x": [[1, 2, 3]]}}, headers=headers)
    again = await server.post("/v1/workflows/double/invoke", {"inputs": {"x": [[1, 2, 3]]}}, headers=headers)
    assert first == again
    assert first[1]["id"] == "k"
    other, _ = await server.post("/v1/workflows/double/invoke", {"inputs": {"x": [[1, 2, 4]]}}, headers=headers)
    assert other == 409
    assert len(server.host.recent("double")) == 1


async def test_the_engine_is_measured(server: Server) -> None:
    for _ in range(3):
        await server.post("/v1/workflows/double/invoke", {"inputs": {"x": [[1, 2, 3]]}})
    await server.rig.client.invoke("echo", x=bytes(100_000))  # too large for a message: it takes shared memory
    stage = '{stage="only",workflow="double"}'
    assert await server.metric(f"dataflower_stage_cold_start_seconds_count{stage}") == 1
    assert await server.metric(f"dataflower_stage_queue_seconds_count{stage}") == 2
    assert await server.metric(f"dataflower_stage_run_seconds_count{stage}") == 3
    phases = [f'{{phase="{phase}",stage="only",workflow="double"}}' for phase in ("spawn", "import", "setup")]
    assert [await server.metric(f"dataflower_container_start_seconds_count{phase}") for phase in phases] == [1, 1, 1]
    assert await server.metric(f"dataflower_container_start_seconds_sum{phases[0]}") > 0
    done = 'dataflower_invocations_total{code="OK",state="succeeded",workflow="%s"}'
    assert await server.metric(done % "double") == 3
    assert await server.metric(done % "echo") == 1
    assert await server.metric('dataflower_containers{stage="only",state="idle",workflow="double"}') == 1
    assert await server.metric("dataflower_arena_bytes") > 0
    assert await server.metric("dataflower_zygotes") >= 1
    assert await server.metric("process_open_fds") > 0
