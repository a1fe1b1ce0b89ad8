"""tritonclient's HTTP half, unchanged, talks to ours; and what no client would send is refused."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import http_rig
import pytest
from http_rig import Door
from inference_models import host_with_models

from dataflower.errors import Code, DataflowerError
from dataflower.gateway.http.status import STATUS

pytestmark = pytest.mark.usefixtures("grpc_runtime")
INFER = "/v2/models/double/infer"


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    host = host_with_models()
    async with http_rig.opened(host) as door:
        yield door
    await host.close()


DOUBLED = [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
PORT = {"datatype": "FP32", "shape": [-1, 3]}
SEEN = {
    "live": True,
    "ready": True,
    "model_ready": [True, False],
    "metadata": "dataflower",
    "model": {
        "name": "double",
        "versions": ["1"],
        "platform": "dataflower_workflow",
        "inputs": [{"name": "x", **PORT}],
        "outputs": [{"name": "out", **PORT}],
    },
    "double": DOUBLED,
    "plain": DOUBLED,
    "packed": DOUBLED,
    "later": DOUBLED,
    "id": "r7",
    "text": ["HÉ", "HÉ"],
    "frames": [3, 2, 2],
    "half": "float16",
    "empty": [0, 3],
    "json": {"a": [1]},
    "unknown": "404",
    "version": "404",
    "dtype": "400",
    "shape": "400",
    "missing": "400",
    "extra": "400",
    "output": "400",
    "classes": "400",
    "timeout": "504",
    "not_offered": "404",
}


async def test_tritonclient_works_unchanged(door: Door) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("triton_http_caller.py")),
        door.gateway.http_url.removeprefix("http://"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out) == SEEN


def given(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3], **changes}


async def test_nested_and_flat_data_are_the_same(door: Door) -> None:
    for data in ([1, 2, 3], [[1, 2, 3]]):
        status, _, body = await door.post(INFER, {"inputs": [given(data=data)], "id": "a"})
        assert status == 200
        assert body == {
            "model_name": "double",
            "model_version": "1",
            "id": "a",
            "outputs": [{"name": "out", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]}],
        }


BAD: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "input 'x' of double is missing"),
    "inputs": ({"inputs": 3}, "Expected `array`"),
    "no shape": ({"inputs": [{"name": "x", "datatype": "FP32"}]}, "shape"),
    "no data": ({"inputs": [given(data=None)]}, "neither data nor"),
    "too few": ({"inputs": [given(data=[1])]}, "input 'x'"),
    "texts": ({"inputs": [given(data=["a", "b", "c"])]}, "input 'x'"),
    "ragged": ({"inputs": [given(data=[[1], [2, 3]])]}, "input 'x'"),
    "datatype": ({"inputs": [given(datatype="FP8")]}, "unknown datatype 'FP8'"),
    "negative": ({"inputs": [given(shape=[-1, -3])]}, "negative"),
    "twice": ({"inputs": [given(), given()]}, "twice"),
    "binary size": ({"inputs": [given(data=None, parameters={"binary_data_size": 12})]}, "does not fit the bytes"),
    "shared": ({"inputs": [given(parameters={"shared_memory_region": "r"})]}, "not offered"),
    "timeout": ({"inputs": [given()], "parameters": {"timeout": -1}}, "timeout"),
    "binary": ({"inputs": [given()], "parameters": {"binary_data_output": 1}}, "true or false"),
    "bytes": ({"inputs": [given(datatype="BYTES", data=[1, 2, 3])]}, "texts"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_says_what_is_wrong(door: Door, case: str) -> None:
    body, said = BAD[case]
    status, _, answer = await door.post(INFER, body)
    assert (status, isinstance(answer["error"], str)) == (400, True)
    assert said in answer["error"]
    assert door.host.invocations == {}


@pytest.mark.parametrize("length", ["5", "-1", "x", "1000000"])
async def test_a_header_length_that_lies_is_refused(door: Door, length: str) -> None:
    data = json.dumps({"inputs": [given()]}).encode() + b"1234"
    headers = {"inference-header-content-length": length}
    status, _, answer = await door.call("POST", INFER, data=data, headers=headers)
    assert (status, isinstance(answer["error"], str)) == (400, True)


async def test_bytes_that_belong_to_nothing_are_refused(door: Door) -> None:
    head = json.dumps({"inputs": [given()]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    status, _, answer = await door.call("POST", INFER, data=head + b"1234", headers=headers)
    assert (status, answer["error"]) == (400, "4 bytes behind the JSON belong to no input")


@pytest.mark.parametrize("code", Code)
async def test_each_code_has_its_status(door: Door, code: Code) -> None:
    door.host.refusal = DataflowerError("no", code=code)
    status, _, body = await door.post(INFER, {"inputs": [given()]})
    assert (status, body) == (STATUS[code], {"error": "no"})
