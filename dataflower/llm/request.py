"""What a client asks of a chat stage, in the names of the OpenAI API (docs/llm.md, "The chat stage")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dataflower.errors import InvalidArgument
from dataflower.llm.params import MAX_TOP_LOGPROBS, SamplingParams, within

MAX_SCHEMA_BYTES = 64 * 1024
"""Longer schemas are refused: compiling one takes time that grows with its size."""
HALF = "a text holds half a character (a surrogate alone)"
ANY_OBJECT = '{"type":"object"}'


class AdapterRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter by name; `path` and `generation` if it is not one of the stage's own."""

    name: str
    path: str = ""
    generation: int = 0


class JsonSchema(msgspec.Struct, frozen=True):
    """`response_format.json_schema`."""

    schema: dict[str, Any] = {}
    name: str = ""
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`response_format`."""

    type: str
    json_schema: JsonSchema | None = None


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request as it comes; None = not said. Exactly one of `messages` and `prompt`."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    adapter: str | AdapterRef | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    echo: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def adapter_ref(self) -> AdapterRef | None:
        """The adapter wanted; None = the bare model."""
        if isinstance(self.adapter, str):
            return AdapterRef(self.adapter) if self.adapter else None
        return self.adapter


msgspec.json.Decoder(Request)
"""Has msgspec work the type out here and now, by one thread: where several meet it half worked out they crash."""


def parse(given: Mapping[str, Any]) -> Request:
    """Check a request.

    Raises:
        InvalidArgument: With the field and what is wrong with it.
    """
    try:
        request = msgspec.convert(dict(given), Request)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"request: {error}") from None
    except UnicodeEncodeError:
        raise InvalidArgument(f"request: {HALF}") from None
    if (request.messages is None) == (request.prompt is None):
        raise InvalidArgument("request: give either messages or prompt")
    for index, message in enumerate(request.messages or ()):
        if not isinstance(message.get("role"), str):
            raise InvalidArgument(f"request: messages[{index}] has no role")
    if request.messages is not None and not request.messages:
        raise InvalidArgument("request: messages is empty")
    return request


def sampling(request: Request, *, max_tokens: int | None, temperature: float, schema: str = "") -> SamplingParams:
    """The request as sampling parameters.

    Args:
        request: What `parse` gave.
        max_tokens: Where the request does not say.
        temperature: Where the request does not say.
        schema: JSON Schema that the answer follows whatever the request says (a forced tool call).

    Raises:
        InvalidArgument: A value is out of range.
    """
    within("max_tokens", request.max_tokens or 0, 0)
    within("max_completion_tokens", request.max_completion_tokens or 0, 0)
    within("top_logprobs", request.top_logprobs or 0, 0, MAX_TOP_LOGPROBS)
    limits = [n for n in (request.max_tokens, request.max_completion_tokens) if n is not None]
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return SamplingParams(
        max_tokens=min(limits) if limits else max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=temperature if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),  # others write -1 for "all"
        seed=request.seed,
        stop=tuple(stop),
        stop_tokens=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=_logprobs(request),
        score_from=1 if request.echo and _logprobs(request) is not None else None,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_bias(request.logit_bias or {}),
        schema=schema or _schema(request.response_format),
    )


def _logprobs(request: Request) -> int | None:
    """Chats say `logprobs: true, top_logprobs: n`, completions `logprobs: n`."""
    if request.logprobs is None or request.logprobs is False:
        return None
    return (request.top_logprobs or 0) if request.logprobs is True else request.logprobs


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise InvalidArgument("request: the keys of logit_bias must be numbers of tokens") from None


def _schema(wanted: ResponseFormat | None) -> str:
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.type != "json_schema" or wanted.json_schema is None:
        raise InvalidArgument("request: response_format.type is text, json_object or json_schema (with json_schema)")
    try:
        text = json.dumps(wanted.json_schema.schema)
    except RecursionError:
        raise InvalidArgument("request: response_format.json_schema.schema is nested too deeply") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidArgument(f"request: the JSON schema has {len(text)} bytes; at most {MAX_SCHEMA_BYTES} are taken")
    return text


def flatten(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: the text parts of a content joined, None as the empty text.

    Raises:
        InvalidArgument: A part is not text, or an earlier call is none.
    """
    flat = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
            if not all(isinstance(part, str) for part in parts):
                raise InvalidArgument(f"request: messages[{index}].content: this model reads text parts only")
            content = "".join(part for part in parts if part)
        elif content is not None and not isinstance(content, str):
            raise InvalidArgument(f"request: messages[{index}].content is neither text nor a list of parts")
        if not _are_calls(message.get("tool_calls")):
            raise InvalidArgument(f"request: messages[{index}].tool_calls is not a list of calls of functions")
        flat.append({**message, "content": content or ""})
    return flat


def _are_calls(given: Any) -> bool:
    """Whether each is an object, or holds one, that says what was called; none at all is fine."""
    if not isinstance(given, list):
        return not given
    return all(isinstance(call, Mapping) and isinstance(call.get("function", call), Mapping) for call in given)
