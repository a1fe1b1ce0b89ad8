"""The ports of a function, without running it: from its source text, or from the live object. Both agree.

Reading the source is what `dataflower validate` does: no user code is imported, so a workflow can be checked where its
libraries are not installed. What decorators are told (`outputs=...`) must therefore be literal.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dataflower.spec.annotation import annotated_type, element_of, parse_annotation, wants_context
from dataflower.spec.function import ATTRIBUTE, DEFAULT_PORT, FunctionSpec, Port, PortType, Signature, Stream, streams
from dataflower.spec.literal import Literals, NotLiteral, plain
from dataflower.spec.suggest import did_you_mean

HEAVY = frozenset(
    {"PIL", "av", "cv2", "numpy", "onnxruntime", "pandas", "scipy", "sklearn", "torch", "transformers"},
)
"""Libraries whose import takes long enough to be worth a zygote that has done it."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


class SignatureError(Exception):
    """A function whose ports can't be told. `line` is 1-based in its source, 0 if unknown."""

    def __init__(self, message: str, hint: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    annotation: ast.expr | None
    has_default: bool
    default: Any


@dataclass(frozen=True, slots=True)
class _Setup:
    parameters: tuple[_Parameter, ...] = ()
    takes_any: bool = False


@dataclass(frozen=True, slots=True)
class _Facts:
    """What both readers find out; `_signature` makes ports of it."""

    parameters: tuple[_Parameter, ...]
    takes_any: bool
    is_generator: bool
    returns: ast.expr | None
    spec: FunctionSpec
    setup: _Setup
    stateful: bool
    preload: tuple[str, ...]


def read_signature(source: str, path: str, name: str) -> Signature:
    """The signature of `name` in a module's source text.

    `path` is for messages.

    Raises:
        SignatureError: not Python, no such function, or something that can only be known by running it.
    """
    try:
        module = ast.parse(source, path)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 0) or 0
        raise SignatureError(f"{path} is not valid Python: {error}", line=line) from error
    return _SourceReader(module, path).read(name)


def inspect_signature(obj: Any) -> Signature:
    """The signature of a live function, class, or callable object.

    Raises:
        SignatureError: it can't be called with its inputs by name.
    """
    spec = getattr(obj, ATTRIBUTE, None) or FunctionSpec()
    call = obj
    setup = _Setup()
    if stateful := inspect.isclass(obj):
        if "__call__" not in {name for base in obj.__mro__[:-1] for name in vars(base)}:
            raise SignatureError(f"class {obj.__name__} has no __call__", "define __call__(self, ...)")
        _refuse_constructor(obj.__name__, inspect.signature(obj).parameters.values())
        call = obj.__call__
        setup = _live_setup(getattr(obj, "setup", None))
    elif not inspect.isroutine(obj):
        if not callable(obj):
            raise SignatureError(f"{obj!r} is not callable")
        call = type(obj).__call__
    signature = inspect.signature(call)
    parameters = list(signature.parameters.values())
    if stateful or call is not obj:
        parameters = parameters[1:]
    kinds = inspect.Parameter
    return _signature(
        getattr(obj, "__name__", type(obj).__name__),
        _Facts(
            parameters=_live_parameters(parameters),
            takes_any=any(p.kind in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL) for p in parameters),
            is_generator=streams(obj if stateful or call is obj else call),
            returns=_live_annotation(signature.return_annotation),
            spec=spec,
            setup=setup,
            stateful=stateful,
            preload=_live_preload(obj),
        ),
    )


