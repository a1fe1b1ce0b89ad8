"""The description of the HTTP API says what there is, and what is there does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import http_rig
import jsonschema
import pytest
from chat_double import host_with_models
from http_rig import Door

from dataflower.spec.function import Kind, Port, PortType, Tensor, Text

pytestmark = pytest.mark.usefixtures("grpc_runtime")


async def count(n: int) -> AsyncIterator[int]:
    for i in range(min(n, 3)):
        yield i


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    host, _ = host_with_models()
    host.add("image", lambda x: x, inputs=(Port("x", Tensor("UINT8", ["H", 2])),))
    host.add("count", count, inputs=(Port("n", PortType(Kind.INT)),), outputs=(Port("out", stream=True),))
    texts = (Port("texts", Text(), stream=True), Port("glue", Text(), optional=True, default="-"))

    async def join(texts: AsyncIterator[str], glue: str = "-") -> str:
        return glue.join([text async for text in texts])

    host.add("join", join, inputs=texts)
    async with http_rig.opened(host, admin_keys=("master",)) as door:
        yield door
    await host.close()


async def test_every_route_is_described(door: Door) -> None:
    document = (await door.get("/openapi.json"))[2]
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    from dataflower.gateway.http.app import application

    routes = application(door.gateway._site)._router.routes
    there = {(re.sub(r":path", "", r.path), m) for r in routes for m in r.methods - {"HEAD"}}
    undescribed = {(path, method) for path, method in there - described if "/versions/" not in path}
    assert undescribed == {("/openapi.json", "GET"), ("/docs", "GET"), ("/v1/workflows/{name}/invoke", "POST")}
    own = {(f"/v1/workflows/{name}/invoke", "POST") for name in ("tiny", "embed", "echo", "image", "count", "join")}
    assert described - there == own


async def test_a_workflow_is_described_by_its_ports(door: Door) -> None:
    document = (await door.get("/openapi.json"))[2]
    body = document["paths"]["/v1/workflows/join/invoke"]["post"]["requestBody"]
    inputs = body["content"]["application/json"]["schema"]["properties"]["inputs"]
    jsonschema.validate({"texts": ["a"], "glue": "+"}, inputs)
    for bad in ({"texts": "a"}, {}, {"texts": ["a"], "glue": 1}, {"texts": [], "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, inputs)


async def test_the_page_needs_nothing_from_elsewhere(door: Door) -> None:
    status, headers, page = await door.get("/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    text = page.decode()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)
    assert 'fetch("/openapi.json"' in text


@pytest.mark.slow
async def test_schemathesis_finds_no_answer_that_is_not_described(door: Door, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{door.gateway.http_url}/openapi.json", "--checks", checks, "--phases", "examples,fuzzing"),
        *("--max-examples", "4", "--seed", "7", "--no-color", "--generation-deterministic", "--workers", "1"),
        *("--header", "authorization: Bearer master", "--request-timeout", "10"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-6000:]
