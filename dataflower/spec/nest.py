"""Nested workflows are put into the outer one: their stages become `outer/inner`, their ports become edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflower.spec.finding import Finding
from dataflower.spec.function import Port
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path
from dataflower.spec.workflow import INPUTS, CaseRef, Edge, Fanout, Input, Output, PortRef, Stage, Workflow


@dataclass(slots=True)
class Nested:
    """A stage with `workflow:`: the workflow, and what the outer file says about it."""

    workflow: Workflow
    inputs: dict[str, Input] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[CaseRef, ...] = ()


class NestError(Exception):
    """An edge into or out of a nested workflow that can't be written as one edge."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.finding = Finding((), message, hint)


def inline(outer: Workflow, nested: Mapping[str, Nested], order: tuple[str, ...]) -> tuple[Workflow, list[Finding]]:
    """Put the nested workflows into `outer`, whose `stages` are its plain ones. `order`: all stages as in the file."""
    return _Inliner(outer, nested).run(order)


class _Inliner:
    def __init__(self, outer: Workflow, nested: Mapping[str, Nested]) -> None:
        self.outer = outer
        self.nested = nested
        self.findings: list[Finding] = []
        self.hoisted: dict[str, Port] = {}

    def run(self, order: tuple[str, ...]) -> tuple[Workflow, list[Finding]]:
        for name, inner in self.nested.items():
            self._check_inputs(name, inner)
        stages: dict[str, Stage] = {}
        for name in order:
            if name in self.nested:
                stages.update((stage.name, stage) for stage in self._inner_stages(name))
            elif name in self.outer.stages:
                stages[name] = self._outer_stage(self.outer.stages[name])
        outputs = []
        for output in self.outer.outputs:
            edge = self._try(lambda output=output: self._resolve(output.edge), ("outputs", output.name))
            outputs.append(output if edge is None else Output(output.name, edge, output.type_))
        inputs = (*self.outer.inputs, *self.hoisted.values())
        return dataclasses.replace(self.outer, stages=stages, inputs=inputs, outputs=tuple(outputs)), self.findings

    def _check_inputs(self, name: str, inner: Nested) -> None:
        ports = {port.name: port for port in inner.workflow.inputs}
        for key, given in (("inputs", inner.inputs), ("params", inner.params)):
            for extra in given:
                if extra not in ports:
                    message = f"workflow {inner.workflow.name!r} has no input {extra!r}"
                    self.findings.append(
                        Finding(("stages", name, key, extra), message, did_you_mean(extra, ports), True)
                    )
        for port in ports.values():
            if port.name not in inner.inputs and port.name not in inner.params and not port.optional:
                message = f"stage {name!r} lacks input {port.name!r} ({port.type})"
                self.findings.append(
                    Finding(("stages", name), message, f"add `{port.name}: stage.port` to its inputs", True)
                )

    def _outer_stage(self, stage: Stage) -> Stage:
        inputs = []
        for given in stage.inputs:
            path: Path = ("stages", stage.name, "inputs", given.name)
            edges = [self._try(lambda edge=edge: self._resolve(edge), path) for edge in given.edges]
            if all(edge is not None for edge in edges):
                inputs.append(dataclasses.replace(given, edges=tuple(edge for edge in edges if edge is not None)))
        return dataclasses.replace(stage, inputs=tuple(inputs))

    def _inner_stages(self, name: str) -> Iterator[Stage]:
        inner = self.nested[name]
        for stage in inner.workflow.stages.values():
            path: Path = ("stages", f"{name}/{stage.name}", "inputs")
            inputs = []
            for given in stage.inputs:
                fed = self._try(lambda given=given: self._inner_input(name, given), (*path, given.name))
                if fed is not None:
                    inputs.append(fed)
            yield dataclasses.replace(
                stage,
                name=f"{name}/{stage.name}",
                inputs=tuple(inputs),
                when=(*inner.when, *(CaseRef(f"{name}/{case.stage}", case.case) for case in stage.when)),
                catch=tuple(
                    dataclasses.replace(catch, goto=catch.goto and f"{name}/{catch.goto}") for catch in stage.catch
                ),
            )

    def _inner_input(self, name: str, given: Input) -> Input:
        feeds = [self._inner_edges(name, edge) for edge in given.edges]
        if len(feeds) == 1 and feeds[0].merge is not None:
            if given.merge is not None:
                raise NestError(f"input {given.name!r} would merge a merge", "merge in a stage of its own")
            return dataclasses.replace(feeds[0], name=given.name)
        if any(feed.merge is not None for feed in feeds):
            raise NestError(f"input {given.name!r} would merge a merge", "merge in a stage of its own")
        return dataclasses.replace(given, edges=tuple(edge for feed in feeds for edge in feed.edges))

    def _inner_edges(self, name: str, edge: Edge) -> Input:
        """An edge inside a nested workflow, as the outer one sees it (several edges if the outer one merges)."""
        if edge.source.stage != INPUTS:
            return Input("", (Edge(PortRef(f"{name}/{edge.source.stage}", edge.source.port), edge.fanout),))
        feed = self._feed(name, edge.source.port)
        if edge.fanout is Fanout.ALL:
            return feed
        if feed.merge is not None:
            raise NestError(f"{edge.fanout.value} of a merged input of {name!r}", "merge in a stage of its own")
        return Input("", (_compose(feed.edges[0], edge.fanout),))

    def _feed(self, name: str, port: str) -> Input:
        """What comes in at an input of a nested workflow: edges of the outer one, or a constant made an input of it."""
        inner = self.nested[name]
        given = inner.inputs.get(port)
        if given is not None:
            return dataclasses.replace(given, edges=tuple(self._resolve(edge) for edge in given.edges))
        own = next(own for own in inner.workflow.inputs if own.name == port)
        hoisted = f"{name}/{port}"
        default = inner.params.get(port, own.default)
        self.hoisted[hoisted] = dataclasses.replace(own, name=hoisted, optional=True, default=default)
        return Input("", (Edge(PortRef(INPUTS, hoisted)),))

    def _resolve(self, edge: Edge, seen: frozenset[PortRef] = frozenset()) -> Edge:
        """An edge of the outer workflow whose source may be an output of a nested one."""
        inner = self.nested.get(edge.source.stage)
        if inner is None:
            return edge
        if edge.source in seen:
            raise NestError(f"{edge.source} leads back to itself through nested workflows")
        output = next((output for output in inner.workflow.outputs if output.name == edge.source.port), None)
        if output is None:
            names = [output.name for output in inner.workflow.outputs]
            message = f"workflow {inner.workflow.name!r} has no output {edge.source.port!r}"
            raise NestError(message, did_you_mean(edge.source.port, names))
        source = output.edge.source
        if source.stage != INPUTS:
            renamed = Edge(PortRef(f"{edge.source.stage}/{source.stage}", source.port), output.edge.fanout)
            return _compose(renamed, edge.fanout)
        given = inner.inputs.get(source.port)
        if given is not None and given.merge is not None:
            raise NestError(f"{edge.source} hands a merged input through", "merge in a stage of its own")
        if given is not None:
            base = self._resolve(given.edges[0], seen | {edge.source})
        else:
            base = self._feed(edge.source.stage, source.port).edges[0]
        return _compose(_compose(base, output.edge.fanout), edge.fanout)

    def _try(self, attempt: Any, path: Path) -> Any:
        try:
            return attempt()
        except NestError as error:
            self.findings.append(dataclasses.replace(error.finding, path=path))
            return None


def _compose(edge: Edge, then: Fanout) -> Edge:
    """`edge`, and what it brings read with `then`, as one edge."""
    if then is Fanout.ALL:
        return edge
    if edge.fanout is Fanout.ALL:
        return Edge(edge.source, then)
    message = f"{then.value} of ({edge.fanout.value} of {edge.source}), across the border of a nested workflow"
    raise NestError(message, "put a stage between the two")
