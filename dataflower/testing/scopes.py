"""The scope of everything in a workflow, worked out straight from docs/semantics.md (a second opinion to `spec`)."""

from __future__ import annotations

from dataflower.spec.workflow import ERROR_PORT, INPUTS, Edge, Fanout, Input, PortRef, Stage, Workflow

Scope = tuple[str, ...]
"""Names of fan-outs, outermost first: `stage:NAME`, `keyed:CONSUMER` or `input:PORT`."""


class Scopes:
    """Scopes of a valid workflow.

    `feeding`: stages that something else reads or waits for; the others are sinks. `thrower`: handler stage -> the
    stage whose `catch` goes to it.
    """

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self._input_streams = {port.name: port.stream for port in workflow.inputs}
        stages = workflow.stages.values()
        self.thrower = {catch.goto: stage.name for stage in stages for catch in stage.catch if catch.goto}
        self.of_stage: dict[str, Scope] = {}
        for name in workflow.stages:
            self._stage(name)
        self.feeding = {edge.source.stage for stage in stages for i in stage.inputs for edge in i.edges}
        self.feeding |= {output.edge.source.stage for output in workflow.outputs}
        self.feeding |= {ref.stage for stage in stages for ref in stage.when} | set(self.thrower.values())

    def is_stream(self, ref: PortRef) -> bool:
        """Whether the port carries a sequence of items."""
        if ref.stage == INPUTS:
            return self._input_streams[ref.port]
        if ref.port == ERROR_PORT:
            return False
        return next(port.stream for port in self._workflow.stages[ref.stage].outputs if port.name == ref.port)

    def takes_stream(self, stage: Stage, input_: Input) -> bool:
        """Whether the input is read as an iterator."""
        return any(port.name == input_.name and port.stream for port in stage.input_ports)

    def of_port(self, ref: PortRef) -> Scope:
        """Scope of the values of a port, or of the items of a stream port."""
        if ref.stage == INPUTS:
            return ("input:",) if self.is_stream(ref) else ()
        scope = self._stage(ref.stage)
        return (*scope, f"stage:{ref.stage}") if self.is_stream(ref) else scope

    def of_edge(self, edge: Edge, consumer: str) -> Scope:
        """Scope that a consumer sees through an edge."""
        scope = self.of_port(edge.source)
        match edge.fanout:
            case Fanout.ALL:
                return scope[:-1] if self.is_stream(edge.source) else scope
            case Fanout.EACH:
                return scope
            case Fanout.KEYED:
                return (*scope[:-1], f"keyed:{consumer}")
            case Fanout.GATHER:
                return scope[:-1]

    def _stage(self, name: str) -> Scope:
        if name not in self.of_stage:
            stage = self._workflow.stages[name]
            seen = [self.of_edge(edge, name) for i in stage.inputs for edge in i.edges]
            self.of_stage[name] = max(seen, key=len, default=())
        return self.of_stage[name]
