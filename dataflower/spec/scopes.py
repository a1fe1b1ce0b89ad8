"""Which fan-outs enclose each stage (docs/semantics.md, "Scope and tag").

A scope is a tuple, outermost first. Its elements are names: a stage whose streams are fanned out, `inputs` for the
workflow's own stream inputs, or `<consumer>/keyed` for the keys that a consumer distinguishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dataflower.spec.function import Port
from dataflower.spec.workflow import ERROR_PORT, INPUTS, Edge, Fanout, Input, Stage, Workflow

Scope = tuple[str, ...]


class ScopeError(Exception):
    """A stage whose inputs can't be brought into one scope.

    `stage` is empty for a workflow output, whose name is then in `input`; `input` is empty if `when` or `goto` is
    to blame.
    """

    def __init__(self, stage: str, input: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.input = input
        self.message = message
        self.hint = hint


def scopes_of(workflow: Workflow) -> dict[str, Scope]:
    """Scope of every stage, in the order of the workflow.

    Raises:
        ScopeError: the first finding; `find_scopes` gives all of them.
    """
    scopes, problems = find_scopes(workflow)
    if problems:
        raise problems[0]
    return scopes


def find_scopes(workflow: Workflow) -> tuple[dict[str, Scope], tuple[ScopeError, ...]]:
    """Scopes and everything that is wrong with them; a stage in error gets its longest input's scope.

    Edges from stages or ports that don't exist are findings too. Stages on a cycle are left out.
    """
    order, problems = _order(workflow)
    scopes: dict[str, Scope] = {}
    for name in order:
        scopes[name], found = _stage_scope(workflow, scopes, workflow.stages[name])
        problems.extend(found)
    for name in order:
        problems.extend(_control_problems(workflow, scopes, workflow.stages[name]))
    problems.extend(_output_problems(workflow, scopes))
    return {name: scopes[name] for name in workflow.stages if name in scopes}, tuple(problems)


def edge_scope(workflow: Workflow, scopes: Mapping[str, Scope], edge: Edge, consumer: str = "") -> Scope:
    """The scope that the consumer of an edge sees; `consumer` is needed for a keyed edge only.

    Raises:
        ScopeError: no such port, each or keyed on a value port, gather outside any fan-out.
    """
    source = edge.source
    port = source_port(workflow, edge)
    own: Scope = () if source.stage == INPUTS else scopes[source.stage]
    if edge.fanout is Fanout.ALL:
        return own
    if edge.fanout is Fanout.GATHER:
        items = (*own, source.stage) if port.stream else own
        if not items:
            raise ScopeError(
                consumer,
                "",
                f"{source} is one value outside any fan-out: nothing to gather",
                f"use {source}",
            )
        return items[:-1]
    if not port.stream:
        raise ScopeError(
            consumer,
            "",
            f"{edge.fanout.value} needs a stream, but {source} is a value port",
            f"declare {source} as a stream, or use {source} without {edge.fanout.value}",
        )
    return (*own, source.stage if edge.fanout is Fanout.EACH else keyed_fanout(consumer))


def keyed_fanout(consumer: str) -> str:
    """Name of the fan-out that a stage with a keyed input makes for itself."""
    return f"{consumer}/keyed"


def source_port(workflow: Workflow, edge: Edge) -> Port:
    """The port that an edge reads.

    Raises:
        ScopeError: there is no such stage or port.
    """
    source = edge.source
    if source.stage == INPUTS:
        ports: Iterable[Port] = workflow.inputs
    elif source.stage in workflow.stages:
        stage = workflow.stages[source.stage]
        if source.port == ERROR_PORT and stage.catch:
            return next((p for p in stage.outputs if p.name == ERROR_PORT), Port(ERROR_PORT))
        ports = stage.outputs
    else:
        raise ScopeError("", "", f"no stage {source.stage!r}")
    for port in ports:
        if port.name == source.port:
            return port
    raise ScopeError("", "", f"{source.stage} has no port {source.port!r}")


def predecessors(workflow: Workflow, stage: Stage) -> tuple[str, ...]:
    """Stages that must have spoken before this one can run, each once: by edge, by `when`, by `goto`."""
    names = [edge.source.stage for port in stage.inputs for edge in port.edges]
    names += [case.stage for case in stage.when]
    names += [other.name for other in workflow.stages.values() if any(c.goto == stage.name for c in other.catch)]
    return tuple(dict.fromkeys(name for name in names if name in workflow.stages))


def _order(workflow: Workflow) -> tuple[list[str], list[ScopeError]]:
    """Stages so that each comes after its predecessors; those on a cycle, or behind one, are left out."""
    waiting = {name: set(predecessors(workflow, stage)) for name, stage in workflow.stages.items()}
    order: list[str] = []
    while ready := [name for name, missing in waiting.items() if not missing]:
        order.extend(ready)
        for name in ready:
            del waiting[name]
        for missing in waiting.values():
            missing.difference_update(ready)
    if not waiting:
        return order, []
    stuck = next(iter(waiting))
    return order, [ScopeError(stuck, "", f"stage {stuck!r} waits for itself, directly or through others")]


def _stage_scope(workflow: Workflow, scopes: Mapping[str, Scope], stage: Stage) -> tuple[Scope, list[ScopeError]]:
    seen: dict[str, Scope] = {}
    problems: list[ScopeError] = []
    keyed = [i.name for i in stage.inputs if any(e.fanout is Fanout.KEYED for e in i.edges)]
    if len(keyed) > 1:
        problems.append(
            ScopeError(stage.name, keyed[1], f"two keyed inputs, {keyed[0]!r} and {keyed[1]!r}: only one may be")
        )
    for port in stage.inputs:
        try:
            seen[port.name] = _input_scope(workflow, scopes, stage, port)
        except ScopeError as error:
            problems.append(ScopeError(stage.name, port.name, error.message, error.hint))
    longest = max(seen, key=lambda name: len(seen[name]), default=None)
    if longest is None:
        return (), problems
    scope = seen[longest]
    streams = {port.name for port in stage.input_ports if port.stream}
    for name, own in seen.items():
        if scope[: len(own)] != own:
            problems.append(
                ScopeError(
                    stage.name,
                    name,
                    f"inputs {longest!r} and {name!r} come from different fan-outs: {_show(scope)} and {_show(own)}",
                    "gather one of them first, or fan both out from one stage",
                )
            )
        elif name in streams and own != scope:
            problems.append(
                ScopeError(
                    stage.name,
                    name,
                    f"stream input {name!r} is read once, its stage runs once per item of {_show(scope[len(own) :])}",
                    "a stream can't be handed to many tasks: gather it into a value",
                )
            )
    return scope, problems


def _input_scope(workflow: Workflow, scopes: Mapping[str, Scope], stage: Stage, port: Input) -> Scope:
    found: Scope | None = None
    for edge in port.edges:
        own = edge_scope(workflow, scopes, edge, stage.name)
        if found is not None and own != found:
            first = port.edges[0].source
            raise ScopeError(
                stage.name,
                port.name,
                f"merged edges differ in scope: {first} is in {_show(found)}, {edge.source} in {_show(own)}",
            )
        found = own
    return found or ()


def _control_problems(workflow: Workflow, scopes: Mapping[str, Scope], stage: Stage) -> Iterable[ScopeError]:
    own = scopes[stage.name]
    for case in stage.when:
        other = scopes.get(case.stage)
        if other is not None and own[: len(other)] != other:
            yield ScopeError(
                stage.name,
                "",
                f"`when: {case}` chooses in {_show(other)}, but stage {stage.name!r} runs in {_show(own)}",
                f"take an input from the same fan-out as {case.stage!r}",
            )
    for catch in stage.catch:
        target = scopes.get(catch.goto) if catch.goto else None
        if target is not None and target[: len(own)] != own:
            yield ScopeError(
                catch.goto or "",
                "",
                f"stage {catch.goto!r} runs in {_show(target)}, but stands in for {stage.name!r} in {_show(own)}",
                f"let it read {stage.name}.{ERROR_PORT}",
            )


def _output_problems(workflow: Workflow, scopes: Mapping[str, Scope]) -> Iterable[ScopeError]:
    for output in workflow.outputs:
        source = output.edge.source.stage
        if source != INPUTS and source in workflow.stages and source not in scopes:
            continue
        try:
            scope = edge_scope(workflow, scopes, output.edge, "")
        except ScopeError as error:
            yield ScopeError("", output.name, error.message, error.hint)
            continue
        if scope:
            yield ScopeError(
                "",
                output.name,
                f"output {output.name!r} reads {output.edge.source} inside the fan-out {_show(scope)}",
                f"use {{gather: {output.edge.source}}}",
            )


def _show(scope: Scope) -> str:
    return " > ".join(scope) if scope else "no fan-out"
