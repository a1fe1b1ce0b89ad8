"""Nonsense without end at a real front door: each piece is the caller's error, never the server's, and it serves on."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import http_rig
import pytest
from chat_double import host_with_models
from http_rig import Door

from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.spec.function import Kind, Port, PortType, Tensor

pytestmark = pytest.mark.usefixtures("grpc_runtime")

MESSAGE = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CHAT = {
    "model": "tiny", "messages": MESSAGE, "max_tokens": 5, "temperature": 1.0, "top_p": 0.9, "n": 1, "stop": ["x"],
    "seed": 1, "stream": False, "logprobs": True, "top_logprobs": 1, "tools": [TOOL], "tool_choice": "auto",
    "response_format": {"type": "text"}, "logit_bias": {"1": 1}, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "stream_options": {"include_usage": True}, "user": "me", "metadata": {}, "max_completion_tokens": 5,
}  # fmt: skip
TEXT = {"model": "tiny", "prompt": ["Hi"], "max_tokens": 5, "echo": False, "logprobs": 1, "n": 1, "best_of": 1}
EMBED = {"model": "embed", "input": ["Hi"], "encoding_format": "float", "dimensions": 2}
INFER = {
    "id": "1", "parameters": {}, "outputs": [{"name": "out"}],
    "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 2], "data": [1, 2], "parameters": {}}],
}  # fmt: skip
INVOKE = {"inputs": {"x": [[1, 2]]}, "deadline_s": 5, "priority": 1, "id": "one", "tenant": "me"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": TEXT,
    "/v1/embeddings": EMBED,
    "/v2/models/image/infer": INFER,
    "/v1/workflows/echo/invoke": INVOKE,
    "/v1/workflows/image/invoke": INVOKE,
}
TENSOR = {"$tensor": {"datatype": "UINT8", "shape": [-1, 2], "data": "AAA="}}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, float("nan"), float("inf"),
    float("-inf"), 0.5, "", "x", "\ud800", "\0", "\u202e", "x" * 10_000, [], [[]], [None], [0] * 1000, {}, {"": None},
    {"\ud800": 1}, [{}], [MESSAGE], {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 1}},
    TENSOR, "1e999", "NaN",
)  # fmt: skip
ROUNDS = 150
AT_ONCE = 25
CALLERS_S = 20.0


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    host, _ = host_with_models()
    host.add("image", lambda x: x, inputs=(Port("x", Tensor("UINT8", ["H", 2])),))
    host.add("whole", lambda x: x, inputs=(Port("x", PortType(Kind.INT)),))
    async with http_rig.opened(host) as door:
        yield door
    await host.close()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something else could stand."""
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        found += places(each, (*path, key))
    return found


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(body)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and pieces of it are others, or missing."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(4):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                del made[at : at + rng.randrange(1, 9)]
            case 2:
                made[at:at] = rng.choice((b"\xff", b"\0", b"[" * 50, b'"', b"{", b"9" * 400, b"\xff" * 9 + b"\x01"))
            case _:
                made[at:at] = made[: rng.randrange(20)]
    return bytes(made)


async def serves(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """A good request is answered by both doors, and nothing was logged that a server has to be ashamed of."""
    status, _, body = await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": 1}})
    assert (status, body["outputs"]) == (200, {"out": 1})
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR or each.exc_info] == []


async def posted(door: Door, path: str, body: bytes, **headers: str) -> int:
    url = door.gateway.http_url + path
    given = {"content-type": "application/json", **headers}
    async with asyncio.timeout(CALLERS_S), door.session.post(url, data=body, headers=given) as answer:
        text = await answer.read()
        # What a function makes of what it was given is its own affair.
        assert answer.status < 500 or answer.status == 501 or b'"stage":"body"' in text, (
            path,
            body[:2000],
            answer.status,
            text[:500],
        )
        assert b"Traceback" not in text
        return answer.status


