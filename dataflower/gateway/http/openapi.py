"""The description of the HTTP API: `/openapi.json`, made of what is deployed, and a page that shows it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from dataflower.gateway.http import schemas
from dataflower.gateway.http.body import json_response
from dataflower.gateway.http.openai.models import declared, is_chat, is_embedder
from dataflower.gateway.http.schemas import Schema, answers, body_of, of_port, query, ref
from dataflower.gateway.http.site import Site
from dataflower.host.api import WorkflowStatus

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class OpenApi:
    """What there is, for programs and for people."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        """Where it answers."""
        return [Route("/openapi.json", self.document), Route("/docs", self.page)]

    async def document(self, request: Request) -> Response:
        """OpenAPI 3.1, with a path for each workflow that is deployed now."""
        return json_response(
            describe(self._site.version, self._site.host.workflows(), bool(self._site.config.api_keys))
        )

    async def page(self, request: Request) -> Response:
        """A page of its own: it loads nothing but the document."""
        return HTMLResponse(_page(), headers={"content-security-policy": _PAGE_POLICY})


@cache
def _page() -> str:
    return resources.files(__package__).joinpath("docs.html").read_text("utf-8")


def describe(version: str, workflows: tuple[WorkflowStatus, ...], locked: bool) -> dict[str, Any]:
    """The document. `locked`: calls need a key."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "dataflower", "version": version, "description": "Workflows over HTTP."},
        "paths": {**{path: dict(methods) for path, methods in _PATHS.items()}, **_own(workflows)},
        "components": {"schemas": {**schemas.COMPONENTS, **_named(workflows)}},
    }
    if locked:
        document["components"] = {
            **document["components"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        }
        document["security"] = [{"key": []}]
    return document


def _own(workflows: tuple[WorkflowStatus, ...]) -> dict[str, Any]:
    """A path for each workflow, with its inputs by name and type."""
    return {f"/v1/workflows/{status.name}/invoke": {"post": _call_of(status)} for status in workflows}


def _named(workflows: tuple[WorkflowStatus, ...]) -> dict[str, Schema]:
    """The requests of models, with the names that may be given now."""
    fits = {"Chat": is_chat, "Text": is_chat, "Texts": is_embedder}
    made = {}
    for kind, fit in fits.items():
        names = [name for w in workflows if fit(w) for name in (w.name, *(declared(w) if fit is is_chat else ()))]
        if names:
            schema = schemas.COMPONENTS[kind]
            made[kind] = {**schema, "properties": {**schema["properties"], "model": {"enum": names}}}
    return made


def _call_of(status: WorkflowStatus) -> dict[str, Any]:
    ports = status.workflow.inputs
    inputs: Schema = {
        "type": "object",
        "properties": {port.name: of_port(port) for port in ports},
        "required": [port.name for port in ports if not port.optional],
        "additionalProperties": False,
    }
    call = {
        "type": "object",
        "properties": {"inputs": inputs, "stream": {"type": "boolean"}},
        "additionalProperties": False,
        **({"required": ["inputs"]} if inputs["required"] else {}),
    }
    summary = status.workflow.description or f"Call {status.name}@{status.version}"
    return {
        "tags": ["workflows"],
        "summary": summary,
        "operationId": f"invoke_{status.name}",
        "parameters": [query("tensors", {"enum": ["list", "base64"]})],
        "requestBody": body_of(call),
        "responses": {**answers(ref("Outputs")), "202": _accepted(), **_streams()},
    }


def _accepted() -> Schema:
    return {"description": "Submitted; Location says where to ask", "content": schemas.content(ref("Invocation"))}


def _streams() -> dict[str, Any]:
    ok = schemas.content(ref("Outputs"))
    return {"200": {"description": "Outputs, or events if asked for", "content": {**ok, **schemas.EVENTS}}}


def _get(tag: str, summary: str, schema: Schema, *parameters: Schema) -> dict[str, Any]:
    return _operation(tag, summary, {"parameters": list(parameters), "responses": answers(schema)})


def _post(tag: str, summary: str, body: Schema | None, schema: Schema, *parameters: Schema) -> dict[str, Any]:
    made: dict[str, Any] = {"parameters": list(parameters), "responses": answers(schema)}
    return _operation(tag, summary, {**made, **({"requestBody": body_of(body)} if body is not None else {})})


def _operation(tag: str, summary: str, rest: dict[str, Any]) -> dict[str, Any]:
    return {"tags": [tag], "summary": summary, **rest}


def _streaming(operation: dict[str, Any]) -> dict[str, Any]:
    ok = operation["responses"]["200"]
    operation["responses"]["200"] = {**ok, "content": {**ok["content"], **schemas.EVENTS}}
    return operation


_ID, _NAME, _MODEL = (schemas.in_path(name) for name in ("id", "name", "model"))
_LIMIT = query("limit", {"type": "integer", "minimum": 1, "maximum": 1000})
_TENSORS = query("tensors", {"enum": ["list", "base64"]})
_RECORD = ref("Invocation")
_PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"post": _streaming(_post("models", "Continue a chat", ref("Chat"), ref("Answer")))},
    "/v1/completions": {"post": _streaming(_post("models", "Continue a text", ref("Text"), ref("Answer")))},
    "/v1/embeddings": {"post": _post("models", "Vectors of texts", ref("Texts"), ref("List"))},
    "/v1/models": {"get": _get("models", "Models and adapters", ref("List"))},
    "/v1/models/{model}": {"get": _get("models", "A model", ref("Model"), _MODEL)},
    "/v1/load_lora_adapter": {
        "post": _operation(
            "models",
            "Make an adapter a model (admin key)",
            {"requestBody": body_of(ref("Adapter")), "responses": schemas.answers_text()},
        )
    },
    "/v1/unload_lora_adapter": {
        "post": _operation(
            "models",
            "Make it one no longer (admin key)",
            {"requestBody": body_of(ref("AdapterName")), "responses": schemas.answers_text()},
        )
    },
    "/v1/workflows": {"get": _get("workflows", "What can be invoked", ref("Workflows"))},
    "/v1/workflows/{name}": {"get": _get("workflows", "A workflow with its source", ref("Workflow"), _NAME)},
    "/v1/workflows/{name}/invocations": {
        "get": _get("invocations", "The newest invocations of a workflow", ref("Invocations"), _NAME, _LIMIT)
    },
    "/v1/workflows/{name}/invocations/{id}": {
        "put": _operation(
            "invocations",
            "Call under an id of your own; repeating it does nothing more",
            {
                "parameters": [_NAME, _ID, _TENSORS],
                "requestBody": body_of(ref("Call")),
                "responses": {**answers(_RECORD), "202": _accepted()},
            },
        ),
        "get": _get("invocations", "Its record", _RECORD, _NAME, _ID, _TENSORS),
    },
    "/v1/invocations": {
        "get": _get("invocations", "The newest", ref("Invocations"), query("workflow", {"type": "string"}), _LIMIT)
    },
    "/v1/invocations/{id}": {"get": _get("invocations", "Its record", _RECORD, _ID, _TENSORS)},
    "/v1/invocations/{id}/events": {
        "get": _operation(
            "invocations",
            "Its record now, and whenever it changes",
            {"parameters": [_ID, _TENSORS], "responses": {**answers({}), "200": schemas.EVENT_ANSWER}},
        )
    },
    "/v1/invocations/{id}/trace": {"get": _get("invocations", "Its record points", ref("Trace"), _ID)},
    "/v1/invocations/{id}/cancel": {"post": _post("invocations", "Stop it", None, _RECORD, _ID)},
    "/healthz": {"get": _get("server", "Whether it lives", ref("Health"))},
    "/readyz": {"get": _get("server", "Whether it takes calls", ref("Health"))},
    "/metrics": {
        "get": _operation("server", "For Prometheus", {"responses": schemas.answers_text()}),
    },
    "/v2": {"get": _get("Open Inference Protocol", "Who this is", ref("Object"))},
    "/v2/health/live": {"get": _get("Open Inference Protocol", "Whether it lives", ref("Object"))},
    "/v2/health/ready": {"get": _get("Open Inference Protocol", "Whether it takes calls", ref("Object"))},
    "/v2/models/{name}": {"get": _get("Open Inference Protocol", "Inputs and outputs", ref("Object"), _NAME)},
    "/v2/models/{name}/ready": {"get": _get("Open Inference Protocol", "Whether it is there", ref("Object"), _NAME)},
    "/v2/models/{name}/infer": {
        "post": _post("Open Inference Protocol", "Call it with tensors", ref("Infer"), ref("Object"), _NAME)
    },
}
