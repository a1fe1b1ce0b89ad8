"""Real clients, a real gateway, a real host with real containers: each promise of the front door once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from engine_rig import Rig, opened, workflow
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dataflower.errors import Code, InvocationFailed
from dataflower.gateway.async_client import AsyncClient
from dataflower.gateway.client import Client
from dataflower.host.api import State

pytestmark = pytest.mark.usefixtures("grpc_runtime")

SPEAK = workflow(
    "speak",
    """
inputs: {text: string, gate: string}
stages:
  tokens: {function: "door_functions:tokens", inputs: {text: inputs.text, gate: inputs.gate}}
outputs: {token: tokens.token}
""",
)
SUM = workflow(
    "sum",
    """
inputs: {numbers: {type: int, stream: true}}
stages:
  totals: {function: "door_functions:totals", inputs: {numbers: inputs.numbers}}
outputs: {total: totals.total}
""",
)
DOUBLE = workflow(
    "double",
    """
inputs: {x: {dtype: FP32, shape: [N, 3]}}
stages:
  double: {function: "door_functions:double", inputs: {x: inputs.x}}
outputs: {out: double.out}
""",
)
WAIT = workflow(
    "wait",
    """
inputs: {log: string}
stages:
  wait: {function: "door_functions:wait", inputs: {log: inputs.log}}
outputs: {out: wait.out}
""",
)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened() as rig:
        yield rig


async def test_tokens_arrive_while_the_function_still_runs(rig: Rig, tmp_path: Path) -> None:
    await rig.client.apply(SPEAK)
    gate = tmp_path / "gate"
    stream = rig.client.stream("speak", text="to be or not", gate=str(gate))
    seen = [tuple(await anext(stream))]
    assert seen == [("token", 0, "to")]
    gate.touch()
    seen += [tuple(item) async for item in stream]
    assert seen == [("token", i, word) for i, word in enumerate(("to", "be", "or", "not"))]
    assert stream.summary is not None
    assert (stream.summary.items, stream.summary.invocation_id) == (4, stream.invocation_id)


async def test_a_client_feeds_a_stream_and_reads_what_each_item_made_of_it(rig: Rig) -> None:
    await rig.client.apply(SUM)
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def numbers() -> AsyncIterator[int]:
        for number in (1, 2, 3):
            yield number
            assert await seen.get() == number * (number + 1) // 2  # the answer, before the next question

    async for item in rig.client.stream("sum", numbers=numbers()):
        seen.put_nowait(item.value)
        last = item
    assert (last.port, last.index, last.value) == ("total", 2, 6)
    assert seen.empty()


async def test_a_megabyte_goes_in_and_comes_out(rig: Rig) -> None:
    await rig.client.apply(DOUBLE)
    x = np.arange(3 * 87_382, dtype=np.float32).reshape(-1, 3)
    assert x.nbytes > 2**20
    out = (await rig.client.invoke("double", x=x))["out"]
    assert (out.dtype, out.shape, out.flags.writeable) == (np.float32, x.shape, False)
    np.testing.assert_array_equal(out, x * 2)

    def with_the_sync_client() -> Any:
        with Client(rig.address) as client:
            return client.invoke("double", x=x)["out"]

    np.testing.assert_array_equal(await asyncio.to_thread(with_the_sync_client), x * 2)


async def test_the_deadline_reaches_the_running_function(rig: Rig, tmp_path: Path) -> None:
    await rig.client.apply(WAIT)
    log = tmp_path / "log"
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke("wait", log=str(log), deadline_s=3.0)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await rig.until(lambda: len(lines(log)) == 2)
    left, told = lines(log)
    assert 0 < float(left) <= 3.0
    assert told == "True"


async def test_another_client_cancels_what_runs(rig: Rig, tmp_path: Path) -> None:
    await rig.client.apply(WAIT)
    log = tmp_path / "log"
    call = asyncio.create_task(rig.client.invoke("wait", log=str(log), request_id="mine"))
    await rig.until(lambda: len(lines(log)) == 1)
    async with AsyncClient(rig.address) as other:
        [stage] = (await other.workflow("wait")).stages
        assert (stage.busy, stage.queued, stage.done) == (1, 0, 0)
        assert (await other.cancel("mine")).state is State.CANCELLED
        with pytest.raises(InvocationFailed) as caught:
            await call
        assert caught.value.code is Code.CANCELLED
        await rig.until(lambda: len(lines(log)) == 2)
        assert lines(log) == [str(math.inf), "True"]
        assert (await other.cancel("mine")).state is State.CANCELLED  # again: nothing happens


async def test_a_client_that_leaves_takes_its_invocation_along(rig: Rig, tmp_path: Path) -> None:
    await rig.client.apply(WAIT)
    log = tmp_path / "log"
    async with AsyncClient(rig.address) as other:
        call = asyncio.create_task(other.invoke("wait", log=str(log), request_id="gone"))
        await rig.until(lambda: len(lines(log)) == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await rig.until(lambda: len(lines(log)) == 2)
    assert (await rig.client.get("gone")).state is State.CANCELLED


async def test_a_submission_is_watched_to_its_end(rig: Rig, tmp_path: Path) -> None:
    await rig.client.apply(SPEAK)
    gate = tmp_path / "gate"
    record = await rig.client.submit("speak", text="a b", gate=str(gate), request_id="job")
    assert (record.id, record.state) == ("job", State.RUNNING)
    states = []
    async for record in rig.client.watch("job"):
        states.append(record.state)
        gate.touch()
    assert (states[0], states[-1]) == (State.RUNNING, State.SUCCEEDED)
    assert record.outputs == {"token": ["a", "b"]}
    again = await rig.client.submit("speak", text="a b", gate=str(gate), request_id="job")
    assert (again.state, again.finished_at) == (State.SUCCEEDED, record.finished_at)


async def test_status_counts_containers_and_tasks_of_each_stage(rig: Rig) -> None:
    await rig.client.apply(DOUBLE)
    for _ in range(2):
        await rig.client.invoke("double", x=np.zeros((1, 3), np.float32))
    info = next(w for w in (await rig.client.status()).workflows if w.name == "double")
    [stage] = info.stages
    assert (stage.stage, stage.idle, stage.busy, stage.queued, stage.done) == ("double", 1, 0, 0, 2)
    assert info.running == 0


async def test_health_knows_a_workflow_as_long_as_it_is_there(rig: Rig) -> None:
    request = health_pb2.HealthCheckRequest(service="double")
    async with grpc.aio.insecure_channel(rig.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        await rig.client.apply(DOUBLE)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        await rig.client.delete("double")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_lists_the_services(rig: Rig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        [answer] = [response async for response in call]
    assert {service.name for service in answer.list_services_response.service} == {
        "dataflower.v1.WorkflowService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
