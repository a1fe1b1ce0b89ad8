"""Unchanged clients of OpenAI's API talk to ours, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import http_rig
import pytest
from chat_double import ANSWER, host_with_models
from http_rig import Door

from dataflower.host.api import State

pytestmark = pytest.mark.usefixtures("grpc_runtime")


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    host, _ = host_with_models()
    async with http_rig.opened(host, api_keys=("secret",)) as door:
        yield door
    await host.close()


async def told(*command: str) -> tuple[int, str]:
    """Exit code and output of a program."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"}
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode() + (err.decode() if process.returncode else "")


SEEN = {
    "models": {"tiny": None, "embed": None, "pirate": "tiny"},
    "text": "".join(ANSWER),
    "reason": "stop",
    "usage": [7, 5, 3],
    "logprob": -0.5,
    "streamed": "".join(ANSWER),
    "streamed_usage": 12,
    "tool": {"location": "Paris"},
    "texts": ["Hello there", "Hello there"],
    "words": "".join(ANSWER),
    "vectors": [[3, 0, 0.5, -1], [5, 1, 0.5, -1]],
    "unknown": ["NotFoundError", 404, "model_not_found", "model"],
    "bad": ["BadRequestError", 400, "invalid_argument", "temperature"],
    "too_long": ["BadRequestError", 400, "context_length_exceeded", "messages"],
    "full": ["RateLimitError", 429, "resource_exhausted", None],
    "broken": ["APIError", None, "internal", "RuntimeError in stage 'body' (attempt 1): the weights fell out"],
    "key": ["AuthenticationError", 401, "unauthenticated", None],
}


async def test_the_openai_package_works_unchanged(door: Door) -> None:
    caller = str(Path(__file__).with_name("openai_caller.py"))
    code, out = await told(sys.executable, caller, f"{door.gateway.http_url}/v1", "secret")
    assert code == 0, out
    seen: dict[str, Any] = json.loads(out)
    left = door.host.invocations[seen.pop("left")]
    assert seen == SEEN
    await left.wait_over()
    assert left.state is State.CANCELLED


async def test_llm_comply_finds_nothing_but_images_wanting(door: Door) -> None:
    checks = str(Path(sys.executable).with_name("llm-comply"))
    where = ("-u", f"{door.gateway.http_url}/v1", "-m", "tiny", "-k", "secret")
    _, out = await told(checks, "--format", "openai-chat", *where, "--json")
    report = json.loads(out)
    results = {result["id"]: result for result in report["results"]}
    failed = {name for name, result in results.items() if result["status"] not in ("passed", "skipped")}
    assert failed <= {"chat-image-input"}, out
    assert len(results) == 9
