"""Requests of OpenAI's API -> requests of a chat stage (docs/llm.md, "The chat stage")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflower.errors import InvalidArgument
from dataflower.gateway.http.openai.models import checked, count_field, flag, text_field
from dataflower.gateway.http.openai.offered import DOOR, passed
from dataflower.gateway.http.status import BadField
from dataflower.llm import request as stage
from dataflower.llm import tools

MOST_CHOICES = 16
MOST_PROMPTS = 64
_COMMON = frozenset(
    (
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "stop",
        "stop_token_ids",
        "min_tokens",
        "ignore_eos",
        "logprobs",
        "response_format",
    )
)
CHAT = _COMMON | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "add_generation_prompt",
    "chat_template_kwargs",
}
COMPLETION = _COMMON | {"prompt", "echo"}
"""What is handed to the stage."""
_DOOR_TEXT = DOOR | {"best_of"}
_ROLES = {"developer": "system"}
"""Roles that chat templates know by another name."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, taken apart. `sequences`: one request of the stage for each prompt and each of its `n` answers."""

    model: str
    stream: bool
    include_usage: bool
    sequences: tuple[Mapping[str, Any], ...]


def chat(body: Mapping[str, Any]) -> Asked:
    """A body of /v1/chat/completions.

    Raises:
        BadField: a field is missing, or not what it should be.
    """
    if not isinstance(body.get("messages"), list):
        raise BadField("`messages` must be a list of messages", "messages")
    wanted = passed(body, CHAT)
    wanted["messages"] = [_message(index, message) for index, message in enumerate(wanted["messages"])]
    scored = flag(body, "logprobs")
    if wanted.get("top_logprobs") and not scored:
        raise BadField("`top_logprobs` goes with `logprobs`: true", "top_logprobs")
    return _asked(body, [wanted])


def completion(body: Mapping[str, Any]) -> Asked:
    """A body of /v1/completions.

    Raises:
        BadField: a field is missing, or not what it should be.
    """
    best_of = count_field(body, "best_of", MOST_CHOICES) if body.get("best_of") is not None else None
    if best_of not in (None, count_field(body, "n", MOST_CHOICES)):
        raise BadField("`best_of` other than `n` is not offered", "best_of")
    wanted = passed(body, COMPLETION, _DOOR_TEXT)
    if isinstance(wanted.get("logprobs"), bool):
        raise BadField("`logprobs` must be a whole number here: how many of the likeliest tokens to tell", "logprobs")
    return _asked(body, [{**wanted, "prompt": prompt} for prompt in _prompts(body.get("prompt"))])


def _asked(body: Mapping[str, Any], sequences: list[dict[str, Any]]) -> Asked:
    model = text_field(body, "model")
    assert model is not None
    stream = flag(body, "stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise BadField("`stream_options` must be an object", "stream_options")
    if options and not stream:
        # Some clients send it with every request; nothing is streamed, so nothing is lost.
        options = {}
    for sequence in sequences:
        _check(sequence)
    n = count_field(body, "n", MOST_CHOICES)
    return Asked(model, stream, flag(options, "include_usage"), tuple(_copies(sequences, n)))


def _copies(sequences: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """`n` of each; with a seed of its own for each, or the answers would all be the same."""
    if n == 1:
        return sequences
    return [
        {**sequence, "seed": sequence["seed"] + i} if sequence.get("seed") is not None else sequence
        for sequence in sequences
        for i in range(n)
    ]


def _check(sequence: Mapping[str, Any]) -> None:
    """What the stage would say of it, said before anything is started."""
    try:
        request = stage.parse(sequence)
        stage.sampling(request, max_tokens=None, temperature=1.0)
        stage.flatten(request.messages or ())
        tools.plan(request)
    except InvalidArgument as error:
        raise checked(error) from None


def _message(index: int, message: Any) -> Any:
    if not isinstance(message, Mapping):
        raise BadField(f"messages[{index}] must be an object", "messages")
    role = message.get("role")
    if not isinstance(role, str):
        raise BadField(f"messages[{index}] has no role", "messages")
    return {**message, "role": _ROLES.get(role, role)}


def _prompts(prompt: Any) -> list[Any]:
    """The prompts of a completion: a text, token ids, or a list of either."""
    if prompt is None:
        raise BadField("`prompt` is missing", "prompt")
    if isinstance(prompt, str) or _are_tokens(prompt):
        return [prompt]
    if not isinstance(prompt, list) or not all(isinstance(p, str) or _are_tokens(p) for p in prompt):
        raise BadField("`prompt` must be a text, a list of token ids, or a list of these", "prompt")
    if not 1 <= len(prompt) <= MOST_PROMPTS:
        raise BadField(f"`prompt` must be 1 to {MOST_PROMPTS} prompts", "prompt")
    return prompt


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
