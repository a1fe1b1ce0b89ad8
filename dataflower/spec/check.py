"""Everything that can be said about a workflow without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from dataflower.spec.compatible import listed, mismatch
from dataflower.spec.expression import ExpressionError, compile_expression
from dataflower.spec.finding import Finding
from dataflower.spec.function import Kind, Port, PortType
from dataflower.spec.scopes import ScopeError, find_scopes, predecessors, source_port
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path
from dataflower.spec.workflow import ERROR_PORT, INPUTS, Edge, Fanout, Input, Merge, PortRef, Stage, Workflow

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(/[A-Za-z_][A-Za-z0-9_-]*)*")
_PORT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SINGLE_NAME = "letters, digits, _ and -, not starting with a digit"


def check(workflow: Workflow, vague: frozenset[str] = frozenset()) -> list[Finding]:
    """All findings, in no particular order.

    `vague` names stages (or `inputs`) that something was found about already: what would only follow from that is not
    said.
    """
    checker = _Checker(workflow, vague)
    findings = [
        *checker.names(),
        *checker.edges(),
        *checker.control(),
        *checker.switches(),
        *checker.batches(),
        *checker.limits(),
    ]
    cycles = list(checker.cycles())
    findings += cycles
    if not findings and not vague:
        findings += [_scope_finding(workflow, problem) for problem in find_scopes(workflow)[1]]
    elif not cycles:
        findings += _scope_findings_apart_from(workflow, findings, vague)
    return findings


def edge_path(stage: str, given: Input, index: int) -> Path:
    """Where an edge stands in the file."""
    edge = given.edges[index]
    path: Path = ("stages", stage, "inputs", given.name)
    if given.merge is not None:
        path = (*path, "merge", index)
    return path if edge.fanout is Fanout.ALL else (*path, edge.fanout.value)


@dataclass(slots=True)
class _Checker:
    workflow: Workflow
    vague: frozenset[str]

    def names(self) -> Iterator[Finding]:
        if not _NAME.fullmatch(self.workflow.name):
            yield Finding(("metadata", "name"), f"{self.workflow.name!r} is not a name", _SINGLE_NAME)
        if self.workflow.owner and not _NAME.fullmatch(self.workflow.owner):
            yield Finding(("metadata", "owner"), f"{self.workflow.owner!r} is not a name", _SINGLE_NAME)
        for stage in self.workflow.stages.values():
            path: Path = ("stages", stage.name)
            if stage.name == INPUTS:
                yield Finding(path, f"a stage can't be called {INPUTS!r}: it means the workflow's inputs", key=True)
            elif not _NAME.fullmatch(stage.name):
                yield Finding(path, f"{stage.name!r} is not a name", _SINGLE_NAME, True)
            for port in stage.outputs:
                if not _PORT.fullmatch(port.name):
                    yield Finding((*path, "outputs", port.name), f"{port.name!r} is not a name", key=True)
        for port in self.workflow.inputs:
            if not _NAME.fullmatch(port.name):
                yield Finding((INPUTS, port.name), f"{port.name!r} is not a name", _SINGLE_NAME, True)
            if port.stream and port.optional:
                yield Finding(
                    (INPUTS, port.name), f"stream input {port.name!r} can't have a default", "an empty stream will do"
                )
        for output in self.workflow.outputs:
            if not _NAME.fullmatch(output.name):
                yield Finding(("outputs", output.name), f"{output.name!r} is not a name", _SINGLE_NAME, True)

    # --- edges ----------------------------------------------------------------------------------------------

    def edges(self) -> Iterator[Finding]:
        for stage in self.workflow.stages.values():
            ports = {port.name: port for port in stage.input_ports}
            for given in stage.inputs:
                port = ports.get(given.name, Port(given.name))
                yield from self._merge(stage, given)
                for index, edge in enumerate(given.edges):
                    path = edge_path(stage.name, given, index)
                    missing = self._missing(edge.source, path)
                    if missing is not None:
                        yield from missing
                    elif not {stage.name, edge.source.stage} & self.vague:
                        yield from self._edge(stage, given, port, edge, path)
            if stage.name not in self.vague and not stage.is_switch:
                yield from self._required(stage)
        for output in self.workflow.outputs:
            path = ("outputs", output.name)
            missing = self._missing(
                output.edge.source, path if output.edge.fanout is Fanout.ALL else (*path, output.edge.fanout.value)
            )
            yield from missing or ()

    def _missing(self, source: PortRef, path: Path) -> list[Finding] | None:
        """None: the port is there (or nobody can tell)."""
        if source.stage == INPUTS:
            known = [port.name for port in self.workflow.inputs]
            what = "the workflow has no input"
        elif source.stage in self.workflow.stages:
            stage = self.workflow.stages[source.stage]
            known = [port.name for port in stage.outputs] + ([ERROR_PORT] if stage.catch else [])
            what = f"stage {source.stage!r} has no output"
            if source.port == ERROR_PORT and not stage.catch:
                return [Finding(path, f"stage {source.stage!r} has no `catch`, so there is no {source}")]
        else:
            names = [*self.workflow.stages, INPUTS]
            return [Finding(path, f"no stage {source.stage!r}", did_you_mean(source.stage, names))]
        if source.port in known:
            return None
        if source.stage in self.vague:
            return []
        return [Finding(path, f"{what} {source.port!r}", did_you_mean(source.port, known))]

    def _edge(self, stage: Stage, given: Input, port: Port, edge: Edge, path: Path) -> Iterator[Finding]:
        source = source_port(self.workflow, edge)
        target = PortRef(stage.name, port.name)
        item = PortType(Kind.JSON) if edge.source.port == ERROR_PORT and source.type == PortType() else source.type
        if edge.fanout is Fanout.ALL and given.merge is None:
            if source.stream and not port.stream:
                hint = f"use {{each: {edge.source}}} for a task per item, {{gather: {edge.source}}} for the list"
                yield Finding(path, f"{edge.source} is a stream, but {target} takes one value", hint)
                return
            if port.stream and not source.stream:
                yield Finding(
                    path, f"{target} takes a stream, but {edge.source} is one value", "gather the items of a fan-out"
                )
                return
        elif port.stream and edge.fanout is not Fanout.GATHER:
            what = "a merge" if given.merge is not None else f"`{edge.fanout.value}`"
            yield Finding(
                path,
                f"{what} hands over single values, but {target} takes a stream",
                f"drop {what}, or make it a value",
            )
            return
        if edge.fanout in (Fanout.EACH, Fanout.KEYED) and not source.stream:
            how = edge.fanout.value
            hint = f"use {edge.source} without {how}, or declare it as a stream"
            yield Finding(path, f"`{how}` takes the items of a stream, but {edge.source} is one value", hint)
            return
        if edge.fanout is Fanout.KEYED and item.kind not in (Kind.ANY, Kind.JSON):
            yield Finding(path, f"keyed needs items {{key, value}}, but {edge.source} gives {item}")
            return
        is_list = edge.fanout in (Fanout.GATHER, Fanout.KEYED) and not port.stream
        arriving = listed(item) if is_list else item
        if given.merge in (Merge.ALL, Merge.FIRST):
            arriving, is_list = listed(arriving), True
        if is_list and port.type.kind not in (Kind.ANY, Kind.JSON):
            yield Finding(
                path, f"{target} is {port.type}, but gets a list of {edge.source} ({item})", "its type is json or any"
            )
        elif reason := mismatch(arriving, port.type):
            yield Finding(path, f"{edge.source} is {arriving}, but {target} is {port.type}: {reason}")

    def _merge(self, stage: Stage, given: Input) -> Iterator[Finding]:
        path: Path = ("stages", stage.name, "inputs", given.name)
        if given.merge is None and len(given.edges) != 1:
            yield Finding(path, f"input {given.name!r} needs one edge, or a merge policy for its {len(given.edges)}")
        if given.merge is Merge.FIRST and given.first > len(given.edges):
            yield Finding((*path, "n"), f"first {given.first} of {len(given.edges)} edges can never come")
        for index, edge in enumerate(given.edges if given.merge is not None else ()):
            try:
                is_stream = edge.fanout is Fanout.ALL and source_port(self.workflow, edge).stream
            except ScopeError:
                continue
            if is_stream:
                hint = f"merge {{gather: {edge.source}}} instead"
                yield Finding(
                    edge_path(stage.name, given, index), f"{edge.source} is a stream: only values can be merged", hint
                )

    def _required(self, stage: Stage) -> Iterator[Finding]:
        given = {port.name for port in stage.inputs} | set(stage.params)
        for port in stage.input_ports:
            if not port.optional and port.name not in given:
                hint = f"add `{port.name}: stage.port` to its inputs"
                yield Finding(
                    ("stages", stage.name), f"stage {stage.name!r} lacks input {port.name!r} ({port.type})", hint, True
                )

    # --- control --------------------------------------------------------------------------------------------

    def control(self) -> Iterator[Finding]:
        stages = self.workflow.stages
        for stage in stages.values():
            for index, case in enumerate(stage.when):
                path: Path = (
                    ("stages", stage.name, "when") if len(stage.when) == 1 else ("stages", stage.name, "when", index)
                )
                switch = stages.get(case.stage)
                if switch is None:
                    names = [other.name for other in stages.values() if other.is_switch]
                    yield Finding(path, f"no stage {case.stage!r}", did_you_mean(case.stage, names))
                elif not switch.is_switch:
                    if case.stage not in self.vague:
                        yield Finding(path, f"stage {case.stage!r} is not a switch")
                elif case.case not in {own.name for own in switch.cases}:
                    hint = did_you_mean(case.case, [own.name for own in switch.cases])
                    yield Finding(path, f"switch {case.stage!r} has no case {case.case!r}", hint)
            yield from self._catches(stage)

    def _catches(self, stage: Stage) -> Iterator[Finding]:
        outputs = {port.name: port for port in stage.outputs}
        path: Path = ("stages", stage.name, "catch")
        if stage.catch and ERROR_PORT in outputs:
            yield Finding(
                path, f"output {ERROR_PORT!r} of {stage.name!r} is taken by `catch`", "rename the output", True
            )
        for index, catch in enumerate(stage.catch):
            if catch.goto is not None and catch.goto == stage.name:
                yield Finding((*path, index, "goto"), f"stage {stage.name!r} can't stand in for itself", "use retry")
            elif catch.goto is not None and catch.goto not in self.workflow.stages:
                hint = did_you_mean(catch.goto, self.workflow.stages)
                yield Finding((*path, index, "goto"), f"no stage {catch.goto!r}", hint)
            for name in catch.output or {} if stage.name not in self.vague else {}:
                if name not in outputs:
                    hint = did_you_mean(name, outputs)
                    yield Finding(
                        (*path, index, "output", name), f"stage {stage.name!r} has no output {name!r}", hint, True
                    )
                elif outputs[name].stream:
                    message = f"{stage.name}.{name} is a stream: a constant can't stand in for it"
                    yield Finding((*path, index, "output", name), message, "it ends where it is", True)

    def switches(self) -> Iterator[Finding]:
        for stage in self.workflow.stages.values():
            names = [given.name for given in stage.inputs]
            if stage.is_switch and stage.function:
                yield Finding(("stages", stage.name), f"stage {stage.name!r} is both a function and a switch", key=True)
            for case in stage.cases:
                path: Path = ("stages", stage.name, "switch", case.name)
                if not _PORT.fullmatch(case.name):
                    yield Finding(path, f"{case.name!r} is not a name for a case", key=True)
                if case.when is None:
                    continue
                try:
                    expression = compile_expression(case.when)
                except ExpressionError as error:
                    yield Finding(path, f"`{case.when}`: {error.message} (column {error.column})", "conditions are CEL")
                    continue
                for unknown in sorted(expression.variables - set(names)):
                    if stage.name not in self.vague:
                        hint = did_you_mean(unknown, names, "a condition sees the stage's inputs")
                        yield Finding(path, f"`{case.when}`: no input {unknown!r}", hint)
            defaults = [case.name for case in stage.cases if case.when is None]
            for name in defaults[1:]:
                yield Finding(("stages", stage.name, "switch", name), f"a second default besides {defaults[0]!r}")

    def batches(self) -> Iterator[Finding]:
        for stage in self.workflow.stages.values():
            batch = stage.batch
            if batch is None:
                continue
            path: Path = ("stages", stage.name)
            hint = "let the function take single tasks, or put a stage without batches before or behind it"
            for port in (*stage.input_ports, *stage.outputs):
                if port.stream and stage.name not in self.vague:
                    message = f"{stage.name}.{port.name} is a stream, and the function takes batches: neither goes"
                    yield Finding(path, f"{message} with the other", hint, True)
            if batch.cost is None:
                continue
            at: Path = (*path, "batch", "cost")
            try:
                expression = compile_expression(batch.cost)
            except ExpressionError as error:
                yield Finding(at, f"`{batch.cost}`: {error.message} (column {error.column})", "a cost is CEL")
                continue
            names = [given.name for given in stage.inputs]
            for unknown in sorted(expression.variables - set(names)):
                if stage.name not in self.vague:
                    hint = did_you_mean(unknown, names, "a cost sees the stage's inputs")
                    yield Finding(at, f"`{batch.cost}`: no input {unknown!r}", hint)

    def limits(self) -> Iterator[Finding]:
        if self.workflow.slo is not None:
            for name in ("e2e_ms", "ttft_ms", "itl_ms", "tpot_ms"):
                value = getattr(self.workflow.slo, name)
                if value is not None and value <= 0:
                    yield Finding(("slo", name), f"{name} must be more than 0")

    def cycles(self) -> Iterator[Finding]:
        graph = nx.DiGraph()
        for stage in self.workflow.stages.values():
            graph.add_edges_from((before, stage.name) for before in predecessors(self.workflow, stage))
        order = list(self.workflow.stages)
        for component in nx.strongly_connected_components(graph):
            first = min(component, key=order.index)
            if len(component) == 1 and not graph.has_edge(first, first):
                continue
            inside = graph.subgraph(component)
            back = list(inside.predecessors(first))
            ways = [nx.shortest_path(inside, first, before) for before in sorted(back, key=order.index)]
            way = min(ways, key=len)
            path, key = self._reads(first, way[-1])
            yield Finding(
                path, f"the stages wait for each other: {' -> '.join([*way, first])}", "a workflow has no cycles", key
            )

    def _reads(self, stage: str, source: str) -> tuple[Path, bool]:
        for given in self.workflow.stages[stage].inputs:
            for index, edge in enumerate(given.edges):
                if edge.source.stage == source:
                    return edge_path(stage, given, index), False
        return ("stages", stage), True


def _scope_finding(workflow: Workflow, problem: ScopeError) -> Finding:
    if not problem.stage:
        return Finding(("outputs", problem.input), problem.message, problem.hint)
    if problem.input:
        return Finding(("stages", problem.stage, "inputs", problem.input), problem.message, problem.hint)
    key = "when" if workflow.stages[problem.stage].when else ""
    path: Path = ("stages", problem.stage, key) if key else ("stages", problem.stage)
    return Finding(path, problem.message, problem.hint, not key)


def _scope_findings_apart_from(workflow: Workflow, others: list[Finding], vague: frozenset[str]) -> Iterator[Finding]:
    """Scopes of what is sound: not of an input, an output or a stage that has a finding, nor of what lies behind it."""
    stained = set(vague) | {str(other.path[1]) for other in others if other.path[0] == "stages" and len(other.path) > 1}
    stained_outputs = {other.path[1] for other in others if other.path[0] == "outputs" and len(other.path) > 1}
    grew = True
    while grew:
        behind = {s.name for s in workflow.stages.values() if stained & set(predecessors(workflow, s))}
        grew = not behind <= stained
        stained |= behind
    for problem in find_scopes(workflow)[1]:
        source = next((o.edge.source.stage for o in workflow.outputs if o.name == problem.input), "")
        if problem.stage in stained or (not problem.stage and (problem.input in stained_outputs or source in stained)):
            continue
        yield _scope_finding(workflow, problem)
