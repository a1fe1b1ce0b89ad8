"""Nonsense for a real model behind a real front door: what it can't take is the caller's error and names its field."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import http_rig
import pytest
import tiny
from http_rig import Door
from test_front_door_fuzz import CHAT, ODD, TOOL, changed, damaged, places

from dataflower.llm.chat import ChatStage
from dataflower.llm.runner import Runner
from dataflower.spec.function import Json, Port
from dataflower.testing.fake_host import FakeHost

pytestmark = pytest.mark.usefixtures("grpc_runtime")

PLAIN = (
    "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
WITH_TOOLS = "{% for t in tools or [] %}{{ t.function.name }}: {{ t | tojson }}\n{% endfor %}" + PLAIN
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function":
        {"name": "f", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "tool_call_id": "1", "content": "fine"},
]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}
SHORT = {"model": "tiny", "messages": TALK, "max_tokens": 2}
BODIES: dict[str, dict[str, Any]] = {
    "whatever": {**CHAT, "max_tokens": 2},
    "tools": {**SHORT, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
    "a forced tool": {**SHORT, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    "a schema": {**SHORT, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    "a template": {**SHORT, "chat_template_kwargs": {"x": 1}, "add_generation_prompt": True},
    "a text": {"model": "tiny", "prompt": [3, 4], "max_tokens": 2, "echo": True, "logprobs": 1, "stop_token_ids": [5]},
}
ROUNDS = 120


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = tiny.runner(tokenizer=tiny.tokenizer(), blocks=2000)
    yield made
    made.close()


@pytest.fixture(params=[PLAIN, WITH_TOOLS], ids=["tools in words", "tools in the template"])
async def door(runner: Runner, request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = request.param
    host = FakeHost()
    ports = (Port("request", Json()),), (Port("deltas", Json(), stream=True),)
    stage = ChatStage(runner, tokenizer, max_tokens=2)

    async def complete(request: dict[str, Any]) -> AsyncIterator[Any]:
        async with aclosing(stage.answer(request)) as deltas:
            async for delta in deltas:
                yield delta

    host.add("tiny", complete, *ports)
    async with http_rig.opened(host) as door:
        yield door
    await host.close()


async def asked(door: Door, body: bytes) -> tuple[int, Any]:
    path = "/v1/completions" if b'"prompt"' in body else "/v1/chat/completions"
    status, _, answer = await door.call("POST", path, data=body, headers={"content-type": "application/json"})
    assert status < 500, (body[:1000], answer)
    return status, answer


@pytest.mark.parametrize("name", BODIES)
async def test_any_value_in_any_field_is_answered_or_the_callers_error(door: Door, runner: Runner, name: str) -> None:
    rng = random.Random(name)
    pairs = [(place, odd) for place in places(BODIES[name]) for odd in ODD]
    for place, odd in rng.sample(pairs, ROUNDS):
        await asked(door, json.dumps(changed(BODIES[name], place, odd)).encode())
    for _ in range(ROUNDS // 2):
        await asked(door, damaged(json.dumps(BODIES[name]).encode(), rng))
    status, _ = await asked(door, json.dumps(BODIES[name]).encode())
    assert status == 200
    statistics = runner.statistics()
    assert (statistics.running, statistics.waiting) == (0, 0)


NESTED: Any = {"type": "string"}
for _ in range(200):
    NESTED = {"type": "array", "items": NESTED}
FAR: dict[str, tuple[dict[str, Any], str]] = {
    "a message that the template refuses": ({"messages": [{"role": "critic", "content": "Bah"}]}, "messages"),
    "a template of one's own": ({"chat_template_kwargs": {"chat_template": "Hi"}}, "chat_template_kwargs"),
    "messages twice": ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}}},
        "response_format",
    ),
    "parameters that are no schema": (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 7}}}],
            "tool_choice": "required",
        },
        "tools",
    ),
    "parameters that are a list": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]},
        "tools[0].function.parameters",
    ),
    "a call that is a number": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [7]}]},
        "messages[1].tool_calls",
    ),
    "arguments nested without end": (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 200_000}}]},
                {"role": "user", "content": "Hi"},
            ]
        },
        "messages",
    ),
}


@pytest.mark.parametrize("case", FAR)
async def test_what_only_the_model_can_refuse_names_its_field_too(door: Door, case: str) -> None:
    more, param = FAR[case]
    status, answer = await asked(door, json.dumps({**SHORT, **more}).encode())
    assert (status, answer["error"]["param"]) == (400, param), answer


async def test_a_schema_of_many_levels_is_answered_or_refused(door: Door) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "deep", "schema": NESTED}}
    status, _ = await asked(door, json.dumps({**SHORT, "response_format": wanted}).encode())
    assert status in {200, 400}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": "far too long " * 2000}]}, "messages"),
        ({"prompt": "far too long " * 2000}, "prompt"),
        ({"prompt": [5] * 5000}, "prompt"),
        ({"prompt": [[3, 4], [5] * 5000]}, "prompt"),
    ],
    ids=["messages", "a text", "tokens", "one of two prompts"],
)
async def test_a_prompt_that_is_too_long_names_its_field(
    door: Door, body: dict[str, Any], param: str, stream: bool
) -> None:
    given = json.dumps({"model": "tiny", "max_tokens": 2, "stream": stream, **body}).encode()
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    status, _, answer = await door.call("POST", path, data=given, headers={"content-type": "application/json"})
    if isinstance(answer, dict):
        assert status == 400
        error = answer["error"]
    else:  # the other answer had begun
        error = next(
            said["error"]
            for line in answer.decode().splitlines()
            if line.startswith("data: {") and "error" in (said := json.loads(line.removeprefix("data: ")))
        )
    assert (error["code"], error["param"]) == ("context_length_exceeded", param), error
    assert error["type"] == "invalid_request_error"
