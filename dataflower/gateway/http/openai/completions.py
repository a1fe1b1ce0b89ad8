"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataflower.errors import DataflowerError
from dataflower.gateway.http.body import json_object, json_response, read_body
from dataflower.gateway.http.openai import requests
from dataflower.gateway.http.openai.answers import ChatForm, Choice, Item, TextForm, Usage
from dataflower.gateway.http.openai.merge import merged
from dataflower.gateway.http.openai.meter import Meter
from dataflower.gateway.http.openai.models import Model, Models
from dataflower.gateway.http.openai.requests import Asked
from dataflower.gateway.http.presence import LEFT, while_there
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.sse import EventStream, event
from dataflower.gateway.http.status import openai_object
from dataflower.host.api import Invocation
from dataflower.spec.serving import DELTAS, REQUEST

DONE = b"data: [DONE]\n\n"
_SHOWN = ("text", "logprobs", "finish_reason", "tool_calls")
"""Keys of an item that make it worth a chunk."""


@dataclass(slots=True)
class Running:
    """An answer on its way: one invocation and one choice for each sequence."""

    invocations: Sequence[Invocation]
    choices: Sequence[Choice]
    usage: Usage
    meter: Meter

    def cancel(self, why: Any = LEFT) -> None:
        """Stop what still runs."""
        for invocation in self.invocations:
            invocation.cancel(why)

    async def items(self) -> AsyncGenerator[tuple[Choice, Item], None]:
        """What the sequences say, in the order in which they say it."""
        try:
            async with contextlib.aclosing(merged(self.invocations, DELTAS)) as items:
                async for index, item in items:
                    self.meter.came(item)
                    self.choices[index].add(item)
                    if (used := item.get("usage")) is not None:
                        self.usage.add(used)
                    yield self.choices[index], item
            self.meter.ended(self.usage)
        finally:
            self.cancel()


class Completions:
    """Chats and texts, continued by a chat stage."""

    def __init__(self, site: Site, models: Models) -> None:
        self._site = site
        self._models = models

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.text, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """The next message of a chat."""
        return await self._answer(request, requests.chat, ChatForm, "chatcmpl-")

    async def text(self, request: Request) -> Response:
        """The continuation of a text."""
        return await self._answer(request, requests.completion, TextForm, "cmpl-")

    async def _answer(
        self,
        request: Request,
        parse: Callable[[Mapping[str, Any]], Asked],
        form: type[ChatForm | TextForm],
        prefix: str,
    ) -> Response:
        began = self._site.clock.monotonic()
        asked = parse(json_object(await read_body(request, self._site.body_limit)))
        model = self._models.chat(asked.model)
        running = await self._start(asked, model, self._site.deadline(request), began)
        first = running.invocations[0].id
        serves = f"{model.status.name}@{model.status.version}"
        made = form(f"{prefix}{first}", int(self._site.clock.wall()), asked.model, serves, asked.include_usage)
        headers = {"x-invocation-id": first}
        if asked.stream:
            return EventStream(self._chunks(running, made), partial(failed, request.url.path), headers)
        await while_there(request.receive, _all(running), running.cancel)
        return json_response(made.whole(running.choices, running.usage), headers=headers)

    async def _start(self, asked: Asked, model: Model, deadline: float | None, began: float) -> Running:
        invocations: list[Invocation] = []
        extra = {} if model.adapter is None else {"adapter": model.adapter}
        try:
            for sequence in asked.sequences:
                inputs = {REQUEST: {**sequence, **extra}}
                invocations.append(await self._site.host.invoke(model.status.name, inputs, deadline=deadline))
        except BaseException:
            for invocation in invocations:
                invocation.cancel(LEFT)
            raise
        choices = [Choice(index) for index in range(len(invocations))]
        return Running(invocations, choices, Usage(), Meter(self._site, model.name, began))

    async def _chunks(self, running: Running, form: ChatForm | TextForm) -> AsyncGenerator[bytes, None]:
        begun: set[int] = set()
        async with contextlib.aclosing(running.items()) as items:
            async for choice, item in items:
                if any(item.get(key) for key in _SHOWN):
                    yield event(form.chunk(choice, item, first=choice.index not in begun))
                    begun.add(choice.index)
        if form.include_usage:
            yield event(form.last(running.usage))
        yield DONE


async def _all(running: Running) -> None:
    async for _ in running.items():
        pass


def failed(path: str, error: DataflowerError) -> bytes:
    """How a stream that has begun ends in failure; `path`: what was asked for."""
    return event({"error": openai_object(error, path)}) + DONE