async def refusals(door: Door, path: str, bodies: list[bytes], **headers: str) -> int:
    """How many of these are refused."""
    found: list[int] = []
    for start in range(0, len(bodies), AT_ONCE):
        some = bodies[start : start + AT_ONCE]
        found += await asyncio.gather(*(posted(door, path, body, **headers) for body in some))
    return sum(status >= 400 for status in found)


@pytest.mark.parametrize("path", BODIES)
async def test_any_value_in_any_field_is_answered_or_the_callers_error(
    door: Door, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    rng = random.Random(path)
    pairs = [(place, odd) for place in places(BODIES[path]) for odd in ODD]
    bodies = [json.dumps(changed(BODIES[path], place, odd)).encode() for place, odd in rng.sample(pairs, ROUNDS)]
    assert await refusals(door, path, bodies) > 20
    await serves(door, caplog)


@pytest.mark.parametrize("path", BODIES)
async def test_damaged_bodies_are_the_callers_error(door: Door, caplog: pytest.LogCaptureFixture, path: str) -> None:
    rng, good = random.Random(path), json.dumps(BODIES[path]).encode()
    assert await refusals(door, path, [damaged(good, rng) for _ in range(ROUNDS)]) > 20
    await serves(door, caplog)


DEEP = 100_000
HUGE = {
    "lists": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a list never closed": b"[" * DEEP,
    "a deep value": b'{"model": "tiny", "inputs": {"x": ' + b"[" * DEEP + b"]" * DEEP + b"}}",
    "a number of many digits": b'{"inputs": {"x": ' + b"9" * DEEP + b"}}",
    "a tiny fraction": b'{"inputs": {"x": 1e-' + b"9" * 1000 + b"}}",
    "a key a thousand times": b"{" + b",".join(b'"inputs": {}' for _ in range(1000)) + b"}",
    "UTF-16": '{"inputs": {"x": 1}}'.encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("path", BODIES)
async def test_bodies_of_absurd_depth_and_size(door: Door, caplog: pytest.LogCaptureFixture, path: str) -> None:
    for body in HUGE.values():
        await posted(door, path, body)
    await posted(door, path, b"\x1f\x8b\x08\0\0\0\0\0\0\xff no gzip", **{"content-encoding": "gzip"})
    await posted(door, path, b"{}", **{"content-encoding": "br"})
    await serves(door, caplog)


WORKFLOW = """apiVersion: dataflower/v1
kind: Workflow
metadata: {name: w}
inputs: {x: any}
stages:
  only: {function: "m:f", inputs: {x: inputs.x}, retry: {attempts: 2}, resources: {memory: 1GiB, cpu: 1}}
outputs: {out: only.out}
"""
YAMLS = {
    "a chain of anchors": "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
    "an anchor in itself": "a: &a [*a]\n",
    "merges of merges": "a0: &a0 {k: v}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
    "depth": "a: " + "[" * 20_000 + "]" * 20_000,
    "depth of blocks": "".join(" " * n + "a:\n" for n in range(500)),
    "a tag": "a: !!python/object/apply:os.system [true]\n",
    "a number": "a: " + "9" * 100_000 + "\n",
    "documents": "---\na: 1\n" * 1000,
    "a surrogate": 'a: "\\ud800"\n',
    "a date": "a: 9999-99-99\n",
    "sexagesimal": "a: " + "59:" * 5000 + "59\n",
}


async def test_workflows_that_are_none_are_refused(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    rng, whole = random.Random(7), WORKFLOW.encode()
    texts = [text.encode() for text in YAMLS.values()] + [WORKFLOW.encode() + text.encode() for text in YAMLS.values()]
    texts += [damaged(whole, rng) for _ in range(150)]
    refused = await refusals(door, "/v1/workflows", texts, **{"content-type": "application/yaml"})
    assert refused >= 2 * len(YAMLS) - 2
    await serves(door, caplog)


POST = b"POST /v1/workflows/echo/invoke HTTP/1.1\r\nHost: %s\r\n"
RAW = {
    "a body cut off": POST + b"Content-Length: 100\r\n\r\n{",
    "a chunk cut off": POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "a chunk of no size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk of any size": POST + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"f" * 40 + b"\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "headers without end": b"GET / HTTP/1.1\r\nHost: %s\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(20_000)),
    "a long header": b"GET / HTTP/1.1\r\nHost: %s\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "a long path": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: %s\r\n\r\n",
    "a path of odd bytes": b"GET /v1/workflows/%%00%%ff%%2e%%2e/%%ed%%a0%%80 HTTP/1.1\r\nHost: %s\r\n\r\n",
    "half a request": b"GET /v1/wor",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("what", RAW)
async def test_bytes_that_are_no_request(door: Door, caplog: pytest.LogCaptureFixture, what: str) -> None:
    host = door.gateway.http_url.removeprefix("http://")
    address, port = host.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(address, int(port))
    writer.write(RAW[what].replace(b"%s", host.encode()).replace(b"%%", b"%"))
    await serves(door, caplog)  # while it hangs
    writer.write_eof()
    answer = b""
    try:
        async with asyncio.timeout(CALLERS_S):
            answer = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    assert not answer or answer.split(b" ")[1][:1] == b"4", answer[:300]
    await serves(door, caplog)


async def test_those_who_send_slowly_hold_up_nobody(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    address, port = door.gateway.http_url.removeprefix("http://").rsplit(":", 1)
    slow = [await asyncio.open_connection(address, int(port)) for _ in range(100)]
    for _, writer in slow:
        writer.write(POST.replace(b"%s", b"localhost") + b"Content-Length: 100\r\n\r\n")
    for _ in range(3):
        for _, writer in slow:
            writer.write(b" ")
        await serves(door, caplog)
    for _, writer in slow:
        writer.close()
    await serves(door, caplog)


# --- gRPC -------------------------------------------------------------------------------------------------------

SERVICE = "/dataflower.v1.WorkflowService/"
FAULTS_OF_THE_SERVER = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}


def invoked(workflow: str, **tensor: Any) -> bytes:
    request = pb.InvokeRequest(workflow=workflow)
    request.inputs["x"].tensor.MergeFrom(pb.Tensor(**tensor))
    return request.SerializeToString()


async def called(channel: grpc.aio.Channel, method: str, body: bytes, **more: Any) -> tuple[grpc.StatusCode, str]:
    try:
        await channel.unary_unary(SERVICE + method)(body, timeout=CALLERS_S, **more)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.fixture
async def channel(door: Door) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.gateway.grpc_port}") as channel:
        yield channel


TENSORS = {
    "a negative size": {"datatype": "UINT8", "shape": [-1, 2], "data": b"ab"},
    "sizes that overflow": {"datatype": "UINT8", "shape": [2**62, 2**62], "data": b"ab"},
    "the least size": {"datatype": "UINT8", "shape": [-(2**63)], "data": b""},
    "no bytes of many": {"datatype": "FP64", "shape": [2**40], "data": b""},
    "nothing times many": {"datatype": "UINT8", "shape": [0, 2**63 - 1], "data": b""},
    "too many dimensions": {"datatype": "UINT8", "shape": [1] * 10_000, "data": b"a"},
    "no such type": {"datatype": "COMPLEX128", "shape": [1], "data": b"a" * 16},
    "an object": {"datatype": "O", "shape": [1], "data": b"a" * 8},
    "strings cut off": {"datatype": "BYTES", "shape": [2], "data": b"\xff\xff\xff\xff"},
    "bytes too few": {"datatype": "UINT8", "shape": [2, 2], "data": b"a"},
    "bytes too many": {"datatype": "UINT8", "shape": [1, 2], "data": b"a" * 9},
    "no shape": {"datatype": "UINT8", "data": b"ab"},
    "no type": {"shape": [2], "data": b"ab"},
}


@pytest.mark.parametrize("workflow", ["image", "whole"])
async def test_impossible_tensors_are_the_callers_error(
    door: Door, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture, workflow: str
) -> None:
    for what, given in TENSORS.items():
        assert (await called(channel, "Invoke", invoked(workflow, **given)))[0] is grpc.StatusCode.INVALID_ARGUMENT, (
            what
        )
    await serves(door, caplog)


async def test_messages_that_are_damaged_are_the_callers_error(
    door: Door, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(11)
    good = invoked("image", datatype="UINT8", shape=[1, 2], data=b"ab")
    listed = pb.Value()
    for _ in range(5):
        listed = pb.Value(list=pb.ListValue(values=[listed, pb.Value(real=float("nan"))]))
    request = pb.InvokeRequest(workflow="echo")
    request.inputs["x"].CopyFrom(listed)
    bodies = [good, request.SerializeToString(), b""]
    seen = set()
    for _ in range(700):
        method = rng.choice(
            ("Invoke", "Submit", "Invoke", "GetInvocation", "ListInvocations", "ApplyWorkflow", "GetTrace")
        )
        body = damaged(rng.choice(bodies), rng)
        code, said = await called(channel, method, body)
        # What protobuf can't read the library answers itself, before anybody here is asked.
        assert code not in FAULTS_OF_THE_SERVER, (method, body, code, said)
        seen.add(code)
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= seen
    await serves(door, caplog)


async def test_deep_values_and_metadata_without_measure(
    door: Door, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    for depth in (50, 95, 99, 150, 5000):
        body = b""
        for _ in range(depth):
            for tag in (0x0A, 0x42):  # a list's value, and the list as a value
                body = bytes((tag,)) + varint(len(body)) + body
        entry = b"\x0a\x01x\x12" + varint(len(body)) + body
        code, said = await called(channel, "Invoke", b"\x0a\x04echo\x1a" + varint(len(entry)) + entry)
        assert code not in FAULTS_OF_THE_SERVER, (depth, code, said)
    good = invoked("image", datatype="UINT8", shape=[1, 2], data=b"ab")
    for metadata in (
        [("x", "y" * 200_000)],
        [(f"x-{n}", "y") for n in range(5000)],
        [("authorization", "\x7e" * 9000)],
    ):
        code, said = await called(channel, "Invoke", good, metadata=metadata)
        assert code not in FAULTS_OF_THE_SERVER, (code, said)
    for headers in ([("traceparent", "00-zz")], [("x-request-id", "x" * 5000)], [("grpc-timeout", "9S")]):
        code, said = await called(channel, "Invoke", good, metadata=headers)
        assert code not in FAULTS_OF_THE_SERVER, (headers, code, said)
    await serves(door, caplog)


def varint(number: int) -> bytes:
    made = b""
    while number > 127:
        made, number = made + bytes((number & 127 | 128,)), number >> 7
    return made + bytes((number,))


async def test_frames_of_http2_that_are_none(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    rng, greeting = random.Random(5), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for number in range(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.gateway.grpc_port)
        frames = b"".join(
            len(body := rng.randbytes(rng.randrange(40))).to_bytes(3, "big")
            + bytes((rng.randrange(12), rng.randrange(256)))
            + rng.choice((0, 1, 2, 3, 2**31)).to_bytes(4, "big") + body
            for _ in range(20)
        )  # fmt: skip
        writer.write((greeting if number % 3 else b"") + (b"\0\0\0\4\0\0\0\0\0" if number % 2 else b"") + frames)
        writer.write_eof()
        try:
            async with asyncio.timeout(CALLERS_S):
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
    await serves(door, caplog)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.gateway.grpc_port}") as channel:
        good = invoked("image", datatype="UINT8", shape=[1, 2], data=b"ab")
        assert (await called(channel, "Invoke", good))[0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "first", [b"", b"\xff\xff", b"\x0a\x06\x0a\x04echo\x0a", b"@"], ids=["empty", "garbage", "cut off", "odd"]
)
async def test_streams_that_open_with_nonsense(
    door: Door, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture, first: bytes
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield first
        await asyncio.Event().wait()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in channel.stream_stream(SERVICE + "InvokeStream")(endless(), timeout=CALLERS_S):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    await serves(door, caplog)
