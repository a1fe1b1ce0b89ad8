"""A workflow as a picture: Mermaid text for READMEs, SVG for everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import networkx as nx

from dataflower.spec.picture import Line, Link, Node, Picture, Shape, picture_of
from dataflower.spec.workflow import Workflow

_MERMAID_SHAPES = {
    Shape.INPUT: ("([", "])"),
    Shape.STAGE: ("[", "]"),
    Shape.SWITCH: ("{", "}"),
    Shape.OUTPUT: ("([", "])"),
}
_MERMAID_LINES = {Line.VALUE: "-->", Line.STREAM: "==>", Line.CONTROL: "-.->"}


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
        yield f"{indent}subgraph s{depth}{number}[{_mermaid_text(_caption(own[-1]))}]"
        yield from _mermaid_scope(nodes, own, keys, indent + "  ")
        yield f"{indent}end"


def _caption(fanout: str) -> str:
    consumer, slash, keyed = fanout.rpartition("/")
    return f"for each key of {consumer}" if slash and keyed == "keyed" else f"for each item of {fanout}"


def _mermaid_text(text: str) -> str:
    return '"' + text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;") + '"'


# --- SVG ----------------------------------------------------------------------------------------------------

_HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _CHARACTER = 48, 96, 28, 24, 7.4
_STYLE = """
text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1b1f24; text-anchor: middle }
.note, .label { font-size: 11px; fill: #57606a }
.label { paint-order: stroke; stroke: #fff; stroke-width: 4px }
.node { stroke: #57606a; stroke-width: 1.2; fill: #f6f8fa }
.input, .output { fill: #ddf4ff; stroke: #0969da }
.switch { fill: #fff8c5; stroke: #9a6700 }
.link { fill: none; stroke: #57606a; stroke-width: 1.2; marker-end: url(#tip) }
.stream { stroke: #0969da; stroke-width: 3 }
.control { stroke: #9a6700; stroke-dasharray: 5 4 }
""".strip()


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float


def svg(workflow: Workflow) -> str:
    """An SVG document. A node drawn as a stack runs many times; the small print says for each of what."""
    picture = picture_of(workflow)
    boxes = _layout(picture)
    width = max((box.x + box.width for box in boxes.values()), default=0) + _MARGIN
    height = max((box.y for box in boxes.values()), default=0) + _HEIGHT + _MARGIN + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">',
        f"<title>{escape(picture.name)}</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    parts += [_svg_link(link, boxes) for link in picture.links]
    parts += [part for node in picture.nodes for part in _svg_node(node, boxes[node.key])]
    parts += [_svg_label(link, boxes) for link in picture.links if link.label]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _layout(picture: Picture) -> dict[str, _Box]:
    """Columns by longest path, rows by the mean of the predecessors' rows."""
    graph = nx.DiGraph()
    graph.add_nodes_from(node.key for node in picture.nodes)
    graph.add_edges_from((link.source, link.target) for link in picture.links)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    while not nx.is_directed_acyclic_graph(graph):  # a workflow under repair may still be drawn
        graph.remove_edges_from(nx.find_cycle(graph)[-1:])
    nodes = {node.key: node for node in picture.nodes}
    rows: dict[str, float] = {}
    boxes: dict[str, _Box] = {}
    x = float(_MARGIN)
    for layer in nx.topological_generations(graph):
        order = {key: index for index, key in enumerate(nodes)}

        def rank(key: str, order: Mapping[str, int] = order) -> tuple[float, int]:
            before = [rows[other] for other in graph.predecessors(key)]
            return (sum(before) / len(before) if before else 0.0, order[key])

        keys = sorted(layer, key=rank)
        width = max(_width(nodes[key]) for key in keys)
        for row, key in enumerate(keys):
            rows[key] = row
            own = _width(nodes[key])
            boxes[key] = _Box(x + (width - own) / 2, _MARGIN + row * (_HEIGHT + _GAP_Y), own)
        x += width + _GAP_X
    return boxes


def _width(node: Node) -> float:
    texts = (node.label, node.note, _caption(node.scope[-1]) if node.scope else "")
    return max(64.0, max(len(text) for text in texts) * _CHARACTER + 24)


def _svg_node(node: Node, box: _Box) -> Iterator[str]:
    radius = _HEIGHT / 2 if node.shape in (Shape.INPUT, Shape.OUTPUT) else 6
    kind = f"node {node.shape.value}"
    for depth in range(min(len(node.scope), 3), 0, -1):
        yield _rect(box.x + 4 * depth, box.y + 4 * depth, box.width, 6, kind)
    if node.shape is Shape.SWITCH:
        y, middle, right = box.y, box.y + _HEIGHT / 2, box.x + box.width
        points = [(box.x, middle), (box.x + 14, y), (right - 14, y), (right, middle), (right - 14, y + _HEIGHT)]
        points.append((box.x + 14, y + _HEIGHT))
        yield f'<polygon class="{kind}" points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in points)}"/>'
    else:
        yield _rect(box.x, box.y, box.width, radius, kind)
    center = box.x + box.width / 2
    yield f'<text x="{center:.1f}" y="{box.y + (20 if node.note else 28):.1f}">{escape(node.label)}</text>'
    if node.note:
        yield f'<text class="note" x="{center:.1f}" y="{box.y + 37:.1f}">{escape(node.note)}</text>'
    if node.scope:
        y = box.y + _HEIGHT + 15 + 4 * min(len(node.scope), 3)
        yield f'<text class="note" x="{center:.1f}" y="{y:.1f}">{escape(_caption(node.scope[-1]))}</text>'


def _rect(x: float, y: float, width: float, radius: float, kind: str) -> str:
    size = f'width="{width:.1f}" height="{_HEIGHT}" rx="{radius:.0f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def _ends(link: Link, boxes: Mapping[str, _Box]) -> tuple[float, float, float, float]:
    source, target = boxes[link.source], boxes[link.target]
    return source.x + source.width, source.y + _HEIGHT / 2, target.x - 2, target.y + _HEIGHT / 2


def _svg_link(link: Link, boxes: Mapping[str, _Box]) -> str:
    x1, y1, x2, y2 = _ends(link, boxes)
    bend = max(36.0, (x2 - x1) / 2)
    path = f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    return f'<path class="link {link.line.value}" d="{path}"/>'


def _svg_label(link: Link, boxes: Mapping[str, _Box]) -> str:
    x1, y1, x2, y2 = _ends(link, boxes)
    return f'<text class="label" x="{(x1 + x2) / 2:.1f}" y="{(y1 + y2) / 2 - 4:.1f}">{escape(link.label)}</text>'
