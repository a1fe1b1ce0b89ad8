"""Our own API: records of invocations (docs/reference/http.md)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataflower.errors import FailedPrecondition
from dataflower.gateway.http.body import json_response
from dataflower.gateway.http.plain import record_data
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.sse import EventStream, event
from dataflower.gateway.http.status import BadField
from dataflower.gateway.http.values import Tensors
from dataflower.gateway.http.workflows import failed, tensors_of
from dataflower.host.api import State

RECENT = 50
MOST = 1000
"""Invocations listed if the caller does not say how many, and at most."""


class Invocations:
    """`/v1/invocations`."""

    def __init__(self, site: Site) -> None:
        self._host = site.host

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [
            Route("/v1/invocations", self.recent),
            Route("/v1/workflows/{name}/invocations", self.recent_of),
            Route("/v1/invocations/{id}", self.one),
            Route("/v1/workflows/{name}/invocations/{id}", self.one_of),
            Route("/v1/invocations/{id}/events", self.events),
            Route("/v1/invocations/{id}/trace", self.trace),
            Route("/v1/invocations/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def recent(self, request: Request) -> Response:
        """The newest first, without outputs; `?workflow=` and `?limit=`."""
        return self._listed(request, request.query_params.get("workflow"))

    async def recent_of(self, request: Request) -> Response:
        """Those of a workflow."""
        name = request.path_params["name"]
        self._host.workflow(name)
        return self._listed(request, name)

    def _listed(self, request: Request, workflow: str | None) -> Response:
        said = request.query_params.get("limit", str(RECENT))
        if not said.isdecimal() or not 1 <= int(said) <= MOST:
            raise BadField(f"limit must be 1 to {MOST}, not {said!r}", "limit")
        records = self._host.recent(workflow, int(said))
        return json_response({"invocations": [record_data(record) for record in records]})

    async def one(self, request: Request) -> Response:
        """Its record."""
        record = await self._host.get(request.path_params["id"])
        return json_response(record_data(record, tensors_of(request)))

    async def one_of(self, request: Request) -> Response:
        """The same, where `PUT` put it."""
        return await self.one(request)

    async def events(self, request: Request) -> Response:
        """Its record now, and again whenever it changes, until it is over."""
        ident = request.path_params["id"]
        await self._host.get(ident)
        return EventStream(self._watch(ident, tensors_of(request)), failed)

    async def _watch(self, ident: str, tensors: Tensors) -> AsyncGenerator[bytes, None]:
        async for record in self._host.watch(ident):
            yield event(record_data(record, tensors), record.state.value)

    async def trace(self, request: Request) -> Response:
        """Its record points, once it is over; times are CLOCK_MONOTONIC seconds."""
        record = await self._host.get(request.path_params["id"])
        if record.trace is None:
            why = "is still running" if record.state is State.RUNNING else "left no record points"
            raise FailedPrecondition(f"no trace of invocation {record.id!r}: it {why}")
        return json_response(msgspec.to_builtins(record.trace))

    async def cancel(self, request: Request) -> Response:
        """Stop it, whoever started it."""
        return json_response(record_data(await self._host.cancel(request.path_params["id"])))
