"""The front door over real gRPC on loopback, with a fake host behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dataflower.errors import (
    Code,
    DataflowerError,
    FailedPrecondition,
    Failure,
    InvalidArgument,
    InvocationFailed,
    NotFound,
    Problem,
    ResourceExhausted,
    Unavailable,
    WorkflowInvalid,
)
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway._generated import workflow_pb2_grpc
from dataflower.gateway.client import AsyncClient, Client
from dataflower.gateway.server import WORKFLOWS, Gateway, serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import State
from dataflower.spec.function import Port, Tensor
from dataflower.spec.workflow import Workflow
from dataflower.testing.fake_host import FakeHost, fake_workflow

LIMIT = 1024 * 1024
pytestmark = pytest.mark.usefixtures("grpc_runtime")


def load(text: str, file: str) -> Workflow:
    first = text.splitlines()[0]
    if not first.startswith("name: "):
        raise WorkflowInvalid((Problem(file, 1, 1, f"unknown key {first!r}", "did you mean 'name'?"),))
    return fake_workflow(first.removeprefix("name: "), inputs=(Port("x"),))


async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def double(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield 2 * number


async def forever() -> None:
    await asyncio.Event().wait()


def boom(x: str) -> None:
    raise ValueError(x)


STREAM = (Port("out", stream=True),)


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = FakeHost()
    host.add("echo", lambda x: x)
    host.add("count", count, outputs=STREAM)
    host.add("double", double, inputs=(Port("numbers", stream=True),), outputs=STREAM)
    host.add("forever", forever)
    host.add("boom", boom)
    host.add("image", lambda x: x, inputs=(Port("x", Tensor("UINT8", ["H", 2])),))
    yield host
    await host.close()


@contextlib.asynccontextmanager
async def opened(host: FakeHost, **settings: Any) -> AsyncIterator[Gateway]:
    async with await serve(host, GatewayConfig(port=0, max_message_bytes=LIMIT, **settings), load=load) as gateway:
        yield gateway


@pytest.fixture
async def gateway(host: FakeHost) -> AsyncIterator[Gateway]:
    async with opened(host) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{gateway.grpc_port}") as client:
        yield client


@pytest.fixture
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield channel


async def only(host: FakeHost) -> Any:
    """The one invocation, as soon as the host has it."""
    while not host.invocations:
        await asyncio.sleep(0.001)
    (invocation,) = host.invocations.values()
    return invocation


async def test_values_and_arrays_go_in_and_come_out(client: AsyncClient) -> None:
    value = {"text": "ü", "list": [1, 2.5, None, True, b"x"], "array": np.arange(6, dtype=np.float32).reshape(2, 3)}
    out = (await client.invoke("echo", x=value))["out"]
    np.testing.assert_array_equal(out.pop("array"), value.pop("array"))
    assert out == value


async def test_workflows_are_applied_listed_shown_and_deleted(client: AsyncClient) -> None:
    applied = await client.apply("name: mine\n")
    assert (applied.name, applied.version, applied.inputs) == ("mine", 1, (Port("x"),))
    assert (await client.apply("name: mine\nsecond: 1\n", expected_version=1)).version == 2
    with pytest.raises(DataflowerError) as lost:
        await client.apply("name: mine\nthird: 1\n", expected_version=1)
    assert lost.value.code is Code.ABORTED
    assert "mine" in [w.name for w in await client.workflows()]
    assert (await client.workflow("mine")).source == "name: mine\nsecond: 1\n"
    assert (await client.invoke("mine", x=1)) == {"out": {"x": 1}}
    await client.delete("mine")
    with pytest.raises(NotFound, match="mine"):
        await client.workflow("mine")
    image = await client.workflow("image")
    assert image.inputs[0].type == Tensor("UINT8", ["H", 2])


async def test_a_broken_workflow_brings_all_its_problems(client: AsyncClient) -> None:
    with pytest.raises(WorkflowInvalid) as broken:
        await client.apply("nam: x\n")
    assert [str(p) for p in broken.value.problems] == ["<workflow>:1:1: unknown key 'nam: x' (did you mean 'name'?)"]


async def test_outputs_stream_and_a_summary_ends_them(client: AsyncClient) -> None:
    stream = client.stream("count", n=3)
    assert [tuple(item) async for item in stream] == [("out", 0, 0), ("out", 1, 1), ("out", 2, 2)]
    assert stream.summary is not None
    assert (stream.summary.invocation_id, stream.summary.items) == (stream.invocation_id, 3)


async def test_stream_inputs_are_fed_while_outputs_come(client: AsyncClient) -> None:
    go_on = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        yield 2

    got = []
    async for _, _, value in client.stream("double", numbers=numbers()):
        got.append(value)
        go_on.set()  # the second number is sent only after the first result has come back
    assert got == [2, 4]
    assert await client.invoke("double", numbers=[5, 6]) == {"out": [10, 12]}


async def test_an_error_in_the_callers_iterator_ends_the_call(client: AsyncClient, host: FakeHost) -> None:
    go_on = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        raise KeyError("mine")

    stream = client.stream("double", numbers=numbers())
    assert (await anext(stream)).value == 2
    go_on.set()
    with pytest.raises(KeyError, match="mine"):
        await anext(stream)
    invocation = await only(host)
    await invocation.wait_over()
    assert invocation.state is State.CANCELLED


async def test_a_failure_tells_stage_attempt_and_traceback(client: AsyncClient) -> None:
    with pytest.raises(InvocationFailed) as failed:
        await client.invoke("boom", x="ouch")
    failure = failed.value.failure
    assert (failure.code, failure.kind, failure.message) == (Code.INTERNAL, "ValueError", "ouch")
    assert (failure.stage, failure.attempt) == ("body", 1)
    assert "raise ValueError(x)" in failure.traceback
    with pytest.raises(InvocationFailed, match="ouch"):
        _ = [item async for item in client.stream("boom", x="ouch")]


@pytest.mark.parametrize("code", Code)
async def test_each_code_reaches_the_caller(client: AsyncClient, host: FakeHost, code: Code) -> None:
    host.refusal = DataflowerError("no", code=code, retry_after_s=2.0)
    with pytest.raises(DataflowerError) as refused:
        await client.invoke("echo", x=1)
    assert (refused.value.code, refused.value.message, refused.value.retry_after_s) == (code, "no", 2.0)
    host.refusal = InvocationFailed(Failure(code, "Kind", "why", "s", 2))
    with pytest.raises(InvocationFailed) as failed:
        _ = [item async for item in client.stream("echo", x=1)]
    assert failed.value.failure == Failure(code, "Kind", "why", "s", 2)


async def test_bad_calls_are_refused_and_the_server_serves_on(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="nope"):
        await client.invoke("nope")
    with pytest.raises(InvalidArgument, match="missing"):
        await client.invoke("echo")
    with pytest.raises(InvalidArgument, match="unknown input"):
        await client.invoke("echo", x=1, y=2)
    with pytest.raises(InvalidArgument, match="float32"):
        await client.invoke("image", x=np.zeros((3, 2), np.float32))
    with pytest.raises(InvalidArgument, match=r"\[3, 3\]"):
        await client.invoke("image", x=np.zeros((3, 3), np.uint8))
    assert await client.invoke("echo", x=1) == {"out": 1}


async def test_a_bug_in_the_host_is_internal_and_logged(
    client: AsyncClient, host: FakeHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "recent", lambda *_: 1 / 0)
    with pytest.raises(DataflowerError, match="ZeroDivisionError") as failed:
        await client.invocations()
    assert failed.value.code is Code.INTERNAL
    assert "ListInvocations failed" in caplog.text


async def test_messages_beyond_the_limit(client: AsyncClient, host: FakeHost) -> None:
    with pytest.raises(ResourceExhausted, match="larger than max"):
        await client.invoke("echo", x=b"x" * (LIMIT + 1))
    host.add("big", lambda: b"x" * (LIMIT + 1))
    host.add("huge", lambda: np.broadcast_to(np.uint8(1), (1 << 16, 1 << 16)))  # longer than protobuf can say
    with pytest.raises(ResourceExhausted, match="stream the outputs"):
        await client.invoke("big")
    with pytest.raises(ResourceExhausted, match=r"at least 4294967296 bytes.*max_message_bytes"):
        await client.invoke("huge")
    with pytest.raises(ResourceExhausted, match="at least 4294967296 bytes"):
        _ = [item async for item in client.stream("huge")]
    assert await client.invoke("echo", x="still here") == {"out": "still here"}


async def test_the_deadline_becomes_the_invocations(client: AsyncClient, host: FakeHost) -> None:
    for deadline_s in (0.05, 0.5, 5.0):  # on a busy machine a short one may be over before the call has gone out
        with pytest.raises(InvocationFailed) as late:
            await client.invoke("forever", deadline_s=deadline_s)
        assert late.value.failure.code is Code.DEADLINE_EXCEEDED
        if host.invocations:
            break
    *_, invocation = host.invocations.values()
    await invocation.wait_over()
    assert invocation.deadline is not None
    assert invocation.failure.code is Code.DEADLINE_EXCEEDED


async def test_no_deadline_is_none(client: AsyncClient, host: FakeHost) -> None:
    await client.invoke("echo", x=1)
    assert (await only(host)).deadline is None


@pytest.mark.parametrize("how", ["unary", "stream"])
async def test_a_caller_that_cancels_cancels_the_invocation(client: AsyncClient, host: FakeHost, how: str) -> None:
    async def call() -> None:
        if how == "unary":
            await client.invoke("forever")
        else:
            _ = [item async for item in client.stream("forever")]

    calling = asyncio.create_task(call())
    invocation = await only(host)
    calling.cancel()
    await asyncio.wait((calling,))
    await invocation.wait_over()
    assert calling.cancelled()
    assert invocation.failure == Failure(Code.CANCELLED, "Cancelled", "the caller left")


async def test_a_client_that_vanishes_mid_stream_cancels_the_invocation(host: FakeHost, gateway: Gateway) -> None:
    client = AsyncClient(f"127.0.0.1:{gateway.grpc_port}")
    stream = client.stream("count", n=10**9)
    assert (await anext(stream)).value == 0
    await client.close()
    invocation = await only(host)
    await invocation.wait_over()
    assert invocation.state is State.CANCELLED


async def test_a_slow_reader_slows_the_workflow(client: AsyncClient, host: FakeHost) -> None:
    async def blobs() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield b"x" * (LIMIT // 2)

    host.add("blobs", blobs, outputs=STREAM)
    stream = client.stream("blobs")
    await anext(stream)
    invocation = await only(host)
    seen = -1
    while invocation.emitted != seen:  # until it is stuck
        seen = invocation.emitted
        await asyncio.sleep(0.2)
    assert seen < 200
    assert len([item async for item in stream]) == 399
    assert invocation.emitted == 400


async def test_stream_protocol_errors(channel: grpc.aio.Channel) -> None:
    stub = workflow_pb2_grpc.WorkflowServiceStub(channel)

    async def status(*requests: pb.InvokeStreamRequest) -> grpc.StatusCode:
        call = stub.InvokeStream(iter(requests))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            _ = [response async for response in call]
        return error.value.code()

    open_ = pb.InvokeStreamRequest(open=pb.OpenInvocation(workflow="double", open_inputs=["numbers"]))
    stray = pb.InvokeStreamRequest(item=pb.InputItem(port="nope"))
    assert await status() is grpc.StatusCode.INVALID_ARGUMENT
    assert await status(stray) is grpc.StatusCode.INVALID_ARGUMENT
    assert await status(open_, stray) is grpc.StatusCode.INVALID_ARGUMENT
    assert await status(open_, open_) is grpc.StatusCode.INVALID_ARGUMENT


async def test_submitted_calls_are_kept_watched_and_cancelled(client: AsyncClient) -> None:
    record = await client.submit("echo", x=1, request_id="a")
    assert record.id == "a"
    states = [r.state async for r in client.watch("a")]
    assert states[-1] is State.SUCCEEDED
    assert (await client.get("a")).outputs == {"out": 1}
    assert (await client.submit("echo", x=1, request_id="a")).id == "a"
    with pytest.raises(DataflowerError) as other:
        await client.submit("echo", x=2, request_id="a")
    assert other.value.code is Code.ALREADY_EXISTS
    await client.submit("forever", request_id="b", deadline_s=100)
    with pytest.raises(FailedPrecondition, match="still running"):
        await client.trace("b")
    assert (await client.cancel("b")).state is State.CANCELLED
    assert [r.id for r in await client.invocations()] == ["b", "a"]
    assert [r.id for r in await client.invocations("echo")] == ["a"]
    trace = await client.trace("a")
    assert [task.stage for task in trace.tasks] == ["body"]
    assert trace.finished >= trace.arrived > 0
    with pytest.raises(NotFound):
        await client.get("c")


async def test_status_and_request_id(client: AsyncClient, channel: grpc.aio.Channel) -> None:
    info = await client.status()
    assert info.max_message_bytes == LIMIT
    assert "echo" in [w.name for w in info.workflows]
    stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
    call = stub.ServerStatus(pb.ServerStatusRequest(), metadata=(("x-request-id", "r1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "r1"
    failing = stub.GetWorkflow(pb.GetWorkflowRequest(name="nope"), metadata=(("x-request-id", "r2"),))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await failing
    assert dict(error.value.trailing_metadata())["x-request-id"] == "r2"


async def test_health_follows_the_workflows(client: AsyncClient, channel: grpc.aio.Channel, gateway: Gateway) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    kinds = health_pb2.HealthCheckResponse
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == kinds.SERVING
    assert (await stub.Check(health_pb2.HealthCheckRequest(service="echo"))).status == kinds.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await stub.Check(health_pb2.HealthCheckRequest(service="mine"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="mine"))
    seen = [(await watch.read()).status]
    await client.apply("name: mine\n")
    seen.append((await watch.read()).status)
    await gateway.close(grace=30)  # a watcher does not hold it up
    seen.append((await watch.read()).status)
    assert seen == [kinds.SERVICE_UNKNOWN, kinds.SERVING, kinds.NOT_SERVING]


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {s.name for response in [r async for r in call] for s in response.list_services_response.service}
    assert {"dataflower.v1.WorkflowService", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names


async def test_who_still_sends_is_told_what_the_server_said() -> None:
    """An iterator that holds the client up: the server's answer has come when the next item is sent."""

    def refuse(requests: Iterator[Any], context: Any) -> None:
        next(requests)
        context.abort(grpc.StatusCode.NOT_FOUND, "no workflow 'missing'")

    def frames() -> Iterator[int]:
        for frame in range(3):
            time.sleep(0.1)
            yield frame

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        refusing = {"InvokeStream": grpc.stream_stream_rpc_method_handler(refuse)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(WORKFLOWS, refusing),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            async with AsyncClient(f"127.0.0.1:{port}") as client:
                with pytest.raises(NotFound, match="no workflow 'missing'"):
                    _ = [item async for item in client.stream("missing", frames=frames())]
        finally:
            server.stop(0).wait()


async def test_a_key_is_asked_for_except_for_health(host: FakeHost) -> None:
    async with opened(host, api_keys=("secret",)) as gateway:
        address = f"127.0.0.1:{gateway.grpc_port}"
        for key in (None, "wrong"):
            async with AsyncClient(address, api_key=key) as client:
                with pytest.raises(DataflowerError) as refused:
                    await client.invoke("echo", x=1)
                assert refused.value.code is Code.UNAUTHENTICATED
                with pytest.raises(DataflowerError) as refused:
                    _ = [item async for item in client.stream("echo", x=1)]
                assert refused.value.code is Code.UNAUTHENTICATED
        async with AsyncClient(address, api_key="secret") as client:
            assert await client.invoke("echo", x=1) == {"out": 1}
        async with grpc.aio.insecure_channel(address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_nobody_there_is_unavailable_with_a_hint(host: FakeHost) -> None:
    async with opened(host) as gateway:
        address = f"127.0.0.1:{gateway.grpc_port}"
    async with AsyncClient(address) as client:
        with pytest.raises(Unavailable, match=f"is `dataflower serve` running on {address}"):
            await client.status()


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:port", "http://127.0.0.1:8001"])
def test_what_is_no_address_is_refused_before_anything_is_sent(address: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match="expected HOST:PORT"):
            kind(address)


async def test_a_closed_client_says_so(gateway: Gateway) -> None:
    address = f"127.0.0.1:{gateway.grpc_port}"
    async with AsyncClient(address) as asynchronous:
        assert await asynchronous.invoke("echo", x=1) == {"out": 1}
    await asynchronous.close()
    with pytest.raises(FailedPrecondition, match="the client is closed"):
        await asynchronous.invoke("echo", x=1)
    with pytest.raises(FailedPrecondition, match="the client is closed"):
        _ = [item async for item in asynchronous.stream("echo", x=1)]
    client = Client(address)
    client.close()
    client.close()
    for call in (client.status, lambda: list(client.stream("echo", x=1)), lambda: list(client.watch("i"))):
        with pytest.raises(FailedPrecondition, match="the client is closed"):
            call()


async def test_a_taken_port_is_refused(host: FakeHost, gateway: Gateway) -> None:
    with pytest.raises(FailedPrecondition, match=r"can't listen .*another server running there"):
        await serve(host, GatewayConfig(port=gateway.grpc_port), load=load)


@pytest.mark.parametrize("address", ["192.0.2.7", "no host has this name"])
async def test_an_address_that_is_not_ours_is_not_blamed_on_another_server(host: FakeHost, address: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"can't listen on {address}:0: .*--address names") as refused:
        await serve(host, GatewayConfig(port=0, address=address), load=load)
    assert "another server" not in refused.value.message


async def test_half_a_tls_configuration_is_refused(host: FakeHost, tmp_path: Any) -> None:
    with pytest.raises(InvalidArgument, match="both"):
        await serve(host, GatewayConfig(port=0, tls_cert_file=tmp_path / "cert.pem"), load=load)


def use_sync_client(address: str) -> list[Any]:
    seen: list[Any] = []
    with Client(address) as client:
        seen.append(client.invoke("echo", {"x": 1}))
        seen.append([tuple(item) for item in client.stream("double", numbers=iter([1, 2]))])
        with client.stream("count", n=10**9) as stream:
            seen.append(next(stream).value)
        try:
            client.invoke("boom", x="ouch")
        except InvocationFailed as error:
            seen.append(error.failure.message)
        try:
            list(client.stream("double", numbers=iter([object()])))
        except InvalidArgument as error:
            seen.append("can't be sent" in error.message)
        try:
            client.invoke("forever", deadline_s=0.05)
        except InvocationFailed as error:
            seen.append(error.code)
        record = client.submit("echo", x=3)
        seen.append([r.outputs for r in client.watch(record.id)][-1])
        seen.append(client.trace(record.id).invocation == record.id)
        seen.append("echo" in [w.name for w in client.status().workflows])
    return seen


async def test_the_sync_client_does_the_same(gateway: Gateway) -> None:
    seen = await asyncio.to_thread(use_sync_client, f"127.0.0.1:{gateway.grpc_port}")
    assert seen == [
        {"out": 1},
        [("out", 0, 2), ("out", 1, 4)],
        0,
        "ouch",
        True,
        Code.DEADLINE_EXCEEDED,
        {"out": 3},
        True,
        True,
    ]


async def test_a_client_that_stops_before_the_end_of_an_input_has_left(
    channel: grpc.aio.Channel, host: FakeHost
) -> None:
    stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
    opening = pb.OpenInvocation(workflow="double", open_inputs=["numbers"])
    call = stub.InvokeStream(iter([pb.InvokeStreamRequest(open=opening)]))
    with pytest.raises(grpc.aio.AioRpcError, match="before the end of numbers"):
        _ = [response async for response in call]
    assert (await only(host)).state is State.CANCELLED
