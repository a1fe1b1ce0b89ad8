"""OpenAI's API over real sockets, with a scripted chat stage behind it: what goes in, what comes out, what fails."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import http_rig
import numpy as np
import pytest
from chat_double import ANSWER, Stage, host_with_models
from http_rig import Door, events

from dataflower.errors import Code, DataflowerError
from dataflower.gateway.http.openai.models import Models
from dataflower.gateway.http.status import STATUS
from dataflower.host.api import State

pytestmark = pytest.mark.usefixtures("grpc_runtime")
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
ADMIN = {"authorization": "Bearer master"}


@pytest.fixture
def made() -> tuple[Any, Stage]:
    return host_with_models()


@pytest.fixture
def stage(made: tuple[Any, Stage]) -> Stage:
    return made[1]


@pytest.fixture
async def door(made: tuple[Any, Stage]) -> AsyncIterator[Door]:
    async with http_rig.opened(made[0], admin_keys=("master",)) as door:
        yield door
    await made[0].close()


async def streamed(door: Door, path: str, body: dict[str, Any]) -> list[Any]:
    async with door.session.post(door.gateway.http_url + path, json={**body, "stream": True}) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [data async for _, data in events(answer)]


async def test_a_chat_is_answered(door: Door, stage: Stage) -> None:
    given = {"model": "tiny", "messages": HELLO, "user": "me", "temperature": None, "max_tokens": 50, "metadata": {}}
    status, headers, body = await door.post(CHAT, given)
    assert status == 200
    assert body["id"] == f"chatcmpl-{headers['x-invocation-id']}"
    assert (body["object"], body["model"], body["system_fingerprint"]) == ("chat.completion", "tiny", "tiny@1")
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(ANSWER), "refusal": None, "annotations": []},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["usage"]["total_tokens"]) == (
        7,
        5,
        12,
    )
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    assert stage.requests == [{"messages": HELLO, "max_tokens": 50}]


async def test_what_the_stage_understands_is_passed_on(door: Door, stage: Stage) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    passed = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_completion_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 5,
        "stop": ["x"],
        "min_tokens": 1,
        "ignore_eos": True,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": schema,
        "stop_token_ids": [9],
        "parallel_tool_calls": False,
    }
    status, _, body = await door.post(
        CHAT, {"model": "tiny", **passed, "store": True, "min_p": 0, "reasoning_effort": "low"}
    )
    assert (status, body["choices"][0]["finish_reason"]) == (200, "length")
    assert stage.requests == [passed]
    await door.post(CHAT, {"model": "tiny", "messages": [{"role": "developer", "content": "be"}, *HELLO]})
    assert stage.requests[-1]["messages"][0] == {"role": "system", "content": "be"}


async def test_a_stream_ends_in_done_and_tells_the_usage(door: Door) -> None:
    got = await streamed(door, CHAT, {"model": "tiny", "messages": HELLO, "stream_options": {"include_usage": True}})
    assert got.pop() == "[DONE]"
    last = got.pop()
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in got)
    assert len({chunk["id"] for chunk in got}) == 1
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": "Hello"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got) == "".join(ANSWER)
    assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None] * 5 + ["stop"]
    plain = await streamed(door, CHAT, {"model": "tiny", "messages": HELLO})
    assert plain[-1] == "[DONE]"
    assert all("usage" not in chunk for chunk in plain[:-1])


async def test_tool_calls_come_whole_and_streamed(door: Door) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    given = {"model": "tiny", "messages": HELLO, "tools": [tool], "tool_choice": "required"}
    choice = (await door.post(CHAT, given))[2]["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"location": "Paris"}'})
    assert call["id"].startswith("call_")
    *chunks, done = await streamed(door, CHAT, given)
    delta = chunks[0]["choices"][0]["delta"]
    assert (delta["role"], delta["tool_calls"][0]["index"], done) == ("assistant", 0, "[DONE]")
    assert delta["tool_calls"][0]["function"]["name"] == "weather"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    given["tool_choice"] = "none"
    assert (await door.post(CHAT, given))[2]["choices"][0]["message"]["content"] == "".join(ANSWER)


async def test_logprobs_of_chats(door: Door) -> None:
    given = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    content = (await door.post(CHAT, given))[2]["choices"][0]["logprobs"]["content"]
    assert [(one["token"], one["logprob"], one["bytes"]) for one in content] == [
        ("Hello", -0.5, list(b"Hello")),
        (" there", -1.0, list(b" there")),
    ]
    assert content[0]["top_logprobs"][1] == {"token": "x", "logprob": -9.0, "bytes": [120]}
    *chunks, _ = await streamed(door, CHAT, given)
    assert [c["choices"][0]["logprobs"]["content"][0]["token"] for c in chunks[:2]] == ["Hello", " there"]


async def test_texts_are_continued(door: Door, stage: Stage) -> None:
    status, _, body = await door.post(TEXT, {"model": "tiny", "prompt": "Once", "logprobs": 1, "max_tokens": 3})
    (choice,) = body["choices"]
    assert (status, body["object"], body["id"][:5]) == (200, "text_completion", "cmpl-")
    assert (choice["text"], choice["finish_reason"]) == ("Hello there,", "length")
    assert choice["logprobs"]["tokens"] == ["Hello", " there", ","]
    assert choice["logprobs"]["text_offset"] == [0, 5, 11]
    assert choice["logprobs"]["top_logprobs"][0] == {"Hello": -0.5, "x": -9.0}
    got = await streamed(door, TEXT, {"model": "tiny", "prompt": [1, 2, 3], "logprobs": 1, "max_tokens": 3})
    assert "".join(chunk["choices"][0]["text"] for chunk in got[:-1]) == "Hello there,"
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in got[:3]] == [[0], [5], [11]]
    assert stage.requests[-1]["prompt"] == [1, 2, 3]


async def test_several_prompts_and_several_answers(door: Door, stage: Stage) -> None:
    given = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "seed": 7, "max_tokens": 2}
    body = (await door.post(TEXT, given))[2]
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(i, "Hello there") for i in range(4)]
    assert body["usage"]["completion_tokens"] == 8
    assert [(r["prompt"], r["seed"]) for r in stage.requests] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    got = await streamed(door, TEXT, {**given, "stream_options": {"include_usage": True}})
    texts = dict.fromkeys(range(4), "")
    for chunk in got[:-2]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == dict.fromkeys(range(4), "Hello there")
    assert got[-2]["usage"]["completion_tokens"] == 8


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"messages": HELLO}, "model"),
    "model is null": ({"model": None, "messages": HELLO}, "model"),
    "no messages": ({"model": "tiny"}, "messages"),
    "messages is a text": ({"model": "tiny", "messages": "Hi"}, "messages"),
    "messages is empty": ({"model": "tiny", "messages": []}, "messages"),
    "a message is no object": ({"model": "tiny", "messages": ["Hi"]}, "messages"),
    "no role": ({"model": "tiny", "messages": [{"content": "Hi"}]}, "messages"),
    "stream": ({"model": "tiny", "messages": HELLO, "stream": "yes"}, "stream"),
    "stream_options": ({"model": "tiny", "messages": HELLO, "stream_options": 1}, "stream_options"),
    "max_tokens": ({"model": "tiny", "messages": HELLO, "max_tokens": "ten"}, "max_tokens"),
    "negative": ({"model": "tiny", "messages": HELLO, "max_tokens": -1}, "max_tokens"),
    "temperature": ({"model": "tiny", "messages": HELLO, "temperature": -1}, "temperature"),
    "hot": ({"model": "tiny", "messages": HELLO, "temperature": 9}, "temperature"),
    "top_p": ({"model": "tiny", "messages": HELLO, "top_p": 2}, "top_p"),
    "presence": ({"model": "tiny", "messages": HELLO, "presence_penalty": 2.5}, "presence_penalty"),
    "frequency": ({"model": "tiny", "messages": HELLO, "frequency_penalty": -3}, "frequency_penalty"),
    "bias": ({"model": "tiny", "messages": HELLO, "logit_bias": {"5": 101}}, "logit_bias"),
    "negative, by its other name": (
        {"model": "tiny", "messages": HELLO, "max_completion_tokens": -1},
        "max_completion_tokens",
    ),
    "logprobs of a chat as a number": ({"model": "tiny", "messages": HELLO, "logprobs": 3}, "logprobs"),
    "too many likely tokens": (
        {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 21},
        "top_logprobs",
    ),
    "likely tokens alone": ({"model": "tiny", "messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
    "too many answers": ({"model": "tiny", "messages": HELLO, "n": 17}, "n"),
    "not offered": ({"model": "tiny", "messages": HELLO, "verbosity": "low"}, "verbosity"),
    "sound": ({"model": "tiny", "messages": HELLO, "modalities": ["text", "audio"]}, "modalities"),
    "of other servers": ({"model": "tiny", "messages": HELLO, "repetition_penalty": 1.1}, "repetition_penalty"),
    "misspelt": ({"model": "tiny", "messages": HELLO, "max_token": 5}, "max_token"),
    "of the other endpoint": ({"model": "tiny", "messages": HELLO, "echo": True}, "echo"),
    "stop": ({"model": "tiny", "messages": HELLO, "stop": [""]}, "stop"),
    "n": ({"model": "tiny", "messages": HELLO, "n": 0}, "n"),
    "functions": ({"model": "tiny", "messages": HELLO, "functions": [{}]}, "functions"),
    "tools": ({"model": "tiny", "messages": HELLO, "tools": {}}, "tools"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_names_its_field(door: Door, stage: Stage, case: str) -> None:
    body, param = BAD[case]
    status, _, answer = await door.post(CHAT, body)
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param in error["message"]
    assert stage.requests == []


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"temperature": 2.01}, "temperature"),
        ({"messages": []}, "messages"),
    ],
)
async def test_a_bad_completion_names_its_field(door: Door, stage: Stage, more: dict[str, Any], param: str) -> None:
    status, _, answer = await door.post(TEXT, {"model": "tiny", "prompt": "a", **more})
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "invalid_request_error", param)
    assert stage.requests == []


async def test_what_is_unknown_is_told_from_what_is_not_offered(door: Door) -> None:
    for more, code, hint in (
        ({"max_token": 5}, "unknown_parameter", "`max_tokens`"),
        ({"repetition_penalty": 1.1}, "unsupported_parameter", "`frequency_penalty`"),
    ):
        _, _, answer = await door.post(CHAT, {"model": "tiny", "messages": HELLO, **more})
        assert answer["error"]["code"] == code
        assert hint in answer["error"]["message"]


async def test_bodies_that_are_no_json_are_400(door: Door) -> None:
    for data in (
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"x" * 10,
    ):
        status, _, body = await door.call("POST", CHAT, data=data)
        assert (status, set(body["error"]) >= {"message", "type", "param", "code"}) == (400, True)
    assert (await door.get(CHAT))[0] == 405


async def test_models_that_are_not_there(door: Door) -> None:
    for path, body in (
        (CHAT, {"model": "tony", "messages": HELLO}),
        (TEXT, {"model": "tony", "prompt": "a"}),
        ("/v1/embeddings", {"model": "tony", "input": "a"}),
        (CHAT, {"model": "echo", "messages": HELLO}),
    ):
        status, _, answer = await door.post(path, body)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
    status, _, answer = await door.post(CHAT, {"model": "embed", "messages": HELLO})
    assert (status, "makes vectors" in answer["error"]["message"]) == (400, True)
    status, _, answer = await door.post("/v1/embeddings", {"model": "tiny", "input": "a"})
    assert (status, "continues texts" in answer["error"]["message"]) == (400, True)
    assert (await door.get("/v1/models/tony"))[0] == 404


async def test_a_text_that_is_too_long_for_the_embedder_names_its_field(door: Door) -> None:
    status, _, body = await door.post("/v1/embeddings", {"model": "embed", "input": ["long"]})
    error = body["error"]
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert error["message"] == "text 0 has 300 tokens, the model takes 256"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_has_its_status(door: Door, stream: bool) -> None:
    def asking(text: str) -> dict[str, Any]:
        return {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": stream}

    status, _, body = await door.post(CHAT, asking("long"))
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert body["error"]["param"] == "messages"
    assert body["error"]["message"] == "the prompt has 9000 tokens, the model takes 8192"
    status, headers, body = await door.post(CHAT, asking("full"))
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "2", "rate_limit_error")
    status, _, body = await door.post(CHAT, asking("fail"))
    assert (status, body["error"]["type"], "traceback" in body["error"]["failure"]) == (500, "server_error", False)


@pytest.mark.parametrize("code", Code)
async def test_each_code_has_its_status(door: Door, code: Code) -> None:
    door.host.refusal = DataflowerError("no", code=code)
    status, _, body = await door.post(CHAT, {"model": "tiny", "messages": HELLO})
    assert (status, body["error"]["message"]) == (STATUS[code], "no")


async def test_a_failure_in_the_middle_of_a_stream_is_told(door: Door) -> None:
    given = {"model": "tiny", "messages": [{"role": "user", "content": "broken"}]}
    *chunks, error, done = await streamed(door, CHAT, given)
    assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["Hello", " there"]
    assert (error["error"]["failure"]["message"], done) == ("the weights fell out", "[DONE]")
    assert (await door.post(CHAT, given))[0] == 500


async def test_a_client_who_leaves_stops_the_model(door: Door) -> None:
    url = door.gateway.http_url + CHAT
    given = {"model": "tiny", "messages": [{"role": "user", "content": "endless"}], "n": 2}
    answer = await door.session.post(url, json={**given, "stream": True})
    await anext(aiter(events(answer)))
    answer.close()
    call = asyncio.create_task(
        door.session.post(url, json={**given, "messages": [{"role": "user", "content": "wait"}]})
    )
    while len(door.host.invocations) < 4:
        await asyncio.sleep(0.001)
    call.cancel()
    for invocation in door.host.invocations.values():
        await invocation.wait_over()
        assert invocation.state is State.CANCELLED


async def test_a_deadline_ends_a_generation(door: Door) -> None:
    given = {"model": "tiny", "messages": [{"role": "user", "content": "wait"}]}
    status, _, body = await door.post(CHAT, given, headers={"x-dataflower-deadline-ms": "50"})
    assert (status, body["error"]["type"]) == (504, "timeout_error")


async def test_models_are_listed_with_their_adapters(door: Door) -> None:
    listed = {model["id"]: model for model in (await door.get("/v1/models"))[2]["data"]}
    assert {name: model["parent"] for name, model in listed.items()} == {"tiny": None, "embed": None, "pirate": "tiny"}
    assert all(model["object"] == "model" and model["owned_by"] == "dataflower" for model in listed.values())
    assert (await door.get("/v1/models/pirate"))[2] == listed["pirate"]


def test_a_function_with_an_adapter_names_it_and_its_model() -> None:
    host, _ = host_with_models()
    known = host._workflows["tiny"]
    body = replace(known.workflow.stages["body"], model="tiny-weights", adapter="sentiment", params={})
    host._workflows["tiny"] = replace(known, workflow=replace(known.workflow, stages={"body": body}))
    listed = {model.name: (model.root, model.parent) for model in Models(host).all()}
    assert listed == {"tiny": ("sentiment", "tiny-weights"), "embed": ("embed", None)}


async def test_adapters_come_and_go(door: Door, stage: Stage) -> None:
    await door.post(CHAT, {"model": "pirate", "messages": HELLO})
    assert stage.requests[-1]["adapter"] == "pirate"
    given = {"lora_name": "poet", "lora_path": "/adapters/poet"}
    assert (await door.post("/v1/load_lora_adapter", given, headers=ADMIN))[0] == 200
    first = stage.requests[-1]
    assert (first["max_tokens"], first["adapter"]["path"]) == (0, "/adapters/poet")
    status, _, body = await door.post(CHAT, {"model": "poet", "messages": HELLO})
    assert (status, body["model"], stage.requests[-1]["adapter"]) == (200, "poet", first["adapter"])
    assert (await door.get("/v1/models/poet"))[2]["parent"] == "tiny"
    assert (await door.post("/v1/load_lora_adapter", given, headers=ADMIN))[0] == 400
    again = {**given, "load_inplace": True, "base_model_name": "tiny"}
    assert (await door.post("/v1/load_lora_adapter", again, headers=ADMIN))[0] == 200
    assert stage.requests[-1]["adapter"]["generation"] > first["adapter"]["generation"]
    assert (await door.post("/v1/unload_lora_adapter", {"lora_name": "poet"}, headers=ADMIN))[0] == 200
    assert (await door.post(CHAT, {"model": "poet", "messages": HELLO}))[0] == 404
    assert (await door.post("/v1/unload_lora_adapter", {"lora_name": "poet"}, headers=ADMIN))[0] == 404
    assert (await door.post("/v1/unload_lora_adapter", {"lora_name": "pirate"}, headers=ADMIN))[0] == 404


async def test_adapters_outlive_the_server(made: tuple[Any, Stage], tmp_path: Path) -> None:
    host, stage = made
    given = {"lora_name": "poet", "lora_path": "/adapters/poet"}
    async with http_rig.opened(host, admin_keys=("master",), state_dir=tmp_path / "state") as door:
        assert (await door.post("/v1/load_lora_adapter", given, headers=ADMIN))[0] == 200
        before = stage.requests[-1]["adapter"]
    async with http_rig.opened(host, admin_keys=("master",), state_dir=tmp_path / "state") as door:
        assert (await door.post(CHAT, {"model": "poet", "messages": HELLO}))[0] == 200
        assert stage.requests[-1]["adapter"] == before
        again = {**given, "load_inplace": True}
        assert (await door.post("/v1/load_lora_adapter", again, headers=ADMIN))[0] == 200
        assert stage.requests[-1]["adapter"]["generation"] > before["generation"]
        assert (await door.post("/v1/unload_lora_adapter", {"lora_name": "poet"}, headers=ADMIN))[0] == 200
    kept = tmp_path / "state" / "adapters.json"
    assert json.loads(kept.read_text()) == []
    kept.write_text("[{")
    async with http_rig.opened(host, admin_keys=("master",), state_dir=tmp_path / "state") as door:
        assert (await door.get("/v1/models/poet"))[0] == 404
    assert kept.with_suffix(".json.corrupt").read_text() == "[{"
    await host.close()


async def test_an_adapter_that_does_not_load_is_no_model(door: Door) -> None:
    given = {"lora_name": "poet", "lora_path": "/adapters/missing"}
    status, _, body = await door.post("/v1/load_lora_adapter", given, headers=ADMIN)
    assert (status, body["error"]["message"], body["error"]["param"]) == (
        400,
        "no adapter in /adapters/missing",
        "lora_path",
    )
    assert "failure" not in body["error"]  # nor where in the server's code that was found out
    assert (await door.get("/v1/models/poet"))[0] == 404
    for bad, param in (
        ({"lora_path": "/a"}, "lora_name"),
        ({"lora_name": "a"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "adapters/a"}, "lora_path"),
        ({"lora_name": "tiny", "lora_path": "/a"}, "lora_name"),
        ({"lora_name": "a", "lora_path": "/a", "base_model_name": "nope"}, "model"),
    ):
        status, _, body = await door.post("/v1/load_lora_adapter", bad, headers=ADMIN)
        assert (status in (400, 404), body["error"]["param"]) == (True, param)


async def test_adapters_need_an_admin(made: tuple[Any, Stage]) -> None:
    given = {"lora_name": "poet", "lora_path": "/adapters/poet"}
    async with http_rig.opened(made[0]) as door:
        assert (await door.post("/v1/load_lora_adapter", given, headers=ADMIN))[0] == 403
    async with http_rig.opened(made[0], api_keys=("user",), admin_keys=("master",)) as door:
        for headers, status in (({}, 401), ({"authorization": "Bearer user"}, 403), (ADMIN, 200)):
            assert (await door.post("/v1/load_lora_adapter", given, headers=headers))[0] == status
    await made[0].close()


async def test_texts_become_vectors(door: Door) -> None:
    status, _, body = await door.post("/v1/embeddings", {"model": "embed", "input": ["one", "three"]})
    assert status == 200
    assert [(d["index"], d["embedding"]) for d in body["data"]] == [(0, [3, 0, 0.5, -1]), (1, [5, 1, 0.5, -1])]
    assert body["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    packed = {"model": "embed", "input": "one", "encoding_format": "base64", "dimensions": 4}
    data = (await door.post("/v1/embeddings", packed))[2]["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(data), "<f4"), [3, 0, 0.5, -1])
    assert (await door.post("/v1/embeddings", {"model": "embed", "input": [1, 2]}))[2]["data"][0]["embedding"][0] == 2
    for bad, param in (
        ({"input": "a"}, "model"),
        ({"model": "embed"}, "input"),
        ({"model": "embed", "input": []}, "input"),
        ({"model": "embed", "input": ["a", ""]}, "input"),
        ({"model": "embed", "input": [["a"]]}, "input"),
        ({"model": "embed", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"model": "embed", "input": "a", "dimensions": 2}, "dimensions"),
        ({"model": "embed", "input": "a", "normalise": False}, "normalise"),
    ):
        status, _, body = await door.post("/v1/embeddings", bad)
        assert (status, body["error"]["param"]) == (400, param)


async def test_what_models_do_is_counted(door: Door) -> None:
    await door.post(CHAT, {"model": "tiny", "messages": HELLO})
    await door.post(CHAT, {"model": "tony", "messages": HELLO})
    _, headers, text = await door.get("/metrics")
    lines = text.decode().splitlines()
    assert headers["content-type"].startswith("text/plain")
    for line in (
        'dataflower_tokens_total{kind="prompt",model="tiny"} 7.0',
        'dataflower_tokens_total{kind="cached",model="tiny"} 3.0',
        'dataflower_tokens_total{kind="completion",model="tiny"} 5.0',
        'gen_ai_server_time_to_first_token_seconds_count{gen_ai_request_model="tiny"} 1.0',
        'gen_ai_server_time_per_output_token_seconds_count{gen_ai_request_model="tiny"} 1.0',
        'dataflower_invocations_total{code="OK",state="succeeded",workflow="tiny"} 1.0',
        'dataflower_stage_run_seconds_count{stage="body",workflow="tiny"} 1.0',
        'dataflower_containers{stage="body",state="idle",workflow="tiny"} 1.0',
        'dataflower_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0',
        'dataflower_http_requests_total{method="POST",route="/v1/chat/completions",status="404"} 1.0',
    ):
        assert line in lines
