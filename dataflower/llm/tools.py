"""Tool calls: what the model is told of the tools, what it must write, and reading the calls out of what it wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflower.errors import InvalidArgument
from dataflower.llm.request import MAX_SCHEMA_BYTES, Request

OPEN, CLOSE = "<tool_call>", "</tool_call>"
TOLD = (
    "You have access to the following tools:\n<tools>{tools}</tools>\n\n"
    'To call tools, answer with nothing but <tool_call>[{{"name": "...", "arguments": {{...}}}}]</tool_call>. '
    "If no tool is of use, answer in words."
)
"""For models whose chat template has no place for tools."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request. `schema`: of the call that the answer must be; "" = it need not be one.

    `most`: calls that an answer may hold; what the model wrote after those is dropped. None: any number.
    """

    given: tuple[Mapping[str, Any], ...] = ()
    names: frozenset[str] = frozenset()
    schema: str = ""
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model wrote; `arguments` is JSON text."""

    name: str
    arguments: str


def plan(request: Request) -> Tools:
    """What the request says about tools. Raises InvalidArgument."""
    given = tuple(request.tools or ())
    by_name: dict[str, Mapping[str, Any]] = {}
    for index, tool in enumerate(given):
        described = tool.get("function")
        described = described if isinstance(described, dict) else {}
        name = described.get("name")
        if tool.get("type") != "function" or not isinstance(name, str) or not name:
            raise InvalidArgument(f"request: tools[{index}] is not a function with a name")
        if not isinstance(described.get("parameters") or {}, dict):
            raise InvalidArgument(f"request: tools[{index}].function.parameters is not a JSON schema that is an object")
        by_name[name] = described
    most = 1 if request.parallel_tool_calls is False else None
    choice: Any = request.tool_choice
    if choice == "none":
        return Tools()
    if choice in (None, "auto"):
        return Tools(given, frozenset(by_name), most=most)
    if choice == "required":
        wanted = list(by_name.values())
    elif isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        if not isinstance(name, str) or name not in by_name:
            raise InvalidArgument(f"request: tool_choice names {name!r}, which is none of the tools")
        wanted = [by_name[name]]
    else:
        raise InvalidArgument("request: tool_choice is none, auto, required, or names a function")
    if not wanted:
        raise InvalidArgument("request: tool_choice asks for a tool, but there are none")
    return Tools(given, frozenset(by_name), _schema(wanted), most)


def messages_without_template(messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[dict[str, Any]]:
    """Messages for a chat template that knows nothing of tools: all in words."""
    told = []
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            text = json.dumps([_plain(call) for call in calls])
            told.append({"role": message["role"], "content": f"{message['content']}{OPEN}{text}{CLOSE}"})
        else:
            told.append({"role": message["role"], "content": message["content"]})
    if tools.given:
        text = TOLD.format(tools=json.dumps([tool["function"] for tool in tools.given]))
        if told[0]["role"] == "system":
            told[0] = {"role": "system", "content": f"{told[0]['content']}\n\n{text}"}
        else:
            told.insert(0, {"role": "system", "content": text})
    return told


def messages_with_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a chat template that knows tools: the arguments of earlier calls as objects, not as text."""
    made = []
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            functions = [{"type": "function", "id": call.get("id", ""), "function": _plain(call)} for call in calls]
            made.append({**message, "tool_calls": functions})
        else:
            made.append(dict(message))
    return made


def may_be_call(text: str) -> bool:
    """Whether a text that has just begun could turn out to be a call."""
    begun = text.lstrip()
    return not begun or begun[0] in "{[" or begun.startswith(OPEN) or OPEN.startswith(begun)


def read(text: str, tools: Tools) -> tuple[str, tuple[Call, ...]]:
    """What stands before the calls, and the calls; a text that holds none comes back whole."""
    found = re.findall(re.escape(OPEN) + r"(.*?)(?:" + re.escape(CLOSE) + r"|\Z)", text, re.DOTALL)
    before = text[: text.find(OPEN)] if found else ""
    calls: list[Call] = []
    for piece in found or [text]:
        try:
            written = json.loads(piece)
        except (ValueError, RecursionError):
            return text, ()
        for one in written if isinstance(written, list) else [written]:
            arguments = one.get("arguments", one.get("parameters")) if isinstance(one, dict) else None
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(arguments, dict) or not isinstance(name, str) or name not in tools.names:
                return text, ()
            calls.append(Call(name, json.dumps(arguments)))
    return (before.strip(), tuple(calls[: tools.most])) if calls else (text, ())


def _schema(functions: Sequence[Mapping[str, Any]]) -> str:
    one = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                # Unless the tool says otherwise, none but its own: a small model would go on inventing others.
                "arguments": {"type": "object", "additionalProperties": False, **(function.get("parameters") or {})},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    text = json.dumps(one[0] if len(one) == 1 else {"anyOf": one})
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidArgument(f"request: the tools have {len(text)} bytes; at most {MAX_SCHEMA_BYTES} are taken")
    return text


def _plain(call: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier call as {name, arguments} with the arguments as an object."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise InvalidArgument(
                f"request: messages: the arguments of a call of {function.get('name')!r} are not JSON"
            ) from None
    return {"name": function.get("name", ""), "arguments": arguments}
