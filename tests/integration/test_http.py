"""Our own HTTP API over real sockets on loopback, with a fake host behind it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import http_rig
import numpy as np
import pytest
from http_rig import LIMIT, Door, events

from dataflower.errors import Code, DataflowerError, Failure, InvocationFailed
from dataflower.gateway.http.status import STATUS
from dataflower.host.api import State
from dataflower.spec.function import Kind, Port, PortType, Tensor
from dataflower.testing.fake_host import FakeHost

pytestmark = pytest.mark.usefixtures("grpc_runtime")
STREAM = (Port("out", stream=True),)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def half(n: int) -> AsyncIterator[int]:
    yield n
    raise ValueError("the rest is missing")


async def endless() -> AsyncIterator[str]:
    while True:
        yield "x" * 1000
        await asyncio.sleep(0.001)


async def forever() -> None:
    await asyncio.Event().wait()


def boom(x: str) -> None:
    raise ValueError(x)


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = FakeHost()
    host.add("echo", lambda x: x)
    host.add("count", count, outputs=STREAM)
    host.add("half", half, outputs=STREAM)
    host.add("endless", endless, outputs=STREAM)
    host.add("forever", forever)
    host.add("boom", boom)
    host.add("image", lambda x: x, inputs=(Port("x", Tensor("UINT8", ["H", 2])),))
    host.add("raw", lambda x: x, inputs=(Port("x", PortType(Kind.BYTES)),))
    yield host
    await host.close()


@pytest.fixture
async def door(host: FakeHost) -> AsyncIterator[Door]:
    async with http_rig.opened(host) as door:
        yield door


async def test_a_call_takes_and_gives_json(door: Door) -> None:
    value = {"text": "ü", "list": [1, 2.5, None, True]}
    status, headers, body = await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": value}})
    assert (status, body["outputs"]) == (200, {"out": value})
    assert body["id"] in door.host.invocations
    assert headers["content-type"] == "application/json"
    assert "GMT" in headers["date"]


async def test_an_answer_waits_for_no_acknowledgement(door: Door) -> None:
    """On a plain asyncio loop, too, where that takes a socket that says that it is TCP."""
    await door.get("/v1/workflows")
    assert door.gateway._http is not None
    for connection in door.gateway._http._connections.connections:
        ours = connection.transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert door.gateway._http._connections.connections


async def test_tensors_and_bytes_travel_in_json(door: Door) -> None:
    _, _, body = await door.post("/v1/workflows/image/invoke", {"inputs": {"x": [[1, 2], [3, 255]]}})
    assert body["outputs"]["out"] == {"dtype": "UINT8", "shape": [2, 2], "data": [[1, 2], [3, 255]]}
    _, _, packed = await door.post(
        "/v1/workflows/image/invoke?tensors=base64", {"inputs": {"x": body["outputs"]["out"]}}
    )
    assert base64.b64decode(packed["outputs"]["out"]["base64"]) == bytes([1, 2, 3, 255])
    _, _, again = await door.post("/v1/workflows/image/invoke", {"inputs": {"x": packed["outputs"]["out"]}})
    assert again["outputs"] == body["outputs"]
    _, _, raw = await door.post("/v1/workflows/raw/invoke", {"inputs": {"x": base64.b64encode(b"\0\xff").decode()}})
    assert raw["outputs"]["out"] == {"base64": base64.b64encode(b"\0\xff").decode()}
    given = {"a": [{"dtype": "FP32", "shape": [1], "data": [1.5]}, {"base64": "AAE="}]}
    _, _, nested = await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": given}})
    assert nested["outputs"]["out"] == given
    (invocation,) = [i for i in door.host.invocations.values() if i.workflow == "echo"]
    array = invocation.record().outputs["out"]["a"][0]
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32


BAD = {
    "": "input 'x' is missing",
    " ": "not JSON",
    "{": "not JSON",
    "[1]": "must be a JSON object",
    "[" * 100_000: "not JSON",
    '{"x": 1}': "inputs go under `inputs`",
    '{"inputs": 3}': "`inputs` must be an object",
    '{"inputs": {}}': "input 'x' is missing",
    '{"inputs": {"x": 1, "z": 2}}': "unknown input 'z'",
    '{"inputs": {"x": [[1, 2, 3]]}}': "UINT8",
    '{"inputs": {"x": [[1, 256]]}}': "does not fit into UINT8",
    '{"inputs": {"x": [[1, 2.5]]}}': "does not fit into UINT8",
    '{"inputs": {"x": [[1], [2, 3]]}}': "is no tensor",
    '{"inputs": {"x": "abc"}}': "instead of numbers",
    '{"inputs": {"x": {"dtype": "UINT8", "shape": [1, 2]}}}': "dtype, shape and data",
    '{"inputs": {"x": {"dtype": "UINT8", "shape": [3, 2], "data": [1]}}}': "does not fit the 1 elements",
    '{"inputs": {"x": {"dtype": "NOPE", "shape": [1, 2], "data": [1, 2]}}}': "unknown datatype 'NOPE'",
    '{"inputs": {"x": {"dtype": "UINT8", "shape": [1, 2], "base64": "!"}}}': "not base64",
    '{"inputs": {"x": {"dtype": "UINT8", "shape": [-1, 2], "base64": "AA=="}}}': "negative",
    '{"inputs": {"x": [[1, 2]]}, "stream": "yes"}': "`stream` must be true or false",
}


@pytest.mark.parametrize("body", BAD)
async def test_a_bad_body_is_a_400_that_says_why(door: Door, body: str) -> None:
    status, _, answer = await door.call("POST", "/v1/workflows/image/invoke", data=body.encode())
    assert status == 400
    assert BAD[body] in answer["error"]["message"]
    assert (answer["error"]["type"], answer["error"]["code"]) == ("invalid_request_error", "invalid_argument")


@pytest.mark.parametrize("code", Code)
async def test_each_code_has_its_status(door: Door, code: Code) -> None:
    door.host.refusal = DataflowerError("no", code=code, retry_after_s=2.4)
    status, headers, body = await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": 1}})
    assert (status, body["error"]["message"], body["error"]["code"]) == (STATUS[code], "no", code.value.lower())
    assert headers.get("retry-after") == ("3" if status in (429, 503) else None)
    assert headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    door.host.refusal = InvocationFailed(Failure(code, "Kind", "why", "s", 2, "trace"))
    status, headers, body = await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": 1}})
    assert status == STATUS[code]
    failure = {"kind": "Kind", "message": "why", "stage": "s", "attempt": 2, "traceback": "trace"}
    assert body["error"]["failure"] == failure
    assert headers.get("retry-after") == ("1" if status in (429, 503) else None)


async def test_what_is_not_there_is_404_and_405(door: Door) -> None:
    for method, path, status in (
        ("GET", "/nope", 404),
        ("POST", "/v1/workflows/nope/invoke", 404),
        ("GET", "/v1/workflows/nope", 404),
        ("GET", "/v1/invocations/nope", 404),
        ("GET", "/v1/invocations/nope/events", 404),
        ("GET", "/v1/workflows/echo/invoke", 405),
        ("DELETE", "/v1/workflows", 405),
        ("GET", "/v1/workflows/", 404),
    ):
        got, headers, body = await door.call(method, path)
        assert (method, path, got) == (method, path, status)
        assert body["error"]["message"]
        assert ("allow" in headers) == (status == 405)
        assert body["error"]["type"] == ("invalid_request_error" if status == 405 else "not_found_error")


async def test_user_code_that_raises_is_a_500_with_its_traceback(door: Door) -> None:
    status, _, body = await door.post("/v1/workflows/boom/invoke", {"inputs": {"x": "ouch"}})
    failure = body["error"]["failure"]
    assert (status, failure["kind"], failure["message"], failure["stage"]) == (500, "ValueError", "ouch", "body")
    assert "raise ValueError(x)" in failure["traceback"]


async def test_outputs_come_as_events(door: Door) -> None:
    for more in (
        {"json": {"inputs": {"n": 3}}, "headers": {"accept": "text/event-stream"}},
        {"json": {"inputs": {"n": 3}, "stream": True}},
    ):
        async with door.session.post(f"{door.gateway.http_url}/v1/workflows/count/invoke", **more) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            ident = answer.headers["x-invocation-id"]
            got = [item async for item in events(answer)]
        assert got[0] == ("started", {"id": ident})
        assert [data for name, data in got if name == "output"] == [
            {"port": "out", "index": i, "value": i} for i in range(3)
        ]
        assert got[-1][0] == "done"
        assert (got[-1][1]["items"], got[-1][1]["id"]) == (3, ident)


async def test_a_failure_in_a_stream_is_its_last_event(door: Door) -> None:
    url = f"{door.gateway.http_url}/v1/workflows/half/invoke"
    async with door.session.post(url, json={"inputs": {"n": 1}, "stream": True}) as answer:
        assert answer.status == 200
        got = [item async for item in events(answer)]
    assert [name for name, _ in got] == ["started", "output", "error"]
    assert got[-1][1]["error"]["failure"]["message"] == "the rest is missing"


async def test_a_caller_who_leaves_cancels_the_call(door: Door) -> None:
    url = f"{door.gateway.http_url}/v1/workflows/forever/invoke"
    call = asyncio.create_task(door.session.post(url, json={}))
    invocation = await door.only()
    call.cancel()
    await invocation.wait_over()
    assert invocation.state is State.CANCELLED
    assert invocation.failure.message == "the caller left"


async def test_a_caller_who_leaves_a_stream_cancels_it(door: Door) -> None:
    url = f"{door.gateway.http_url}/v1/workflows/endless/invoke"
    answer = await door.session.post(url, json={"stream": True})
    seen = 0
    async for _ in events(answer):
        seen += 1
        if seen == 5:
            break
    answer.close()
    invocation = await door.only()
    await invocation.wait_over()
    assert invocation.state is State.CANCELLED


async def test_a_reader_who_pauses_slows_the_workflow_down(door: Door) -> None:
    url = f"{door.gateway.http_url}/v1/workflows/endless/invoke"
    async with door.session.post(url, json={"stream": True}, read_bufsize=1024) as answer:
        invocation = await door.only()
        emitted = -1
        while emitted != invocation.emitted:  # until the pipe between us is full
            emitted = invocation.emitted
            await asyncio.sleep(0.3)
        assert invocation.state is State.RUNNING
        assert invocation.emitted - invocation.taken <= 2
        seen = 0
        async for _ in events(answer):
            seen += 1
            if seen > emitted + 10:
                break
    assert seen > emitted


async def test_a_deadline_holds(door: Door) -> None:
    headers = {"x-dataflower-deadline-ms": "50"}
    status, _, body = await door.post("/v1/workflows/forever/invoke", {}, headers=headers)
    assert (status, body["error"]["code"], body["error"]["type"]) == (504, "deadline_exceeded", "timeout_error")
    for bad in ("0", "-1", "soon", "nan", "inf"):
        headers = {"x-dataflower-deadline-ms": bad}
        status, _, body = await door.post("/v1/workflows/forever/invoke", {}, headers=headers)
        assert (status, bad in body["error"]["message"]) == (400, True)


async def test_ids_come_back(door: Door) -> None:
    _, headers, _ = await door.get("/healthz", headers={"x-request-id": "r-1", "traceparent": TRACE})
    assert headers["x-request-id"] == "r-1"
    version, trace, parent, flags = headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01")
    assert parent not in ("00f067aa0ba902b7", "0" * 16)
    _, headers, _ = await door.get("/nope", headers={"x-request-id": "a b", "traceparent": TRACE.replace("4", "x")})
    assert len(headers["x-request-id"]) == 16
    assert "traceparent" not in headers


async def test_a_submission_is_answered_with_its_place(door: Door) -> None:
    headers = {"prefer": "wait=1, respond-async"}
    status, told, body = await door.post("/v1/workflows/forever/invoke", {}, headers=headers)
    assert (status, body["state"], told["preference-applied"]) == (202, "running", "respond-async")
    assert told["location"] == f"/v1/invocations/{body['id']}"
    assert (await door.get(told["location"]))[2]["state"] == "running"
    status, _, ended = await door.post(f"{told['location']}/cancel")
    assert (status, ended["state"], ended["failure"]["code"]) == (200, "cancelled", "CANCELLED")
    assert (await door.get(told["location"] + "/trace"))[2]["tasks"][0]["stage"] == "body"


async def test_a_put_may_be_repeated(door: Door) -> None:
    path = "/v1/workflows/echo/invocations/mine"
    status, _, first = await door.call("PUT", path, json={"inputs": {"x": 1}})
    assert status in (200, 202)
    async with door.session.get(f"{door.gateway.http_url}/v1/invocations/mine/events") as answer:
        seen = [item async for item in events(answer)]
    assert seen[-1] == ("succeeded", (await door.get("/v1/invocations/mine"))[2])
    status, _, again = await door.call("PUT", path, json={"inputs": {"x": 1}})
    assert (status, again["id"], again["outputs"], first["id"]) == (200, "mine", {"out": 1}, "mine")
    status, _, other = await door.call("PUT", path, json={"inputs": {"x": 2}})
    assert (status, other["error"]["type"]) == (409, "conflict_error")
    assert (await door.get(path))[2]["outputs"] == {"out": 1}
    assert len(door.host.invocations) == 1


async def test_a_call_with_an_idempotency_key_runs_once(door: Door) -> None:
    headers = {"idempotency-key": "k1"}
    path, body = "/v1/workflows/echo/invoke", {"inputs": {"x": 7}}
    first, second = [await door.post(path, body, headers=headers) for _ in range(2)]
    assert first[2] == second[2] == {"id": "k1", "outputs": {"out": 7}}
    assert len(door.host.invocations) == 1
    assert (await door.post(path, {"inputs": {"x": 8}}, headers=headers))[0] == 409
    status, _, failed = await door.post(
        "/v1/workflows/boom/invoke", {"inputs": {"x": "o"}}, headers={"idempotency-key": "k2"}
    )
    assert (status, failed["error"]["failure"]["kind"]) == (500, "ValueError")
    status, _, _ = await door.post(path, {**body, "stream": True}, headers=headers)
    assert status == 400


async def test_invocations_and_workflows_are_listed(door: Door) -> None:
    for x in (1, 2):
        await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": x}})
    await door.post("/v1/workflows/count/invoke", {"inputs": {"n": 1}})
    assert [r["workflow"] for r in (await door.get("/v1/invocations"))[2]["invocations"]] == ["count", "echo", "echo"]
    assert len((await door.get("/v1/invocations?limit=1"))[2]["invocations"]) == 1
    assert len((await door.get("/v1/workflows/echo/invocations"))[2]["invocations"]) == 2
    for bad in ("0", "-1", "x", "5000"):
        assert (await door.get(f"/v1/invocations?limit={bad}"))[0] == 400
    listed = (await door.get("/v1/workflows"))[2]["workflows"]
    assert "echo" in [workflow["name"] for workflow in listed]
    one = (await door.get("/v1/workflows/image"))[2]
    assert one["inputs"] == [{"name": "x", "type": "UINT8[H, 2]", "stream": False, "optional": False}]
    assert one["source"] == "name: image\n"


async def test_an_answer_beyond_the_limit_is_413_and_costs_nothing(door: Door, host: FakeHost) -> None:
    host.add("huge", lambda: np.broadcast_to(np.uint8(1), (1 << 16, 1 << 16)))
    for path, least in (("huge/invoke", 2 << 32), ("huge/invoke?tensors=base64", 1 << 32)):
        status, headers, body = await door.call("POST", f"/v1/workflows/{path}", json={})
        assert (status, f"at least {least} bytes" in body["error"]["message"]) == (413, True)
        assert "retry-after" not in headers
    status, _, _ = await door.call("POST", "/v1/workflows/echo/invoke", json={"inputs": {"x": 1}})
    assert status == 200


async def test_a_body_beyond_the_limit_is_413(door: Door) -> None:
    path = "/v1/workflows/echo/invoke"
    large = json.dumps({"inputs": {"x": "x" * LIMIT}}).encode()
    status, _, body = await door.call("POST", path, data=io.BytesIO(large))
    assert (status, "max_message_bytes" in body["error"]["message"]) == (413, True)
    assert body["error"]["type"] == "invalid_request_error"

    async def parts() -> AsyncIterator[bytes]:  # without a length: chunked
        for _ in range(64):
            yield b"x" * (LIMIT // 32)

    try:
        status, _, _ = await door.call("POST", path, data=parts())
        assert status == 413
    except aiohttp.ClientError:
        pass  # the connection broke while the rest was still on its way: refused all the same
    packed = gzip.compress(b"x" * (LIMIT + 1))
    status, _, _ = await door.call("POST", path, data=packed, headers={"content-encoding": "gzip"})
    assert status == 413
    small = gzip.compress(b'{"inputs": {"x": 1}}')
    status, _, body = await door.call("POST", path, data=small, headers={"content-encoding": "gzip"})
    assert (status, body["outputs"]) == (200, {"out": 1})
    for data, coding in ((small[:-9], "gzip"), (b"no gzip", "gzip"), (b"{}", "br")):
        assert (await door.call("POST", path, data=data, headers={"content-encoding": coding}))[0] == 400
    assert len(door.host.invocations) == 1


async def test_keys_are_asked_for(host: FakeHost) -> None:
    async with http_rig.opened(host, api_keys=("secret", "second"), admin_keys=("master",)) as door:
        for path in ("/healthz", "/readyz"):
            assert (await door.get(path))[0] == 200
        for path in ("/v1/workflows", "/v1/invocations", "/nope"):
            for given in (None, "Bearer secre", "Bearer ", "secret", "Basic secret", "Bearer sëcret"):
                status, headers, body = await door.get(path, headers={"authorization": given} if given else {})
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert body["error"]["code"] == "unauthenticated"
        for given in ("secret", "second", "master"):
            assert (await door.get("/v1/workflows", headers={"authorization": f"Bearer {given}"}))[0] == 200


async def test_browsers_of_other_sites_are_kept_out(host: FakeHost) -> None:
    async with http_rig.opened(host, http_allowed_origins=("https://good.example",)) as door:
        body = {"inputs": {"x": 1}}
        path = "/v1/workflows/echo/invoke"
        assert (await door.post(path, body, headers={"host": "evil.example"}))[0] == 403
        assert (await door.post(path, body, headers={"host": "[::"}))[0] == 403
        assert (await door.post(path, body, headers={"origin": "https://evil.example"}))[0] == 403
        assert (await door.post(path, body, headers={"origin": "null"}))[0] == 403
        assert host.invocations == {}
        own = door.gateway.http_url
        assert (await door.post(path, body, headers={"origin": own}))[0] == 200
        status, headers, _ = await door.post(path, body, headers={"origin": "https://good.example"})
        assert (status, headers["access-control-allow-origin"]) == (200, "https://good.example")
        asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
        status, headers, _ = await door.call("OPTIONS", path, headers=asked)
        assert (status, "POST" in headers["access-control-allow-methods"]) == (204, True)
    async with http_rig.opened(host, http_allowed_hosts=("models.example",)) as door:
        for name in ("models.example", "models.example:80", "localhost", "127.0.0.1:1"):
            assert (await door.get("/v1/workflows", headers={"host": name}))[0] == 200


async def raw(door: Door, data: bytes) -> bytes:
    """What comes back for these very bytes."""
    port = int(door.gateway.http_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"h%d: %s\r\n" % (i, b"v" * 100) for i in range(1000)) + b"\r\n",
        b"POST /v1/workflows/echo/invoke HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_malformed_requests_end_their_connection_alone(door: Door, data: bytes) -> None:
    assert (await raw(door, data)).startswith(b"HTTP/1.1 400 ")
    assert (await door.get("/healthz"))[0] == 200


async def test_a_body_that_breaks_off_starts_nothing(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    port = int(door.gateway.http_url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/workflows/echo/invoke HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await door.get("/healthz"))[0] == 200
    assert door.host.invocations == {}
    assert caplog.records == []  # it is no fault of the server's


async def test_closing_lets_running_calls_end(host: FakeHost) -> None:
    go_on = asyncio.Event()

    async def patient() -> str:
        await go_on.wait()
        return "done"

    host.add("patient", patient)
    async with http_rig.opened(host) as door:
        call = asyncio.create_task(door.post("/v1/workflows/patient/invoke", {}))
        await door.only()
        assert (await door.get("/readyz"))[0] == 200
        closing = asyncio.create_task(door.gateway.close(10))
        await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as other:
                await other.get(f"{door.gateway.http_url}/readyz")
        go_on.set()
        status, headers, body = await call
        assert (status, body["outputs"]) == (200, {"out": "done"})
        assert headers["connection"] == "close"
        await closing


async def test_closing_ends_what_does_not_end_by_itself(host: FakeHost) -> None:
    async with http_rig.opened(host) as door:
        call = asyncio.create_task(door.post("/v1/workflows/forever/invoke", {}))
        invocation = await door.only()
        stream = await door.session.post(f"{door.gateway.http_url}/v1/workflows/endless/invoke", json={"stream": True})
        await door.gateway.close(0.05)
        status, headers, body = await call
        assert (status, body["error"]["failure"]["kind"], headers["retry-after"]) == (503, "ShuttingDown", "1")
        got = [item async for item in events(stream)]
        assert got[-1][0] == "error"
        assert got[-1][1]["error"]["code"] == "unavailable"
        await invocation.wait_over()
        for each in host.invocations.values():
            await each.wait_over()
            assert each.state is not State.RUNNING


async def test_a_server_fault_is_a_500_without_its_innards(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("the secret innards")

    monkeypatch.setattr(door.host, "invoke", broken)
    status, headers, body = await door.post("/v1/workflows/echo/invoke", {"inputs": {"x": 1}})
    assert (status, body["error"]["message"]) == (500, "the server failed: ZeroDivisionError")
    assert headers["x-request-id"] in caplog.text


async def test_a_port_that_is_taken_is_said(host: FakeHost) -> None:
    async with http_rig.opened(host) as door:
        port = int(door.gateway.http_url.rpartition(":")[2])
        with pytest.raises(DataflowerError, match=f"can't listen on 127.0.0.1:{port} for HTTP.*--http-port 0"):
            async with http_rig.opened(host, http_port=port):
                pass
    with pytest.raises(DataflowerError, match="http_port must be 0 to 65535"):
        async with http_rig.opened(host, http_port=70_000):
            pass
