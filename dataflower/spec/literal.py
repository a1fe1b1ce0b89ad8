"""Values that can be read off a module's syntax tree: defaults, and what `@function(...)` is told."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

from dataflower.spec.function import FunctionSpec, Json, Kind, PortType, Stream, Tensor, Text

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class NotLiteral(Exception):
    """An expression that could only be known by running the module, or that would fail there."""

    def __init__(self, message: str, line: int, hint: str = "write it out literally") -> None:
        super().__init__(message)
        self.line = line
        self.hint = hint


def plain(value: Any) -> Any:
    """A default as the specification may hold it: plain data (tuples as lists); anything else is None."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    return None


def imported_names(module: ast.Module) -> frozenset[str]:
    """Names that a module's imports bind, wherever they stand; `*` for everything of another module."""
    imports = [node for node in ast.walk(module) if isinstance(node, ast.Import | ast.ImportFrom)]
    return frozenset(alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names)


class Literals:
    """Evaluates literal expressions in the light of a module's constants and imports."""

    def __init__(self, module: ast.Module) -> None:
        self._constants: dict[str, ast.expr] = {}
        self._aliases: dict[str, str] = {}
        self._imported = imported_names(module)
        for node in module.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self._constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self._constants[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dataflower":
                self._aliases.update({alias.asname or alias.name: alias.name for alias in node.names})

    def default(self, node: ast.expr) -> Any:
        """A parameter's default as plain data, None if it can't be told."""
        try:
            return plain(self.value(node))
        except NotLiteral:
            return None

    def function_spec(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> FunctionSpec | None:
        """What `@function` above a definition was told; None if it isn't there.

        Raises:
            NotLiteral: its arguments are not literal.
        """
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            if self._name(call.func if call else decorator) != "function":
                continue
            given = {keyword.arg: keyword.value for keyword in call.keywords} if call else {}
            batch = given.get("batch")
            return FunctionSpec(
                outputs=self._ports(given.get("outputs")),
                inputs=self._ports(given.get("inputs")),
                batch=batch is not None and bool(self.value(batch)),
            )
        return None

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of a literal expression.

        Raises:
            NotLiteral: it is something else.
        """
        if depth > 50:
            raise NotLiteral("too deep to be read", node.lineno)
        match node:
            case ast.Constant():
                return node.value
            case ast.Name() if node.id in self._constants:
                return self.value(self._constants[node.id], depth + 1)
            case ast.List() | ast.Tuple():
                return [self.value(item, depth + 1) for item in node.elts]
            case ast.Dict() if all(key is not None for key in node.keys):
                keys = [self.value(key, depth + 1) for key in node.keys if key is not None]
                return dict(zip(keys, (self.value(item, depth + 1) for item in node.values), strict=True))
            case ast.UnaryOp(op=ast.USub()):
                value = self.value(node.operand, depth + 1)
                if isinstance(value, int | float):
                    return -value
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                left, right = self.value(node.left, depth + 1), self.value(node.right, depth + 1)
                if (
                    type(left) in (int, float)
                    and type(right) in (int, float)
                    and (right or not isinstance(node.op, ast.Div | ast.FloorDiv))
                ):
                    return _ARITHMETIC[type(node.op)](left, right)
            case ast.Call():
                return self._type(node, depth)
        raise NotLiteral(f"`{ast.unparse(node)}` can't be known without running the module", node.lineno)

    def _type(self, node: ast.Call, depth: int) -> Any:
        arguments = [self._argument(item, depth) for item in node.args]
        named = {keyword.arg or "": self._argument(keyword.value, depth) for keyword in node.keywords}
        makers = {"Tensor": Tensor, "Json": Json, "Text": Text, "Stream": Stream, "PortType": PortType}
        maker: Any = makers.get(self._name(node.func))
        if isinstance(node.func, ast.Name) and node.func.id in self._aliases and maker is None:
            known = ", ".join(makers)
            raise NotLiteral(f"dataflower has no port type `{node.func.id}`", node.lineno, f"known: {known}")
        if maker is not None:
            self._check_imported(node.func)
            try:
                return maker(*arguments, **named)
            except (TypeError, ValueError) as error:
                raise NotLiteral(f"`{ast.unparse(node)}`: {error}", node.lineno) from error
        raise NotLiteral(f"`{ast.unparse(node)}` can't be known without running the module", node.lineno)

    def _check_imported(self, node: ast.expr) -> None:
        """What is not imported is found out here, rather than by the first container that imports the module."""
        if self._aliases and isinstance(node, ast.Name) and not self._imported & {node.id, "*"}:
            raise NotLiteral(f"`{node.id}` is not imported", node.lineno, f"from dataflower import {node.id}")

    def _argument(self, node: ast.expr, depth: int) -> Any:
        if isinstance(node, ast.Attribute) and self._name(node.value) == "Kind" and node.attr in Kind.__members__:
            return Kind[node.attr]
        return self.value(node, depth + 1)

    def _ports(self, node: ast.expr | None) -> Mapping[str, PortType | Stream[Any]]:
        value = None if node is None else self.value(node)
        if value is None:
            return {}
        if isinstance(value, str):
            return {value: PortType()}
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: PortType() for name in value}
        if isinstance(value, dict) and all(isinstance(port, PortType | Stream) for port in value.values()):
            return value
        line = node.lineno if node else 0
        raise NotLiteral(
            "ports are a name, a list of names, or a map from name to Tensor(...), Json(), Stream(...)", line
        )

    def _name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return node.attr
        return self._aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""
