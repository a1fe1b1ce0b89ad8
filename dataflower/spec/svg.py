"""A workflow as an SVG document, from top to bottom, with a legend of the lines that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from dataflower.spec.layout import Place, Route, Size, lay_out
from dataflower.spec.picture import Line, Node, Picture, Shape, caption, picture_of
from dataflower.spec.workflow import Workflow

_MARGIN, _STACK = 24.0, 5.0
_LABEL, _SMALL = 7.8, 6.4
"""Widths of an average letter, on the wide side: which font there is, is not known."""
_INK, _BLUE, _GREEN, _AMBER = "#57606a", "#0969da", "#1a7f37", "#9a6700"
_COLORS = {Line.VALUE: _INK, Line.STREAM: _BLUE, Line.EACH: _BLUE, Line.GATHER: _GREEN, Line.CONTROL: _AMBER}
_WORDS = {
    Line.VALUE: "value",
    Line.STREAM: "stream, read while it is made",
    Line.EACH: "each: a task for every item (or key)",
    Line.GATHER: "gather: the items, in order",
    Line.CONTROL: "branch or fallback",
}
_STYLE = f"""
text {{ font: 13px ui-sans-serif, system-ui, -apple-system, "DejaVu Sans", sans-serif; fill: #1b1f24; text-anchor: middle }}
.name {{ font-weight: 600 }}
.note, .label, .key {{ font-size: 11px; fill: {_INK} }}
.key {{ text-anchor: start }}
.node {{ stroke: {_INK}; stroke-width: 1.2; fill: #f6f8fa }}
.input, .output {{ fill: #ddf4ff; stroke: {_BLUE} }}
.switch {{ fill: #fff8c5; stroke: {_AMBER} }}
.back {{ fill: #fff }}
.link {{ fill: none; stroke: {_INK}; stroke-width: 1.3 }}
.stream {{ stroke: {_BLUE}; stroke-width: 3 }}
.each {{ stroke: {_BLUE}; stroke-width: 3; stroke-dasharray: 9 4 }}
.gather {{ stroke: {_GREEN}; stroke-width: 2.4 }}
.control {{ stroke: {_AMBER}; stroke-width: 1.5; stroke-dasharray: 3 3 }}
""".strip()  # noqa: E501 - a style sheet


def svg(workflow: Workflow) -> str:
    """An SVG document. A node drawn as a stack runs many times; its last line says for each of what."""
    picture = picture_of(workflow)
    lines: dict[tuple[str, str, Line], list[str]] = {}
    for link in picture.links:
        lines.setdefault((link.source, link.target, link.line), []).append(link.label)
    labels = [[text for text in texts if text] for texts in lines.values()]
    edges = [(source, target, _label_size(texts)) for (source, target, _), texts in zip(lines, labels, strict=True)]
    layout = lay_out({node.key: _size(node) for node in picture.nodes}, edges)
    used = [line for line in Line if any(link.line is line for link in picture.links)]
    legend, below = _legend(used, layout.width, layout.height + 44)
    width = max(layout.width + 3 * _STACK, below.width) + 2 * _MARGIN
    height = layout.height + below.height + 2 * _MARGIN
    parts = [*_opening(picture, width, height), f'<g transform="translate({_MARGIN:.0f} {_MARGIN:.0f})">']
    diamonds = {node.key: layout.boxes[node.key] for node in picture.nodes if node.shape is Shape.SWITCH}
    for (source, target, line), route in zip(lines, layout.routes, strict=True):
        parts += _svg_route(route, line, (diamonds.get(source), diamonds.get(target)))
    for node in picture.nodes:
        parts += _svg_node(node, layout.boxes[node.key])
    for route, texts in zip(layout.routes, labels, strict=True):
        parts += _svg_label(route, texts)
    return "\n".join([*parts, *legend, "</g>", "</svg>"]) + "\n"


def _opening(picture: Picture, width: float, height: float) -> Iterator[str]:
    size = f'width="{width:.0f}" height="{height:.0f}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" {size} role="img">'
    yield f"<title>{escape(picture.name)}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "<defs>"
    for line, color in _COLORS.items():
        yield (
            f'<marker id="{line.value}-tip" viewBox="0 0 9 9" refX="8" refY="4.5" markerWidth="9" markerHeight="9" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L9 4.5L0 9z" fill="{color}"/></marker>'
        )
    yield "</defs>"
    yield f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>'


def _legend(used: list[Line], width: float, y: float) -> tuple[list[str], Size]:
    """Samples side by side, as many in a row as fit the picture, and their size; none if all lines are plain."""
    if not set(used) - {Line.VALUE}:
        return [], Size(0.0, 0.0)
    parts, x, widest, top = [], 0.0, 0.0, y
    for line in used:
        own = 41 + len(_WORDS[line]) * _SMALL
        if x and x + own > width:
            x, y = 0.0, y + 20
        parts.append(f'<path class="link {line.value}" d="M{x:.1f} {y:.1f}h34"{_tip(line)}/>')
        parts.append(f'<text class="key" x="{x + 41:.1f}" y="{y + 4:.1f}">{_WORDS[line]}</text>')
        widest = max(widest, x + own)
        x += own + 18
    return parts, Size(widest, y - top + 54)


def _size(node: Node) -> Size:
    if node.shape is Shape.SWITCH:
        return Size(len(node.label) * _LABEL + 72, 56)
    notes = _notes(node)
    width = max(38.0, len(node.label) * _LABEL, *(len(text) * _SMALL for text in notes))
    return Size(width + 26, 30.0 + 15 * len(notes))


def _notes(node: Node) -> list[str]:
    """The small lines below the name; in a diamond there is no room for them."""
    if node.shape is Shape.SWITCH:
        return []
    return [text for text in (node.note, caption(node.scope[-1]) if node.scope else "") if text]


def _label_size(texts: list[str]) -> Size | None:
    return Size(max(map(len, texts)) * _SMALL + 8, 14.0 * len(texts)) if texts else None


def _svg_node(node: Node, box: Place) -> Iterator[str]:
    kind = f"node {node.shape.value}"
    for depth in range(min(len(node.scope), 3), 0, -1):
        yield _outline(node, box, depth * _STACK, kind)
    yield _outline(node, box, 0.0, kind)
    texts = [("name", node.label), *(("note", text) for text in _notes(node))]
    y = box.y + box.height / 2 + 4.5 - 7.5 * (len(texts) - 1)
    for index, (style, text) in enumerate(texts):
        yield f'<text class="{style}" x="{box.middle:.1f}" y="{y + 15 * index:.1f}">{escape(text)}</text>'


def _outline(node: Node, box: Place, shift: float, kind: str) -> str:
    x, y = box.x + shift, box.y + shift
    if node.shape is Shape.SWITCH:
        middle, half = y + box.height / 2, box.width / 2
        corners = [(x, middle), (x + half, y), (x + box.width, middle), (x + half, y + box.height)]
        return f'<polygon class="{kind}" points="{" ".join(f"{cx:.1f},{cy:.1f}" for cx, cy in corners)}"/>'
    radius = box.height / 2 if node.shape in (Shape.INPUT, Shape.OUTPUT) else 6
    size = f'width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:.0f}"'
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def _svg_route(route: Route, line: Line, diamonds: tuple[Place | None, Place | None]) -> Iterator[str]:
    if not route.pieces:
        return
    pieces = list(route.pieces)
    for end, diamond in zip((0, -1), diamonds, strict=True):
        if diamond is not None:
            pieces[end] = _on_diamond(pieces[end], diamond)
    x, _, y = pieces[0]
    path = [f"M{x:.1f} {y:.1f}"]
    for next_x, top, bottom in pieces[1:]:
        bend = (y + top) / 2
        path.append(f"C{x:.1f} {bend:.1f} {next_x:.1f} {bend:.1f} {next_x:.1f} {top:.1f}")
        if bottom != top:
            path.append(f"V{bottom:.1f}")
        x, y = next_x, bottom
    yield f'<path class="link {line.value}" d="{"".join(path)}"{_tip(line)}/>'


def _on_diamond(end: tuple[float, float, float], box: Place) -> tuple[float, float, float]:
    """Where a line that ends on the box around a diamond meets the diamond."""
    x, y, _ = end
    inwards = abs(x - box.middle) / (box.width / 2) * box.height / 2
    y += inwards if y < box.y + box.height / 2 else -inwards
    return x, y, y


def _svg_label(route: Route, texts: list[str]) -> Iterator[str]:
    if route.label is None:
        return
    place = route.label
    size = f'width="{place.width:.1f}" height="{place.height:.1f}"'
    yield f'<rect class="back" x="{place.x:.1f}" y="{place.y:.1f}" {size}/>'
    for index, text in enumerate(texts):
        y = place.y + 11 + 14 * index
        yield f'<text class="label" x="{place.middle:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _tip(line: Line) -> str:
    return f' marker-end="url(#{line.value}-tip)"'
