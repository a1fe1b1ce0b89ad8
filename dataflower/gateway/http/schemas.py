"""JSON Schemas of what the HTTP API takes and gives, for its description."""

from __future__ import annotations

from typing import Any

from dataflower.gateway.http.body import JSON
from dataflower.spec.function import Kind, Port, PortType

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    """A schema of `COMPONENTS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def content(schema: Schema) -> Schema:
    """A JSON body."""
    return {JSON: {"schema": schema}}


def body_of(schema: Schema) -> Schema:
    """A JSON body that must be there."""
    return {"required": True, "content": content(schema)}


def in_path(name: str) -> Schema:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def query(name: str, schema: Schema) -> Schema:
    """A parameter behind the question mark."""
    return {"name": name, "in": "query", "schema": schema}


def answers(schema: Schema) -> dict[str, Any]:
    """A good answer, and the form of all others."""
    return {
        "200": {"description": "Done", "content": content(schema)},
        "default": {"description": "An error (docs/reference/status.md)", "content": content(ref("Error"))},
    }


def answers_text() -> dict[str, Any]:
    """The same with a text for an answer."""
    good = {"description": "Done", "content": {"text/plain": {"schema": _TEXT}}}
    return {**answers(_TEXT), "200": good}


_EVENT: Schema = {"type": "object", "properties": {"event": _TEXT, "id": _TEXT, "data": _TEXT}, "required": ["data"]}
EVENTS: Schema = {"text/event-stream": {"schema": _EVENT}}
EVENT_ANSWER: Schema = {"description": "Events", "content": EVENTS}

_SCALARS = {Kind.STRING: "string", Kind.INT: "integer", Kind.FLOAT: "number", Kind.BOOL: "boolean"}


def of_port(port: Port) -> Schema:
    """What may be given for an input."""
    schema = _of_type(port.type)
    if port.stream:
        schema = {"type": "array", "items": schema}
    if port.optional:
        default = {} if port.default is None else {"default": port.default}
        return {"anyOf": [schema, {"type": "null"}], **default} if port.default is None else {**schema, **default}
    return schema


def _of_type(type_: PortType) -> Schema:
    if type_.kind in _SCALARS:
        return {"type": _SCALARS[type_.kind]}
    if type_.kind is Kind.BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if type_.kind is Kind.TENSOR:
        described = {"description": f"{type_}: nested lists of numbers, or a Tensor"}
        return {"anyOf": [{"type": "array"}, {"type": "number"}, ref("Tensor")], **described}
    return {"description": str(type_)}


def _object(properties: dict[str, Schema], *required: str, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _list(name: str) -> Schema:
    return {"type": "array", "items": ref(name)}


_SAMPLING: dict[str, Schema] = {
    "model": {"type": "string", "minLength": 1},
    "stream": _FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    "max_tokens": {"type": ["integer", "null"], "minimum": 0},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 100},
    "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "seed": {"type": ["integer", "null"]},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 16},
    "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TEXT, "maxItems": 16}]},
    "response_format": {"type": ["object", "null"]},
}
_MESSAGE = _object({"role": _TEXT, "content": {"type": ["string", "array", "null"]}}, "role")
_PROMPT: Schema = {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": 64}]}
_STATES: Schema = {"enum": ["running", "succeeded", "failed", "cancelled"]}
_CALL = _object({"inputs": _OBJECT}, additionalProperties=False)

COMPONENTS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": {
                "anyOf": [
                    _object(
                        {
                            "message": _TEXT,
                            "type": _TEXT,
                            "param": {"type": ["string", "null"]},
                            "code": _TEXT,
                            "failure": _OBJECT,
                            "problems": {"type": "array", "items": _TEXT},
                        },
                        "message",
                        "type",
                        "param",
                        "code",
                    ),
                    {"type": "string", "description": "under /v2"},
                ]
            }
        },
        "error",
    ),
    "Object": _OBJECT,
    "Tensor": _object(
        {"dtype": _TEXT, "shape": {"type": "array", "items": {"type": "integer"}}, "data": {}, "base64": _TEXT},
        "dtype",
        "shape",
    ),
    "Call": _CALL,
    "Outputs": _object({"id": _TEXT, "outputs": _OBJECT}, "id", "outputs"),
    "Invocation": _object(
        {
            "id": _TEXT,
            "workflow": _TEXT,
            "version": {"type": "integer"},
            "state": _STATES,
            "accepted_at": {"type": "string", "format": "date-time"},
            "finished_at": {"type": ["string", "null"], "format": "date-time"},
            "outputs": _OBJECT,
            "failure": _OBJECT,
        },
        "id",
        "workflow",
        "version",
        "state",
        "accepted_at",
        "finished_at",
    ),
    "Invocations": _object({"invocations": _list("Invocation")}, "invocations"),
    "Workflow": _object(
        {
            "name": _TEXT,
            "version": {"type": "integer"},
            "description": _TEXT,
            "inputs": {"type": "array"},
            "outputs": {"type": "array"},
            "stages": {"type": "array"},
            "source": _TEXT,
        },
        "name",
        "version",
        "inputs",
        "outputs",
    ),
    "Workflows": _object({"workflows": _list("Workflow")}, "workflows"),
    "Trace": _object({"invocation": _TEXT, "tasks": {"type": "array"}}, "invocation", "tasks"),
    "Health": _object({"status": _TEXT}, "status"),
    "Chat": _object(
        {
            **_SAMPLING,
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "max_completion_tokens": {"type": ["integer", "null"], "minimum": 0},
            "tools": {"type": ["array", "null"], "items": _OBJECT},
            "tool_choice": {"type": ["string", "object", "null"]},
            "logprobs": _FLAG,
            "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        },
        "model",
        "messages",
    ),
    "Text": _object(
        {**_SAMPLING, "prompt": _PROMPT, "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20}},
        "model",
        "prompt",
    ),
    "Answer": _object({"id": _TEXT, "object": _TEXT, "choices": {"type": "array"}}, "id", "object", "choices"),
    "Texts": _object(
        {
            "model": {"type": "string", "minLength": 1},
            "input": {"anyOf": [_TEXT, {"type": "array", "minItems": 1}]},
            "encoding_format": {"enum": ["float", "base64", None]},
        },
        "model",
        "input",
    ),
    "Model": _object({"id": _TEXT, "object": _TEXT, "parent": {"type": ["string", "null"]}}, "id", "object"),
    "List": _object({"object": {"const": "list"}, "data": {"type": "array"}}, "object", "data"),
    "AdapterName": _object({"lora_name": {"type": "string", "minLength": 1}}, "lora_name"),
    "Adapter": _object(
        {
            "lora_name": {"type": "string", "minLength": 1},
            "lora_path": {"type": "string", "minLength": 1},
            "base_model_name": {"type": ["string", "null"]},
            "load_inplace": _FLAG,
        },
        "lora_name",
        "lora_path",
    ),
    "Infer": _object(
        {
            "id": _TEXT,
            "inputs": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "datatype": _TEXT,
                        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                        "data": {"type": "array"},
                        "parameters": _OBJECT,
                    },
                    "name",
                    "datatype",
                    "shape",
                ),
            },
            "outputs": {"type": "array", "items": _object({"name": _TEXT, "parameters": _OBJECT}, "name")},
            "parameters": _OBJECT,
        },
        "inputs",
    ),
}
