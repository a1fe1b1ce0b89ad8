"""A chat stage by the letter of docs/llm.md without a model, and a host that has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dataflower.errors import Code, Failure, InvalidArgument, InvocationFailed
from dataflower.llm import request as requests
from dataflower.llm.errors import AdapterInvalid
from dataflower.spec.function import Json, Kind, Port, PortType, Tensor
from dataflower.testing.fake_host import FakeHost

ANSWER = ("Hello", " there", ",", " Ünï", "!")
WIDTH = 4


def scored(text: str, number: int) -> dict[str, Any]:
    one = {"token": number, "text": text, "bytes": list(text.encode()), "logprob": -0.5 * (number + 1)}
    return {**one, "top": [dict(one), {"token": 99, "text": "x", "bytes": [120], "logprob": -9.0}]}


class Stage:
    """Says the `ANSWER`, or what a prompt asks for: `fail`, `long`, `wait`, `broken`."""

    def __init__(self) -> None:
        self.requests: list[Mapping[str, Any]] = []

    async def __call__(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        if not isinstance(request, dict):
            raise InvalidArgument("request: a map is wanted")
        self.requests.append(request)
        asked = requests.parse(request)
        params = requests.sampling(asked, max_tokens=100, temperature=0.0)
        said = str(asked.prompt if asked.messages is None else asked.messages[-1].get("content"))
        _refuse(said, asked.adapter_ref)
        words = ANSWER * (200 if said == "endless" else 1)
        limit = params.max_tokens if params.max_tokens is not None else 100
        cut, used = words[:limit], {"prompt_tokens": 7, "completion_tokens": len(words[:limit]), "cached_tokens": 3}
        if asked.tools and asked.tool_choice != "none":
            calls = [{"name": asked.tools[0]["function"]["name"], "arguments": '{"location": "Paris"}'}]
            yield {"tokens": [1, 2], "finish_reason": "tool_calls", "tool_calls": calls, "usage": used}
            return
        for number, word in enumerate(cut):
            if said == "wait" and number == 2:
                await asyncio.Event().wait()
            if said == "broken" and number == 2:
                raise RuntimeError("the weights fell out")
            more = {} if params.logprobs is None else {"logprobs": [scored(word, number)]}
            yield {"text": word, "tokens": [number], **more}
            await asyncio.sleep(0.001 if said == "endless" else 0)
        yield {"finish_reason": "length" if len(words) > limit else "stop", "usage": used}


def _refuse(said: str, adapter: requests.AdapterRef | None) -> None:
    failures = {
        "long": (Code.INVALID_ARGUMENT, "PromptTooLong", "the prompt has 9000 tokens, the model takes 8192"),
        "full": (Code.RESOURCE_EXHAUSTED, "QueueFull", "16 sequences wait"),
    }
    if said in failures:
        code, kind, message = failures[said]
        raise InvocationFailed(Failure(code, kind, message, "complete", 1, retry_after_s=2.0))
    if said == "fail":
        raise ValueError("broken before the first token")
    if adapter is not None and adapter.path.endswith("missing"):
        raise AdapterInvalid(f"no adapter in {adapter.path}")


def embed(texts: list[Any]) -> dict[str, Any]:
    """Vectors that tell the texts apart."""
    if not isinstance(texts, list) or not all(isinstance(text, str | list) for text in texts):
        raise InvalidArgument("texts: a list of texts is wanted")
    if "long" in texts:
        said = "text 0 has 300 tokens, the model takes 256"
        raise InvocationFailed(Failure(Code.INVALID_ARGUMENT, "TextTooLong", said, "embed", 1))
    vectors = np.array([[len(text), i, 0.5, -1] for i, text in enumerate(texts)], np.float32).reshape(-1, WIDTH)
    return {"vectors": vectors, "tokens": [len(text) for text in texts]}


REQUEST = (Port("request", Json()),)
DELTAS = (Port("deltas", Json(), stream=True),)
VECTORS = (Port("vectors", Tensor("FP32", ["N", WIDTH])), Port("tokens", Json()))


def host_with_models() -> tuple[FakeHost, Stage]:
    """A host with a chat model that has an adapter of its own, an embedder, and a workflow that is no model."""
    host, stage = FakeHost(), Stage()
    host.add("tiny", stage, REQUEST, DELTAS)
    known = host._workflows["tiny"]
    body = replace(known.workflow.stages["body"], params={"adapters": {"pirate": "/adapters/pirate"}})
    host._workflows["tiny"] = replace(known, workflow=replace(known.workflow, stages={"body": body}))
    host.add("embed", embed, (Port("texts", PortType(Kind.JSON)),), VECTORS)
    host.add("echo", lambda x: x)
    return host, stage
