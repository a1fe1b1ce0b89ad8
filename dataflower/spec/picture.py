"""What a drawing of a workflow shows, whatever it is drawn with."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dataflower.spec.scopes import ScopeError, find_scopes, source_port
from dataflower.spec.workflow import ERROR_PORT, INPUTS, Edge, Fanout, Merge, Workflow


class Shape(enum.Enum):
    """Kind of a node."""

    INPUT = "input"
    STAGE = "stage"
    SWITCH = "switch"
    OUTPUT = "output"


class Line(enum.Enum):
    """Kind of a link: how the consumer reads, or control (branches and fallbacks)."""

    VALUE = "value"
    STREAM = "stream"
    EACH = "each"
    GATHER = "gather"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Node:
    """`scope`: the fan-outs around it, outermost first. `note`: a second, smaller line."""

    key: str
    label: str
    shape: Shape
    scope: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """From node to node, by key."""

    source: str
    target: str
    label: str
    line: Line


@dataclass(frozen=True, slots=True)
class Picture:
    """Nodes and links, in the order of the file."""

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]


_LINES = {Fanout.EACH: Line.EACH, Fanout.KEYED: Line.EACH, Fanout.GATHER: Line.GATHER}


def picture_of(workflow: Workflow) -> Picture:
    """Inputs and outputs that are used, stages, edges with their fan-outs, branches and fallbacks."""
    scopes = find_scopes(workflow)[0]
    nodes = [Node(_input_key(port.name), port.name, Shape.INPUT, note=str(port.type)) for port in workflow.inputs]
    links: list[Link] = []
    for stage in workflow.stages.values():
        shape = Shape.SWITCH if stage.is_switch else Shape.STAGE
        nodes.append(Node(f"stage:{stage.name}", stage.name, shape, scopes.get(stage.name, ()), stage.function))
        for given in stage.inputs:
            policy = ""
            if given.merge is not None:
                policy = f"first {given.first}" if given.merge is Merge.FIRST else given.merge.value
            links += [_link(workflow, edge, f"stage:{stage.name}", policy) for edge in given.edges]
        links += [Link(f"stage:{c.stage}", f"stage:{stage.name}", c.case, Line.CONTROL) for c in stage.when]
        links += [
            Link(f"stage:{stage.name}", f"stage:{catch.goto}", f"on {', '.join(catch.errors)}", Line.CONTROL)
            for catch in stage.catch
            if catch.goto is not None
        ]
    for output in workflow.outputs:
        nodes.append(Node(f"output:{output.name}", output.name, Shape.OUTPUT))
        links.append(_link(workflow, output.edge, f"output:{output.name}", ""))
    return Picture(workflow.name, tuple(nodes), tuple(dict.fromkeys(links)))


def caption(fanout: str) -> str:
    """A fan-out in words."""
    consumer, slash, keyed = fanout.rpartition("/")
    return f"for each key of {consumer}" if slash and keyed == "keyed" else f"for each item of {fanout}"


def _link(workflow: Workflow, edge: Edge, target: str, policy: str) -> Link:
    try:
        port = source_port(workflow, edge)
    except ScopeError:
        is_stream = False
    else:
        is_stream = port.stream and edge.fanout is Fanout.ALL
    from_input = edge.source.stage == INPUTS
    words = [policy, "" if edge.fanout is Fanout.ALL else edge.fanout.value]
    words.append("" if from_input or edge.source.port == "out" else edge.source.port)
    line = _LINES.get(edge.fanout, Line.STREAM if is_stream else Line.VALUE)
    line = Line.CONTROL if edge.source.port == ERROR_PORT else line
    source = _input_key(edge.source.port) if from_input else f"stage:{edge.source.stage}"
    return Link(source, target, " ".join(word for word in words if word), line)


def _input_key(name: str) -> str:
    return f"input:{name}"
