"""Our own API: workflows, and calling them (docs/reference/http.md)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataflower.errors import DataflowerError, InvalidArgument, InvocationFailed
from dataflower.gateway.answer_size import check_answer
from dataflower.gateway.http.body import json_object, json_response, read_body
from dataflower.gateway.http.plain import record_data, workflow_data
from dataflower.gateway.http.presence import LEFT, result_of, while_there
from dataflower.gateway.http.site import Site
from dataflower.gateway.http.sse import EventStream, event
from dataflower.gateway.http.status import BadField, error_object
from dataflower.gateway.http.values import Tensors, from_json, to_json
from dataflower.host.api import Invocation, InvocationRecord, State

IDEMPOTENCY = "idempotency-key"
ASYNC = re.compile(r"(?:^|,)\s*respond-async\s*(?:,|;|$)", re.IGNORECASE)
"""The preference of RFC 7240."""


class Workflows:
    """`/v1/workflows`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._host = site.host

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [
            Route("/v1/workflows", self.all),
            Route("/v1/workflows/{name}", self.one),
            Route("/v1/workflows/{name}/invoke", self.invoke, methods=["POST"]),
            Route("/v1/workflows/{name}/invocations/{id}", self.submit, methods=["PUT"]),
        ]

    async def all(self, request: Request) -> Response:
        """What can be invoked."""
        return json_response({"workflows": [workflow_data(status) for status in self._host.workflows()]})

    async def one(self, request: Request) -> Response:
        """One workflow, with its source."""
        return json_response(workflow_data(self._host.workflow(request.path_params["name"]), source=True))

    async def invoke(self, request: Request) -> Response:
        """Call it: the answer is the outputs, a stream of events, or where to ask later."""
        name = request.path_params["name"]
        self._host.workflow(name)
        tensors = tensors_of(request)
        body = await self._body(request)
        inputs = self._inputs(name, body)
        wants_stream = body.get("stream", "text/event-stream" in request.headers.get("accept", ""))
        key = request.headers.get(IDEMPOTENCY)
        if ASYNC.search(request.headers.get("prefer", "")):
            record = await self._submit(request, name, inputs, key)
            return accepted(record, tensors, {"preference-applied": "respond-async"})
        if key is not None:
            if wants_stream:
                raise InvalidArgument("a call with an Idempotency-Key can't be streamed")
            return await self._once(request, name, inputs, key, tensors)
        invocation = await self._host.invoke(name, inputs, deadline=self._site.deadline(request))
        if wants_stream:
            return EventStream(self._events(invocation, tensors), failed, {"x-invocation-id": invocation.id})
        outputs = await result_of(invocation, request.receive)
        return json_response({"id": invocation.id, "outputs": self._written(outputs, tensors)})

    async def submit(self, request: Request) -> Response:
        """Call it under an id of the caller's: doing so again does nothing more."""
        name, ident = request.path_params["name"], request.path_params["id"]
        self._host.workflow(name)
        inputs = self._inputs(name, await self._body(request))
        return accepted(await self._submit(request, name, inputs, ident), tensors_of(request))

    async def _body(self, request: Request) -> dict[str, Any]:
        body = await read_body(request, self._site.body_limit)
        return json_object(body) if body else {}

    def _inputs(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        inputs = body.get("inputs", {})
        if not isinstance(inputs, dict):
            raise BadField(f"`inputs` must be an object, name to value, not {type(inputs).__name__}", "inputs")
        if extra := set(body) - {"inputs", "stream"}:
            raise BadField(f"unknown key {min(extra)!r}; inputs go under `inputs`", min(extra))
        if not isinstance(body.get("stream", False), bool):
            raise BadField("`stream` must be true or false", "stream")
        return from_json(inputs, self._host.workflow(name).workflow.inputs)

    async def _submit(self, request: Request, name: str, inputs: dict[str, Any], key: str | None) -> InvocationRecord:
        return await self._host.submit(name, inputs, invocation=key, deadline_s=self._site.wait_s(request))

    async def _once(self, request: Request, name: str, inputs: dict[str, Any], key: str, tensors: Tensors) -> Response:
        """A call that may be repeated: it is submitted, and its record waited for. It outlives the caller."""
        record = await self._submit(request, name, inputs, key)

        async def over() -> InvocationRecord:
            return [seen async for seen in self._host.watch(record.id)][-1]

        if record.state is State.RUNNING:
            record = await while_there(request.receive, over(), lambda why: None)
        if record.failure is not None:
            raise InvocationFailed(record.failure)
        return json_response({"id": record.id, "outputs": self._written(dict(record.outputs or {}), tensors)})

    def _written(self, value: Any, tensors: Tensors) -> Any:
        """A value as JSON can say it; AnswerTooLarge before any time goes into one that is too long."""
        check_answer(value, self._site.body_limit, as_json=tensors is Tensors.LIST)
        return to_json(value, tensors)

    async def _events(self, invocation: Invocation, tensors: Tensors) -> AsyncGenerator[bytes, None]:
        began, items, first = self._site.clock.monotonic(), 0, 0.0
        try:
            yield event({"id": invocation.id}, "started")
            async for output in invocation.outputs():
                first = first or self._site.clock.monotonic()
                index = output.index if output.index >= 0 else None
                made = {"port": output.port, "index": index, "value": self._written(output.value, tensors)}
                yield event(made, "output", str(items))
                items += 1
        except (asyncio.CancelledError, GeneratorExit):
            invocation.cancel(LEFT)
            raise
        except BaseException:
            invocation.cancel()
            raise
        done: dict[str, Any] = {"id": invocation.id, "items": items}
        done["elapsed_s"] = self._site.clock.monotonic() - began
        done["first_output_s"] = first - began if items else None
        yield event(done, "done")


def failed(error: DataflowerError) -> bytes:
    """The event that ends a stream in failure."""
    return event({"error": error_object(error, traceback=True)}, "error")


def accepted(record: InvocationRecord, tensors: Tensors, headers: dict[str, str] | None = None) -> Response:
    """202 with the place to ask, or 200 if it is over."""
    running = record.state is State.RUNNING
    where = {"location": f"/v1/invocations/{record.id}", **(headers or {})}
    return json_response(record_data(record, tensors), 202 if running else 200, where)


def tensors_of(request: Request) -> Tensors:
    """How the caller wants tensors: `?tensors=base64`."""
    said = request.query_params.get("tensors", Tensors.LIST.value)
    try:
        return Tensors(said)
    except ValueError:
        known = ", ".join(form.value for form in Tensors)
        raise BadField(f"tensors={said} is not known; known: {known}", "tensors") from None
