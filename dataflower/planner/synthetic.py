"""An application as a workflow without code, for the simulator: its modules are stages that take batches.

Functions that take batches can't stream, so what fans out has a stage behind it that takes no time: `NAME-items`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataflower.errors import InvalidArgument
from dataflower.planner.application import Application
from dataflower.spec.function import Port
from dataflower.spec.scopes import ScopeError, scopes_of
from dataflower.spec.workflow import Batch, Credit, Edge, Fanout, Input, Merge, PortRef, Scaling, Stage, Workflow

ITEMS = "-items"
"""Ends the name of the stage that stands for a module's fan-out."""
SAME = 1e-3
"""Factors this close, relatively, are one."""


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A workflow and how many items the fan-out stages emit: stage -> port -> items for one task, on the average."""

    workflow: Workflow
    items: Mapping[str, Mapping[str, float]]


def workflow_of(application: Application, max_size: int = 1 << 16) -> Synthetic:
    """The workflow that asks of each module as many tasks for an invocation as its factor says, on the average.

    A module follows the parent with the most tasks; what it gets from others must lie on the same line of fan-outs.

    Raises:
        InvalidArgument: the parents of a module fan out independently of each other, or differently from one stage, or
            a first module has a factor.
    """
    factor = {module.name: module.factor for module in application.modules}
    fanned: dict[str, dict[str, float]] = {}
    inputs: dict[str, list[Input]] = {}
    origin: dict[str, str] = {}
    for name in application.order:
        parents = application.parents[name]
        if not parents:
            if abs(factor[name] - 1) > SAME:
                raise InvalidArgument(f"module {name!r} begins the application, so its factor must be 1")
            inputs[name], origin[name] = [], name
            continue
        main = max(parents, key=lambda p: factor[p])
        ratio = factor[name] / factor[main]
        if abs(ratio - 1) > SAME:
            fanned.setdefault(main, {})[name] = ratio
            inputs[name] = [Input("i0", (Edge(PortRef(main + ITEMS, _port(name)), Fanout.EACH),))]
            rest = [p for p in parents if p != main]
        else:
            alike = [p for p in parents if p == main or _fan(p, inputs) == _fan(main, inputs) != ""]
            if other := next((p for p in alike if abs(factor[p] / factor[main] - 1) > SAME), None):
                raise InvalidArgument(f"{main!r} and {other!r} get different items of one fan-out and meet in {name!r}")
            merge = Merge.ALL if len(alike) > 1 else None
            inputs[name] = [Input("i0", tuple(Edge(PortRef(p, "out")) for p in alike), merge)]
            rest = [p for p in parents if p not in alike]
        inputs[name] += [Input(f"i{n}", (Edge(PortRef(p, "out")),)) for n, p in enumerate(rest, 1)]
    stages = {name: _module(name, tuple(inputs[name]), max_size) for name in application.order}
    for name, ratios in fanned.items():
        stages[name + ITEMS] = _items(name, tuple(map(_port, ratios)))
    workflow = Workflow(application.name, stages)
    try:
        scopes_of(workflow)
    except ScopeError as error:
        raise InvalidArgument(f"application {application.name!r} can't be simulated: {error}") from error
    items = {name + ITEMS: {_port(child): ratio for child, ratio in ratios.items()} for name, ratios in fanned.items()}
    return Synthetic(workflow, items)


def _fan(name: str, inputs: Mapping[str, list[Input]]) -> str:
    """The fan-out that a module's tasks come from directly; empty if they come from none."""
    given = inputs[name]
    if given and given[0].edges[0].fanout is Fanout.EACH:
        return given[0].edges[0].source.stage
    return ""


def _port(module: str) -> str:
    return f"to_{module}".replace("-", "_").replace("/", "_")


def _module(name: str, inputs: tuple[Input, ...], max_size: int) -> Stage:
    return Stage(
        name,
        function=f"simulated:{name}",
        inputs=inputs,
        input_ports=tuple(Port(given.name) for given in inputs),
        outputs=(Port("out"),),
        batch=Batch(max_size, same_shape=False),
    )


def _items(name: str, ports: tuple[str, ...]) -> Stage:
    return Stage(
        name + ITEMS,
        function="simulated:items",
        inputs=(Input("given", (Edge(PortRef(name, "out")),)),),
        input_ports=(Port("given"),),
        outputs=tuple(Port(port, stream=True) for port in ports),
        scaling=Scaling(min_replicas=1, max_replicas=1, concurrency=1 << 20),
        credit=Credit(items=1 << 20, bytes=1 << 40),
    )
