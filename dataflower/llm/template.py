"""Chat templates as `transformers` renders them: Jinja in a sandbox, with the few names that templates count on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Under which a message's reasoning is found; templates read the first or the second."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it is what stands between."""

    tags = {"generation"}  # noqa: RUF012 - as the class above has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict(...)` for templates, and no other attribute of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """See `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)` for templates: no name that begins with an underscore."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        super().__setitem__(name, value)


class ChatTemplate:
    """One template. Rendering is thread-safe."""

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError: not a template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_Dict(), namespace=_Namespace)
        self._template = environment.from_string(source)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, **names: Any) -> str:
        """The text of a conversation.

        Args:
            messages: Maps of JSON values with `role` and more. Keys without a value (None) are as if not there.
            tools: JSON schemas.
            names: What else the template sees.

        Raises:
            ValueError: There are no messages.
            jinja2.TemplateError: What the template refuses, or fails at.
        """
        if not messages:
            raise ValueError("a chat template needs at least one message")
        shown = [_with_thoughts(_plain({k: v for k, v in m.items() if v is not None})) for m in messages]
        return self._template.render(messages=shown, tools=_plain(tools), **{"documents": None, **_plain(names)})


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """The reasoning under the names that templates read."""
    said = next((message[name] for name in THOUGHTS if message.get(name) is not None), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


def _plain(value: Any) -> Any:
    """A copy out of plain maps and lists, which a template may change without harm to others."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if value is None or type(value) in {str, int, float, bool}:
        return value
    return f"<{type(value).__name__}>"  # an object has methods that the sandbox may not know to be dangerous


def _check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template can't name an attribute of a namespace {name!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own one writes characters of HTML as escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
