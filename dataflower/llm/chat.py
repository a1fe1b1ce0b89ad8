"""A chat stage over a runner: requests in, deltas out (docs/llm.md, "The chat stage")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from dataflower.errors import InvalidArgument
from dataflower.llm import request as requests
from dataflower.llm import tools as tooling
from dataflower.llm.adapters import Adapter
from dataflower.llm.errors import SchemaInvalid
from dataflower.llm.output import Logprob, TokenOutput
from dataflower.llm.request import AdapterRef, Request
from dataflower.llm.runner import Runner
from dataflower.llm.text import token_bytes
from dataflower.llm.tools import Tools
from dataflower.spec.context import StageAdapter

_SETTLED = frozenset(("messages", "conversation", "tools", "tokenize", "add_generation_prompt", "chat_template"))
"""What a request says elsewhere, or may not say: a template is a program, and that of a stranger could run for ever."""


class ChatStage:
    """Answers requests with one runner; they share its batch."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        *,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        adapter: str | None = None,
    ) -> None:
        """`max_tokens`, `temperature`, `adapter` (one of the runner's): for requests that don't say."""
        self._own_adapter = adapter
        self.runner, self.tokenizer = runner, tokenizer
        self._max_tokens, self._temperature = max_tokens, temperature
        template = tokenizer.chat_template
        self._knows_tools = "tools" in (template if isinstance(template, str) else str(template or ""))

    async def answer(self, given: Mapping[str, Any], own: StageAdapter | None = None) -> AsyncIterator[dict[str, Any]]:
        """The deltas of one request. Closing it cancels the generation. Raises what docs/llm.md lists.

        `own`: the adapter of requests that don't name one, instead of the stage's.
        """
        request = requests.parse(given)
        tools = tooling.plan(request)
        prompt = self.prompt(request, tools)
        params = requests.sampling(
            request, max_tokens=self._max_tokens, temperature=self._temperature, schema=tools.schema
        )
        adapter = await self._adapter(request, own)
        deltas = _Deltas(self.tokenizer, tools, prompt, logprobs=params.logprobs is not None)
        if request.echo and params.logprobs is None:
            yield deltas.echo(())
        try:
            outputs = self.runner.generate(prompt, params, adapter=adapter)
        except SchemaInvalid as error:
            raise SchemaInvalid(f"request: {'tools' if tools.schema else 'response_format'}: {error.message}") from None
        with outputs:
            async for output in outputs:
                for delta in deltas.take(output):
                    yield delta

    def prompt(self, request: Request, tools: Tools = Tools()) -> list[int]:  # noqa: B008 - frozen
        """The tokens that a request asks to be continued. Raises InvalidArgument."""
        if request.messages is None:
            return self._ids(request.prompt) if isinstance(request.prompt, str) else list(request.prompt or ())
        flat = requests.flatten(request.messages)
        if self._knows_tools:
            messages = tooling.messages_with_template(flat)
        else:
            messages = tooling.messages_without_template(flat, tools)
        return self._ids(self._render(request, messages, tools), add_special_tokens=False)

    def _ids(self, text: str, **more: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"request: {requests.HALF}") from None
        ids: list[int] = self.tokenizer(text, **more)["input_ids"]
        return ids

    def _render(self, request: Request, messages: Sequence[Mapping[str, Any]], tools: Tools) -> str:
        """The conversation as the model's chat template writes it."""
        more = request.chat_template_kwargs or {}
        if taken := sorted(_SETTLED & more.keys()):
            raise InvalidArgument(f"request: chat_template_kwargs: {taken[0]} can't be set there")
        wanted = request.add_generation_prompt
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=[dict(tool) for tool in tools.given] or None if self._knows_tools else None,
                tokenize=False,
                add_generation_prompt=True if wanted is None else wanted,
                **more,
            )
        except InvalidArgument:
            raise
        except Exception as error:  # the template is as it always is: what it stumbles over came with the request
            raise InvalidArgument(f"request: messages: the model's chat template does not take them: {error}") from None
        return text

    async def _adapter(self, request: Request, own: StageAdapter | None) -> Adapter | None:
        wanted = request.adapter_ref
        adapters = self.runner.adapters
        if wanted is None and own is not None:
            wanted = AdapterRef(own.name, own.path, own.version) if own.path else None
            if wanted is None:
                return None
        if wanted is None:
            return None if self._own_adapter is None else adapters.get(self._own_adapter)
        if not wanted.path:
            return adapters.get(wanted.name)
        if (found := adapters.find(wanted.name, wanted.path, wanted.generation)) is not None:
            return found
        return await asyncio.to_thread(adapters.ensure, wanted.name, wanted.path, wanted.generation)


class _Deltas:
    """What becomes of a generation's outputs: items of the stage's stream."""

    def __init__(self, tokenizer: Any, tools: Tools, prompt: Sequence[int], *, logprobs: bool) -> None:
        self._tokenizer, self._tools, self._prompt, self._logprobs = tokenizer, tools, prompt, logprobs
        self._tokens: list[int] = []
        self._likely: list[dict[str, Any]] = []
        self._held = ""
        self._may_call = bool(tools.names)

    def echo(self, scores: Sequence[Logprob]) -> dict[str, Any]:
        """The prompt itself; `scores`: of its tokens from the second on."""
        item: dict[str, Any] = {"text": self._tokenizer.decode(self._prompt), "tokens": list(self._prompt)}
        if scores:
            first = {**self._named(self._prompt[0]), "logprob": None, "top": []}
            item["logprobs"] = [first, *(self._likelihood(score) for score in scores)]
        return item

    def take(self, output: TokenOutput) -> Iterator[dict[str, Any]]:
        """Nothing, while there is nothing to say; else an item, or two."""
        if output.scores:
            yield self.echo(output.scores)
        if output.token is not None:
            self._tokens.append(output.token)
            if output.logprob is not None:
                self._likely.append(self._likelihood(output.logprob))
        text = self._held + output.text
        self._held = ""
        calls: tuple[tooling.Call, ...] = ()
        if output.finish is not None and self._tools.names:
            text, calls = tooling.read(text, self._tools)
        elif self._may_call:
            if self._tools.schema or tooling.may_be_call(text):
                self._held, text = text, ""
            else:
                self._may_call = False
        if not text and output.finish is None:
            return
        item: dict[str, Any] = {"text": text} if text else {}
        if self._tokens:
            item["tokens"], self._tokens = self._tokens, []
        if self._likely:
            item["logprobs"], self._likely = self._likely, []
        if output.finish is not None:
            item |= self._ending(output, calls)
        yield item

    def _ending(self, output: TokenOutput, calls: Sequence[tooling.Call]) -> dict[str, Any]:
        assert output.finish is not None
        assert output.usage is not None
        usage = output.usage
        ending: dict[str, Any] = {
            "finish_reason": "tool_calls" if calls else output.finish.value,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cached_tokens": usage.cached_tokens,
            },
        }
        if output.stop_reason is not None:
            ending["stop_reason"] = output.stop_reason
        if calls:
            ending["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in calls]
        return ending

    def _likelihood(self, given: Logprob) -> dict[str, Any]:
        top = [{**self._named(token), "logprob": likely} for token, likely in given.top]
        return {**self._named(given.token), "logprob": given.logprob, "top": top}

    def _named(self, token: int) -> dict[str, Any]:
        spelled = token_bytes(self._tokenizer, token)
        return {"token": token, "text": spelled.decode("utf-8", errors="replace"), "bytes": list(spelled)}
