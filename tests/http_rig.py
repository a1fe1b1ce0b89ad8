"""A fake host behind a real HTTP door, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from dataflower.config.sources import load_text
from dataflower.gateway.server import Gateway, serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.testing.fake_host import FakeHost
from dataflower.testing.fake_invocation import FakeInvocation

LIMIT = 1024 * 1024


@dataclass(frozen=True)
class Door:
    """An open gateway. `get`, `post` and `put` give status, headers and the decoded JSON."""

    host: FakeHost
    gateway: Gateway
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        async with self.session.request(method, self.gateway.http_url + path, **more) as answer:
            body = await answer.read()
            kind = answer.headers.get("content-type", "")
            return answer.status, answer.headers, json.loads(body) if kind == "application/json" else body

    async def get(self, path: str, **more: Any) -> tuple[int, Any, Any]:
        return await self.call("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> tuple[int, Any, Any]:
        return await self.call("POST", path, **({"json": body} if body is not None else {}), **more)

    async def only(self) -> FakeInvocation:
        """The one invocation, as soon as the host has it."""
        while not self.host.invocations:
            await asyncio.sleep(0.001)
        (invocation,) = self.host.invocations.values()
        return invocation


@contextlib.asynccontextmanager
async def opened(host: FakeHost, **settings: Any) -> AsyncIterator[Door]:
    """The door, closed again when the block ends."""
    config = GatewayConfig(port=0, **{"http_port": 0, "max_message_bytes": LIMIT, **settings})
    async with await serve(host, config, load=load_text) as gateway, aiohttp.ClientSession() as session:
        yield Door(host, gateway, session)


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """(name, data) of each server-sent event; data that is no JSON as it is."""
    name = ""
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            data = text.removeprefix("data: ")
            yield name, data if data == "[DONE]" else json.loads(data)
            name = ""
