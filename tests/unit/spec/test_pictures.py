"""Workflows as pictures: nothing overlaps, every line reaches its boxes, and each kind of edge is told apart."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflower.spec.draw import mermaid
from dataflower.spec.layout import Layout, Place, Size, lay_out
from dataflower.spec.load import load
from dataflower.spec.svg import svg
from dataflower.spec.workflow import Workflow

YAML = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: picture}
inputs: {path: string}
stages:
  cut:
    function: "m:cut"
    inputs: {path: inputs.path}
    outputs: {frame: {type: any, stream: true}, size: int}
  look:
    function: "m:look"
    inputs: {frame: {each: cut.frame}, path: inputs.path}
    outputs: {seen: any, score: float}
  gate:
    inputs: {score: look.score}
    switch: {good: score > 0.5, bad: default}
  keep:
    function: "m:keep"
    when: gate.good
    inputs: {seen: look.seen}
    outputs: {kept: any}
  group:
    function: "m:group"
    inputs: {kept: {gather: keep.kept}}
    outputs: {all: any}
outputs: {all: group.all, frames: cut.frame}
"""
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def workflow() -> Workflow:
    return load(YAML, file="picture.yaml", read=lambda _: None, find_source=lambda _: None)


def classes(root: ET.Element, tag: str) -> list[str]:
    return [element.get("class", "") for element in root.iter(SVG + tag)]


def test_svg_has_a_shape_for_each_kind_of_node_and_line(workflow: Workflow) -> None:
    root = ET.fromstring(svg(workflow))
    assert classes(root, "polygon") == ["node switch", "node switch"]  # it runs many times: a stack
    lines = set(classes(root, "path"))
    assert {"link value", "link each", "link gather", "link stream", "link control"} <= lines
    shown = {element.text for element in root.iter(SVG + "text")}
    assert {"cut", "m:cut", "look", "for each item of cut", "gate", "good", "each frame", "gather kept"} <= shown


def test_the_legend_explains_the_lines_that_there_are(workflow: Workflow) -> None:
    root = ET.fromstring(svg(workflow))
    keys = [element.text for element in root.iter(SVG + "text") if element.get("class") == "key"]
    assert [str(key).split(":")[0].split(",")[0] for key in keys] == [
        "value", "stream", "each", "gather", "branch or fallback",
    ]  # fmt: skip


def test_names_can_not_break_the_document() -> None:
    text = "apiVersion: dataflower/v1\nkind: Workflow\nmetadata: {name: x}\ninputs: {a: string}\n"
    text += "stages:\n  s:\n    inputs: {a: inputs.a}\n    switch: {'yes': a == 'x', 'no': default}\n"
    text += "  t: {function: 'm:f', when: s.yes, inputs: {a: inputs.a}, outputs: {b: any}}\noutputs: {b: t.b}\n"
    workflow = load(text, file="x.yaml", read=lambda _: None, find_source=lambda _: None)
    assert ET.fromstring(svg(dataclasses.replace(workflow, name='<&"'))).findtext(SVG + "title") == '<&"'


def test_mermaid_draws_fan_outs_as_boxes_and_streams_thick(workflow: Workflow) -> None:
    text = mermaid(workflow)
    assert text.startswith("flowchart LR\n")
    assert 'subgraph s0n2["for each item of cut"]' in text
    assert re.search(r'n1 ==>\|"each frame"\| n2', text)
    assert re.search(r'n3 -.->\|"good"\| n4', text)
    assert 'n3{"gate"}' in text


def test_a_cycle_is_drawn_all_the_same() -> None:
    box = Size(40, 20)
    layout = lay_out({"a": box, "b": box}, [("a", "b", None), ("b", "a", Size(30, 10)), ("a", "a", None)])
    assert [len(route.pieces) for route in layout.routes] == [3, 3, 0]
    up = layout.routes[1].pieces
    assert up[0][1] > up[-1][1]


def test_nothing_is_drawn_of_nothing() -> None:
    assert lay_out({}, []) == Layout(0.0, 0.0, {}, ())


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Size], list[tuple[str, str, Size | None]]]:
    count = draw(st.integers(1, 12))
    side = st.integers(20, 160)
    sizes = {f"n{i}": Size(float(draw(side)), float(draw(side))) for i in range(count)}
    number = st.integers(0, count - 1)
    label = st.one_of(st.none(), st.builds(Size, st.just(60.0), st.just(14.0)))
    pairs = draw(st.lists(st.tuples(number, number, label), max_size=20))
    return sizes, [(f"n{a}", f"n{b}", label) for a, b, label in pairs]


@given(graphs())
def test_boxes_and_labels_stand_clear_and_lines_reach_their_boxes(
    graph: tuple[dict[str, Size], list[tuple[str, str, Size | None]]],
) -> None:
    sizes, edges = graph
    layout = lay_out(sizes, edges)
    places = [*layout.boxes.values(), *(route.label for route in layout.routes if route.label is not None)]
    for one, other in combinations(places, 2):
        assert apart(one, other)
    for place in places:
        assert -1e-6 <= place.x <= place.x + place.width <= layout.width + 1e-6
        assert -1e-6 <= place.y <= place.y + place.height <= layout.height + 1e-6
    for (source, target, label), route in zip(edges, layout.routes, strict=True):
        if source == target:
            continue
        assert (route.label is None) == (label is None)
        for (x, _, y), key in ((route.pieces[0], source), (route.pieces[-1], target)):
            box = layout.boxes[key]
            assert box.x <= x <= box.x + box.width
            assert min(abs(y - box.y), abs(y - box.y - box.height)) < 1e-6
        for x, top, bottom in route.pieces[1:-1]:
            straight = Place(x, min(top, bottom), 0.0, abs(bottom - top))
            assert all(apart(straight, box) for box in layout.boxes.values())


def apart(one: Place, other: Place) -> bool:
    slack = 1e-6
    return (
        one.x + one.width <= other.x + slack
        or other.x + other.width <= one.x + slack
        or one.y + one.height <= other.y + slack
        or other.y + other.height <= one.y + slack
    )
