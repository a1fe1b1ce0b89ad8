"""Items of a chat stage -> answers of OpenAI's API, whole or in chunks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Item = Mapping[str, Any]
"""What a chat stage gives out (docs/llm.md, "Output `deltas`")."""


@dataclass(slots=True)
class Usage:
    """Tokens of one request, over all its sequences."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def add(self, said: Mapping[str, Any]) -> None:
        """Count a sequence; `said` is the `usage` of its last item."""
        self.prompt += int(said.get("prompt_tokens", 0))
        self.completion += int(said.get("completion_tokens", 0))
        self.cached += int(said.get("cached_tokens", 0))

    def as_json(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


@dataclass(slots=True)
class Choice:
    """What one sequence has said so far."""

    index: int
    text: list[str] = field(default_factory=list)
    length: int = 0
    """Characters of the text."""
    scored: list[Mapping[str, Any]] | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, item: Item) -> None:
        """Take in an item."""
        if text := item.get("text"):
            self.text.append(text)
            self.length += len(text)
        if (scored := item.get("logprobs")) is not None:
            self.scored = [*(self.scored or ()), *scored]
        if reason := item.get("finish_reason"):
            self.finish_reason = reason
            self.stop_reason = item.get("stop_reason")
            self.calls = tool_calls(item)


@dataclass(frozen=True, slots=True)
class Head:
    """What is the same in all chunks of an answer. `created`: wall-clock seconds. `fingerprint`: of what answered."""

    id: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool = False

    def _with(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }


class ChatForm(Head):
    """Answers of /v1/chat/completions."""

    def whole(self, choices: Iterable[Choice], usage: Usage) -> dict[str, Any]:
        """The answer as one object."""
        made = [self._choice(choice) for choice in choices]
        return self._with("chat.completion", made, usage=usage.as_json())

    def _choice(self, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not choice.calls else None,
            "refusal": None,
            "annotations": [],
        }
        if choice.calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in choice.calls]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": None if choice.scored is None else chat_logprobs(choice.scored),
            "finish_reason": choice.finish_reason or "stop",
            **({} if choice.stop_reason is None else {"stop_reason": choice.stop_reason}),
        }

    def chunk(self, choice: Choice, item: Item, *, first: bool) -> dict[str, Any]:
        """One item of one sequence; the first brings the role with it."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        text = item.get("text", "")
        if text or (first and not item.get("tool_calls")):
            delta["content"] = text
        if calls := tool_calls(item):
            delta["tool_calls"] = calls
        scored = item.get("logprobs")
        made = {
            "index": choice.index,
            "delta": delta,
            "logprobs": None if scored is None else chat_logprobs(scored),
            "finish_reason": item.get("finish_reason"),
        }
        return self._with("chat.completion.chunk", [made], **({"usage": None} if self.include_usage else {}))

    def last(self, usage: Usage) -> dict[str, Any]:
        """The chunk that brings the usage."""
        return self._with("chat.completion.chunk", [], usage=usage.as_json())


class TextForm(Head):
    """Answers of /v1/completions."""

    def whole(self, choices: Iterable[Choice], usage: Usage) -> dict[str, Any]:
        """The answer as one object."""
        made = []
        for choice in choices:
            text = "".join(choice.text)
            made.append(self._choice(choice.index, text, choice.scored, choice.finish_reason or "stop", 0))
        return self._with("text_completion", made, usage=usage.as_json())

    def chunk(self, choice: Choice, item: Item, *, first: bool) -> dict[str, Any]:
        """One item of one sequence."""
        text = item.get("text", "")
        scored = item.get("logprobs")
        made = self._choice(choice.index, text, scored, item.get("finish_reason"), choice.length - len(text))
        return self._with("text_completion", [made], **({"usage": None} if self.include_usage else {}))

    def _choice(
        self, index: int, text: str, scored: list[Mapping[str, Any]] | None, reason: str | None, begins_at: int
    ) -> dict[str, Any]:
        logprobs = None if scored is None else text_logprobs(scored, begins_at)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def last(self, usage: Usage) -> dict[str, Any]:
        """The chunk that brings the usage."""
        return self._with("text_completion", [], usage=usage.as_json())


def tool_calls(item: Item) -> list[dict[str, Any]]:
    """The calls in an item, with ids of their own kind."""
    return [
        {
            "index": index,
            "id": call.get("id") or f"call_{os.urandom(12).hex()}",
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for index, call in enumerate(item.get("tool_calls") or ())
    ]


def chat_logprobs(scored: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Log-probabilities as chats give them."""
    return {
        "content": [{**_token(one), "top_logprobs": [_token(other) for other in one.get("top", ())]} for one in scored],
        "refusal": None,
    }


def _token(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": one["text"], "logprob": one["logprob"], "bytes": one.get("bytes")}


def text_logprobs(scored: list[Mapping[str, Any]], begins_at: int) -> dict[str, Any]:
    """Log-probabilities as completions give them; `begins_at`: characters before the first of these tokens."""
    offsets = []
    for one in scored:
        offsets.append(begins_at)
        begins_at += len(one["text"])
    return {
        "tokens": [one["text"] for one in scored],
        "token_logprobs": [one["logprob"] for one in scored],
        "top_logprobs": [{other["text"]: other["logprob"] for other in one.get("top", ())} for one in scored],
        "text_offset": offsets,
    }
