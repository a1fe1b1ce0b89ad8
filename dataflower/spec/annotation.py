"""What a type annotation says about a port. Read as syntax, so that source and live object give the same."""

from __future__ import annotations

import ast

from dataflower.spec.context import PARAMETER
from dataflower.spec.function import Kind, PortType

_STREAMS = frozenset(
    {"Stream", "Iterator", "Iterable", "AsyncIterator", "AsyncIterable", "Generator", "AsyncGenerator"}
)
_KINDS = {"str": Kind.STRING, "int": Kind.INT, "float": Kind.FLOAT, "bool": Kind.BOOL, "bytes": Kind.BYTES}
_LISTS = frozenset({"list", "List", "Sequence"})
_TENSORS = frozenset({"ndarray", "NDArray", "Tensor"})


def parse_annotation(node: ast.expr | None) -> ast.expr | None:
    """The annotation itself: a quoted one is parsed, one that can't be is no annotation."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return parse_annotation(ast.parse(node.value, mode="eval").body)
        except SyntaxError:
            return None
    return node


def annotated_type(node: ast.expr | None) -> tuple[PortType, bool]:
    """The type, and whether it is a stream of it. Anything not understood is `any`."""
    if node is None:
        return PortType(), False
    if isinstance(node, ast.Subscript):
        name = _last_name(node.value)
        if name in _STREAMS:
            inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
            return annotated_type(parse_annotation(inner))[0], True
        return (PortType(Kind.TENSOR), False) if name in _TENSORS else (PortType(), False)
    name = _last_name(node)
    if name in _STREAMS:
        return PortType(), True
    if name in _TENSORS:
        return PortType(Kind.TENSOR), False
    return PortType(_KINDS.get(name, Kind.ANY)), False


def element_of(node: ast.expr | None) -> ast.expr | None:
    """`X` of `list[X]`: what one task gives to, or gets from, a function that takes batches. Anything else is `any`."""
    if isinstance(node, ast.Subscript) and _last_name(node.value) in _LISTS:
        return parse_annotation(node.slice)
    return None


def wants_context(name: str, annotation: ast.expr | None) -> bool:
    """Whether the engine fills this parameter with the `Context`, so that it is no input port."""
    if name == PARAMETER or annotation is None:
        return name == PARAMETER
    return "Context" in (_last_name(annotation), _last_name(element_of(annotation)))


def _last_name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