def _signature(name: str, facts: _Facts) -> Signature:
    inputs = []
    for parameter in facts.parameters:
        if wants_context(parameter.name, parameter.annotation):
            continue
        annotation = element_of(parameter.annotation) if facts.spec.batch else parameter.annotation
        type_, stream = annotated_type(annotation)
        declared = facts.spec.inputs.get(parameter.name)
        if declared is not None:
            type_, stream = (declared.item, True) if isinstance(declared, Stream) else (declared, stream)
        default = None if facts.spec.batch else parameter.default  # that of a batch is no value of the port
        inputs.append(Port(parameter.name, type_, stream, parameter.has_default, default))
    known = {port.name for port in inputs}
    for extra, declared in facts.spec.inputs.items():
        if extra in known:
            continue
        if not facts.takes_any:
            raise SignatureError(f"{name} has no parameter {extra!r} (named in inputs=)", did_you_mean(extra, known))
        is_stream = isinstance(declared, Stream)
        inputs.append(Port(extra, declared.item if isinstance(declared, Stream) else declared, is_stream))
    return Signature(
        inputs=tuple(inputs),
        outputs=_outputs(facts),
        params=tuple(_param(parameter) for parameter in facts.setup.parameters),
        takes_any_param=facts.setup.takes_any,
        takes_any_input=facts.takes_any,
        stateful=facts.stateful,
        preload=facts.preload,
        batch=facts.spec.batch,
        context=any(wants_context(parameter.name, parameter.annotation) for parameter in facts.parameters),
    )


def _param(parameter: _Parameter) -> Port:
    type_, is_iterator = annotated_type(parameter.annotation)
    return Port(
        parameter.name, PortType() if is_iterator else type_, optional=parameter.has_default, default=parameter.default
    )


def _outputs(facts: _Facts) -> tuple[Port, ...]:
    """A generator streams all of its ports, unless it tells streams and values apart itself."""
    declared = facts.spec.outputs
    if not declared:
        type_, is_iterator = annotated_type(element_of(facts.returns) if facts.spec.batch else facts.returns)
        if facts.is_generator:
            return (Port(DEFAULT_PORT, type_ if is_iterator else PortType(), True),)
        return (Port(DEFAULT_PORT, PortType() if is_iterator else type_),)
    marked = any(isinstance(port, Stream) for port in declared.values())
    ports = []
    for name, port in declared.items():
        if isinstance(port, Stream):
            ports.append(Port(name, port.item, True))
        else:
            ports.append(Port(name, port, facts.is_generator and not marked))
    return tuple(ports)


# --- from source --------------------------------------------------------------------------------------------


