"""The user's function: found by name, built once, called by parameter name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflower.channel import torches
from dataflower.container.loops import settle
from dataflower.errors import FailedPrecondition
from dataflower.spec.context import PARAMETER


@dataclass(frozen=True, slots=True)
class Target:
    """What to call for each task.

    `call(**inputs, **constants)`; `context`: name of the parameter that wants the Context; `torch`: parameters that
    want torch tensors; `rest`: inputs without a parameter go to `*args`, whose leading parameters are `positional`,
    while those that follow it, `keywords`, are given by name.
    """

    call: Callable[..., Any]
    instance: Any = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    context: str | None = None
    torch: frozenset[str] = frozenset()
    rest: bool = False
    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def invoke(self, inputs: dict[str, Any]) -> Any:
        """Call the user's function; a generator or coroutine comes back unstarted."""
        if not self.rest:
            return self.call(**inputs)
        names = [name for name in self.positional if name in inputs]
        arguments = [inputs.pop(name) for name in names]
        named = {name: inputs.pop(name) for name in self.keywords if name in inputs}
        return self.call(*arguments, *inputs.values(), **named)

    def trim(self) -> None:
        """Run the hook `trim()` of a stateful function, if it has one. Raises what that raises."""
        hook = getattr(self.instance, "trim", None)
        if callable(hook):
            settle(hook())

    def close(self) -> None:
        """Run the teardown hook `close()` of a stateful function, if it has one. Raises what that raises."""
        hook = getattr(self.instance, "close", None)
        if callable(hook):
            settle(hook())


def to_torch(value: Any) -> Any:
    """An array, or a list of them, as torch tensors that share its memory; anything else as it is."""
    if isinstance(value, list):
        return [to_torch(item) for item in value]
    return torches.to_torch(value) if hasattr(value, "__array_interface__") else value


def find(path: str) -> Any:
    """The object named `module:name`. Raises what the import raises, and FailedPrecondition."""
    module_name, _, name = path.partition(":")
    if not name:
        raise FailedPrecondition(f"function {path!r} is not of the form module:name")
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise FailedPrecondition(f"{path} is a {type(found).__name__}, which can't be called")
    return found


def build(found: Any, params: Mapping[str, Any]) -> Target:
    """Make it callable: a class is instantiated and `setup` (which takes the params) is run, sync or async."""
    constants = dict(params)
    instance = None
    call = found
    if inspect.isclass(found):
        instance = call = found()
        hook = getattr(instance, "setup", None)
        if callable(hook):
            wanted = _accepted(hook, constants)
            settle(hook(**{name: constants.pop(name) for name in wanted}))
    return bind(call, constants, instance)


def bind(call: Callable[..., Any], constants: Mapping[str, Any] | None = None, instance: Any = None) -> Target:
    """Read the signature once. Raises FailedPrecondition if a constant has no parameter."""
    constants = constants or {}
    try:
        parameters = inspect.signature(call).parameters
    except ValueError:  # some builtins have none
        return Target(call, instance, constants)
    kinds = inspect.Parameter
    by_name = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    has_keywords = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    has_rest = any(p.kind is kinds.VAR_POSITIONAL for p in parameters.values())
    unknown = [name for name in constants if name not in by_name]
    if unknown and not has_keywords:
        raise FailedPrecondition(f"params without a parameter of the function: {', '.join(unknown)}")
    context = next(
        (n for n, p in by_name.items() if n == PARAMETER or _last(p.annotation).removesuffix("]") == "Context"), None
    )
    return Target(
        call=call,
        instance=instance,
        constants=constants,
        context=context,
        torch=frozenset(name for name, p in by_name.items() if _wants_torch(p.annotation)),
        rest=has_rest and not has_keywords,
        positional=tuple(n for n, p in by_name.items() if p.kind is kinds.POSITIONAL_OR_KEYWORD),
        keywords=tuple(n for n, p in by_name.items() if p.kind is kinds.KEYWORD_ONLY),
    )


def _accepted(hook: Callable[..., Any], params: Mapping[str, Any]) -> list[str]:
    parameters = inspect.signature(hook).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return list(params)
    return [p.name for p in parameters if p.name in params]


def _last(annotation: Any) -> str:
    """Last name of an annotation, quoted or not: `Context` of `dataflower.Context`."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.rpartition(".")[2]


def _wants_torch(annotation: Any) -> bool:
    """Whether it is `torch.Tensor`, or a list or stream of them (torch itself need not be imported for that)."""
    return "torch.Tensor" in (annotation if isinstance(annotation, str) else _text(annotation))


def _text(annotation: Any) -> str:
    if inspect.isclass(annotation) and not hasattr(annotation, "__origin__"):
        return f"{annotation.__module__}.{annotation.__qualname__}"
    return str(annotation)
