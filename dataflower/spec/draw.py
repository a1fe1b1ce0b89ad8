"""A workflow as Mermaid text, for READMEs and wherever else Markdown is shown. `spec.svg` draws it itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dataflower.spec.picture import Line, Node, Shape, caption, picture_of
from dataflower.spec.workflow import Workflow

_MERMAID_SHAPES = {
    Shape.INPUT: ("([", "])"),
    Shape.STAGE: ("[", "]"),
    Shape.SWITCH: ("{", "}"),
    Shape.OUTPUT: ("([", "])"),
}
_MERMAID_LINES = {
    Line.VALUE: "-->",
    Line.STREAM: "==>",
    Line.EACH: "==>",
    Line.GATHER: "-->",
    Line.CONTROL: "-.->",
}


def mermaid(workflow: Workflow) -> str:
    """A Mermaid flowchart. Thick: items one by one; dashed: branches and fallbacks; boxes: fan-outs."""
    picture = picture_of(workflow)
    keys = {node.key: f"n{index}" for index, node in enumerate(picture.nodes)}
    lines = ["flowchart LR", *_mermaid_scope(picture.nodes, (), keys, "  ")]
    for link in picture.links:
        label = f"|{_mermaid_text(link.label)}|" if link.label else ""
        lines.append(f"  {keys[link.source]} {_MERMAID_LINES[link.line]}{label} {keys[link.target]}")
    return "\n".join(lines) + "\n"


def _mermaid_scope(
    nodes: tuple[Node, ...], scope: tuple[str, ...], keys: Mapping[str, str], indent: str
) -> Iterator[str]:
    for node in nodes:
        if node.scope == scope:
            left, right = _MERMAID_SHAPES[node.shape]
            yield f"{indent}{keys[node.key]}{left}{_mermaid_text(node.label)}{right}"
    depth = len(scope)
    inner = dict.fromkeys(
        node.scope[: depth + 1] for node in nodes if len(node.scope) > depth and node.scope[:depth] == scope
    )
    for own in inner:
        number = next(keys[node.key] for node in nodes if node.scope[: depth + 1] == own)
        yield f"{indent}subgraph s{depth}{number}[{_mermaid_text(caption(own[-1]))}]"
        yield from _mermaid_scope(nodes, own, keys, indent + "  ")
        yield f"{indent}end"


def _mermaid_text(text: str) -> str:
    return '"' + text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;") + '"'