class _SourceReader:
    def __init__(self, module: ast.Module, path: str) -> None:
        self.path = path
        self.literals = Literals(module)
        self.preload = preload_of(module)
        self.definitions = {
            node.name: node
            for node in top_level(module)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }

    def read(self, name: str) -> Signature:
        node = self.definitions.get(name)
        if node is None:
            public = [known for known in self.definitions if not known.startswith("_")]
            raise SignatureError(
                f"{self.path} defines no function or class {name!r}",
                did_you_mean(name, public, "it must be a `def` or `class` at the top of the file"),
            )
        try:
            return self._read(node)
        except NotLiteral as error:
            raise SignatureError(f"{self.path}:{error.line}: {error}", error.hint, error.line) from error

    def _read(self, node: Definition | ast.ClassDef) -> Signature:
        setup = _Setup()
        stateful = isinstance(node, ast.ClassDef)
        call: Definition
        if isinstance(node, ast.ClassDef):
            found = self._method(node, "__call__")
            if found is None:
                raise SignatureError(f"class {node.name} has no __call__", "define __call__(self, ...)", node.lineno)
            call = found
            if (init := self._method(node, "__init__")) is not None:
                _refuse_constructor(node.name, self._parameters(init)[1:])
            if (method := self._method(node, "setup")) is not None:
                setup = _Setup(tuple(self._by_keyword(method)[1:]), method.args.kwarg is not None)
        else:
            call = node
        parameters = self._by_keyword(call)
        return _signature(
            node.name,
            _Facts(
                parameters=tuple(parameters[1:] if stateful else parameters),
                takes_any=call.args.vararg is not None or call.args.kwarg is not None,
                is_generator=_yields(call),
                returns=call.returns,
                spec=self._spec(node),
                setup=setup,
                stateful=stateful,
                preload=self.preload,
            ),
        )

    def _spec(self, node: Definition | ast.ClassDef) -> FunctionSpec:
        """What `@function` was told; a class inherits it."""
        for one in self._ancestry(node) if isinstance(node, ast.ClassDef) else (node,):
            spec = self.literals.function_spec(one)
            if spec is not None:
                return spec
        return FunctionSpec()

    def _method(self, node: ast.ClassDef, name: str) -> Definition | None:
        for one in self._ancestry(node):
            for item in one.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name:
                    return item
        return None

    def _ancestry(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        """The class and those of its bases that this module defines, nearest first."""
        found = [node]
        for one in found:
            bases = [self.definitions.get(base.id) for base in one.bases if isinstance(base, ast.Name)]
            found += [base for base in bases if isinstance(base, ast.ClassDef) and base not in found]
        return found

    def _by_keyword(self, node: Definition) -> list[_Parameter]:
        is_method = node.args.posonlyargs and node.args.posonlyargs[0].arg == "self"
        if node.args.posonlyargs[1 if is_method else 0 :]:
            raise _positional(node.args.posonlyargs[-1].arg, node.lineno)
        return self._parameters(node)

    def _parameters(self, node: Definition) -> list[_Parameter]:
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
        defaults += arguments.defaults
        pairs = [
            *zip(positional, defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        return [
            _Parameter(
                argument.arg,
                parse_annotation(argument.annotation),
                default is not None,
                None if default is None else self.literals.default(default),
            )
            for argument, default in pairs
        ]


def top_level(module: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run at import, those inside `if` and `try` included."""
    pending: list[ast.stmt] = list(reversed(module.body))
    while pending:
        node = pending.pop()
        yield node
        inner: list[ast.stmt] = []
        if isinstance(node, ast.If):
            inner = node.orelse if "TYPE_CHECKING" in ast.dump(node.test) else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            inner = [*node.body, *(s for h in node.handlers for s in h.body), *node.orelse, *node.finalbody]
        elif isinstance(node, ast.With):
            inner = node.body
        pending.extend(reversed(inner))


def preload_of(module: ast.Module) -> tuple[str, ...]:
    """Heavy libraries that a module imports at its top, in order."""
    found: dict[str, None] = {}
    for node in top_level(module):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        found.update((name.split(".")[0], None) for name in names if name.split(".")[0] in HEAVY)
    return tuple(found)


def _yields(node: Definition) -> bool:
    pending: list[ast.AST] = list(node.body)
    while pending:
        item = pending.pop()
        if isinstance(item, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef | ast.GeneratorExp):
            pending.extend(ast.iter_child_nodes(item))
    return False


# --- from live objects --------------------------------------------------------------------------------------


def _live_annotation(annotation: Any) -> ast.expr | None:
    if annotation is inspect.Parameter.empty:
        return None
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return parse_annotation(ast.Constant(text))


def _live_setup(setup: Callable[..., Any] | None) -> _Setup:
    if setup is None:
        return _Setup()
    parameters = list(inspect.signature(setup).parameters.values())[1:]
    return _Setup(_live_parameters(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters))


def _live_parameters(parameters: list[inspect.Parameter]) -> tuple[_Parameter, ...]:
    return tuple(
        _Parameter(p.name, _live_annotation(p.annotation), p.default is not p.empty, plain(p.default))
        for p in _by_keyword(parameters)
    )


def _live_preload(obj: Any) -> tuple[str, ...]:
    owner = obj if inspect.isclass(obj) or inspect.isroutine(obj) else type(obj)
    module = sys.modules.get(getattr(owner, "__module__", ""))
    try:
        return preload_of(ast.parse(textwrap.dedent(inspect.getsource(module)))) if module else ()
    except (OSError, TypeError, SyntaxError):  # made in an interpreter: there is no source
        return ()


def _by_keyword(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise _positional(parameter.name)
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _refuse_constructor(name: str, parameters: Any) -> None:
    for parameter in parameters:
        optional = parameter.has_default if isinstance(parameter, _Parameter) else _is_optional(parameter)
        if not optional:
            raise SignatureError(
                f"class {name} wants {parameter.name!r} in __init__", "take it in setup(self, ...), which params: sets"
            )


def _is_optional(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return variadic or parameter.default is not parameter.empty


def _positional(name: str, line: int = 0) -> SignatureError:
    return SignatureError(f"parameter {name!r} is positional-only", "inputs are handed over by name: drop the /", line)
