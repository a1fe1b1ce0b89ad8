"""Hypothesis strategies for valid workflows with behaviours for their functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hypothesis import strategies as st

from dataflower.spec.function import Port
from dataflower.spec.workflow import (
    ERROR_PORT,
    INPUTS,
    Batch,
    Case,
    CaseRef,
    Catch,
    Credit,
    Edge,
    Fanout,
    Input,
    Merge,
    Output,
    PortRef,
    Retry,
    Scaling,
    Stage,
    Workflow,
)
from dataflower.testing.behaviour import Behaviour, FakeTensor, Fault, Shape
from dataflower.testing.scopes import Scope

KINDS = ("ValueError", "OSError")
"""Classes of the exceptions that generated functions raise."""


@dataclass(frozen=True, slots=True)
class Features:
    """What generated workflows may contain. `retry_all`: every stage forgives every failure many times."""

    stages: int = 8
    faults: bool = True
    merges: bool = True
    partial_reads: bool = True
    retries: bool = True
    retry_all: bool = False
    tight_credit: bool = False
    hangs: bool = False
    batches: bool = True
    depth: int = 3


@dataclass(frozen=True, slots=True, repr=False)
class Scenario:
    """A workflow, what its functions do, and what the caller sends (lists for stream inputs)."""

    workflow: Workflow
    behaviours: Mapping[str, Behaviour]
    inputs: Mapping[str, Any]

    def __repr__(self) -> str:
        """Only what differs from the defaults, a line per stage: a failing example must be readable."""
        lines = [f"inputs {dict(self.inputs)}"]
        for stage in self.workflow.stages.values():
            lines.append(f"{stage.name}({', '.join(map(_show_input, stage.inputs))}): {_show_stage(stage)}")
            if stage.name in self.behaviours:
                lines.append(f"    {_show_fields(self.behaviours[stage.name], Behaviour())}")
        lines.append("outputs " + ", ".join(f"{o.name}={_show_edge(o.edge)}" for o in self.workflow.outputs))
        return "\n".join(["Scenario(", *lines, ")"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The hook of Hypothesis' printer, which would go into the fields otherwise."""
        del cycle
        for number, line in enumerate(repr(self).splitlines()):
            if number:
                printer.break_()
            printer.text(line)


def _show_edge(edge: Edge) -> str:
    return str(edge.source) if edge.fanout is Fanout.ALL else f"{edge.fanout.value} {edge.source}"


def _show_input(item: Input) -> str:
    edges = " | ".join(map(_show_edge, item.edges))
    policy = "" if item.merge is None else f"{item.merge.value} {item.first} of "
    return f"{item.name}={policy}{edges}"


def _show_stage(stage: Stage) -> str:
    ports = [port.name + "*" * port.stream for port in stage.outputs]
    reads = [port.name for port in stage.input_ports if port.stream]
    rest = replace(stage, name="", function="", inputs=(), outputs=(), input_ports=())
    return f"-> {', '.join(ports)} {f'iterates {reads} ' * bool(reads)}{_show_fields(rest, Stage(''))}"


def _show_fields(value: Any, default: Any) -> str:
    changed = {
        f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != getattr(default, f.name)
    }
    return ", ".join(f"{name}={item}" for name, item in changed.items())


@dataclass(frozen=True, slots=True)
class _Source:
    """An edge that a new stage may read. `lists`: it gives a list; `reads`: as a stream, an iterator."""

    edge: Edge
    scope: Scope
    shape: Shape | None = Shape.INT
    iterates: bool = False
    lists: bool = False


class _Builder:
    """Adds stages one by one, each reading what is there already, so that the result has no cycle."""

    def __init__(self, draw: st.DrawFn, features: Features) -> None:
        self.draw = draw
        self.features = features
        self.stages: dict[str, Stage] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.scopes: dict[str, Scope] = {}
        self.sources: list[_Source] = []
        self.races = 0

    def chance(self, percent: int) -> bool:
        """True in about so many cases of a hundred; shrinks to False."""
        return self.draw(st.integers(0, 99)) >= 100 - percent

    def pick(self, options: Any) -> Any:
        """One of them; shrinks to the first."""
        return self.draw(st.sampled_from(options))

    def offer(self, stage: str, port: Port, scope: Scope, shape: Shape) -> None:
        """Let later stages read a port in every way that its kind and scope allow."""
        ref = PortRef(stage, port.name)
        if not port.stream:
            self.sources.append(_Source(Edge(ref), scope, shape))
            if scope:
                for iterates in (False, True):
                    self.sources.append(_Source(Edge(ref, Fanout.GATHER), scope[:-1], None, iterates, True))
            return
        item = (*scope, f"stage:{stage}" if stage != INPUTS else "input:")
        self.sources.append(_Source(Edge(ref, Fanout.EACH), item, shape))
        self.sources.append(_Source(Edge(ref), scope, shape, iterates=True))
        self.sources.append(_Source(Edge(ref, Fanout.GATHER), scope, None, False, True))
        self.sources.append(_Source(Edge(ref, Fanout.GATHER), scope, None, True, True))
        if shape is Shape.KEYED:
            self.sources.append(_Source(Edge(ref, Fanout.KEYED), (*scope, "keyed:"), None, False, True))

    def inputs(self) -> tuple[tuple[Port, ...], dict[str, Any]]:
        """The workflow's own inputs: a value, and up to two streams, which may differ in length."""
        x: Any = self.draw(st.integers(0, 5))
        tensor = self.chance(20)
        ports, values = [Port("x")], {"x": [x, FakeTensor(x + 1)] if tensor else x}
        for name in self.pick(((), (), ("s",), ("s", "t"))):
            ports.append(Port(name, stream=True))
            keyed = self.chance(30)
            items = self.draw(st.lists(st.integers(0, 9), max_size=4))
            shape = Shape.KEYED if keyed else Shape.TENSOR if tensor else Shape.INT
            values[name] = [
                {"key": i % 2, "value": i} if keyed else [i, FakeTensor(i + 1)] if tensor else i for i in items
            ]
            self.offer(INPUTS, ports[-1], (), shape)
        self.offer(INPUTS, ports[0], (), Shape.TENSOR if tensor else Shape.INT)
        return tuple(ports), values

    def add_stage(self, name: str) -> None:
        """A function or a switch that reads 0 to 3 of the ports so far."""
        keyed_name = f"keyed:{name}"
        inputs, ports, scope = self.read_inputs(keyed_name)
        when = self.choose_when(scope)
        single = [(i, p) for i, p in zip(inputs, ports, strict=True) if not p[0].stream]
        if single and len(single) == len(inputs) and self.chance(15):
            self.add_switch(name, scope, inputs, ports, when)
        else:
            self.add_function(name, scope, inputs, ports, when)

    def read_inputs(self, keyed_name: str) -> tuple[list[Input], list[tuple[Port, _Source]], Scope]:
        """Inputs whose scopes agree. With tight credit one is iterated over at most: two may block their producer."""
        tight = self.features.tight_credit
        if self.chance(8):
            return [], [], ()
        usable = [s for s in self.sources if len(s.scope) <= self.features.depth]
        recent = usable[-6:]
        fanned = [s for s in usable if s.scope]
        deep = [s for s in fanned if len(s.scope) > 1]
        if deep and self.chance(40):
            primary = self.pick(deep)
        else:
            primary = self.pick(fanned if fanned and self.chance(45) else recent if self.chance(60) else usable)
        scope = tuple(keyed_name if f == "keyed:" else f for f in primary.scope)
        chosen = [primary]
        for _ in range(self.pick((0, 0, 1, 1, 2))):
            fits = [
                s
                for s in usable
                if scope[: len(s.scope)] == s.scope
                and (not s.iterates or (s.scope == scope and not (tight and any(c.iterates for c in chosen))))
            ]
            if fits:
                chosen.append(self.pick(fits))
        inputs, ports = [], []
        for number, source in enumerate(chosen):
            item = Input(f"i{number}", (source.edge,))
            merged = source
            same = [
                s
                for s in usable
                if s.scope == source.scope and not s.iterates and not s.lists and s.edge != source.edge
            ]
            if self.features.merges and same and not source.iterates and not source.lists and self.chance(35):
                item, merged = self.merge(item, source, same)
            inputs.append(item)
            ports.append((Port(item.name, stream=source.iterates), merged))
        return inputs, ports, scope

    def merge(self, item: Input, source: _Source, same: list[_Source]) -> tuple[Input, _Source]:
        """Feed an input by up to three edges."""
        others = self.draw(st.lists(st.sampled_from(same), min_size=1, max_size=2, unique=True))
        policy = self.pick((Merge.ALL, Merge.ANY, Merge.FIRST))
        if policy is not Merge.ALL:
            if self.races == 2 or len(source.scope) > 1:
                policy = Merge.ALL
            else:
                self.races += 1
        edges = (source.edge, *(other.edge for other in others))
        first = self.pick(range(1, len(edges) + 1)) if policy is Merge.FIRST else 1
        mixed = any(other.shape is not source.shape for other in others)
        shape = None if policy is not Merge.ANY or mixed else source.shape
        return Input(item.name, edges, policy, first), replace(source, shape=shape, lists=policy is not Merge.ANY)

    def choose_when(self, scope: Scope) -> tuple[CaseRef, ...]:
        """Sometimes a case of a switch that encloses the scope."""
        switches = [
            s for s in self.stages.values() if s.is_switch and scope[: len(self.scopes[s.name])] == self.scopes[s.name]
        ]
        if not switches or not self.chance(60):
            return ()
        switch = self.pick(switches)
        return (CaseRef(switch.name, self.pick([case.name for case in switch.cases])),)

    def add_switch(
        self, name: str, scope: Scope, inputs: list[Input], ports: list[tuple[Port, _Source]], when: tuple[CaseRef, ...]
    ) -> None:
        """A switch whose expressions suit the shapes of its inputs."""
        port, source = ports[0]
        term = f"size({port.name})" if source.lists else f"{port.name} % 5" if source.shape is Shape.INT else "1"
        if source.shape in (Shape.TENSOR, Shape.FORWARD) and not source.lists:
            term = f"{port.name}[0] % 5"
        cases = [Case("low", f"{term} < {self.pick((2, 1, 3))}"), Case("even", f"({term}) % 2 == 0")]
        if self.chance(60):
            cases.append(Case("rest", None))
        if self.features.faults and self.chance(5):
            cases.insert(0, Case("broken", f"1 / (({term}) - ({term})) == 1"))
        self.stages[name] = Stage(
            name, cases=tuple(cases), inputs=tuple(inputs), input_ports=tuple(p for p, _ in ports), when=when
        )
        self.scopes[name] = scope

    def add_function(
        self, name: str, scope: Scope, inputs: list[Input], ports: list[tuple[Port, _Source]], when: tuple[CaseRef, ...]
    ) -> None:
        """A function with 1 to 3 output ports, and now and then a handler stage for its failures."""
        outputs, shapes = self.outputs()
        input_ports = [port for port, _ in ports]
        if self.chance(10):
            input_ports.append(Port("spare", optional=True, default=7))
        faults, retry, catches, timeout_s = self.trouble(outputs)
        handler = f"{name}h" if self.features.faults and faults and not catches and self.chance(40) else None
        if handler:
            catches = (Catch(goto=handler),)
        streams = any(port.stream for port in (*input_ports, *outputs))
        self.stages[name] = Stage(
            name,
            function=f"functions:{name}",
            batch=None if streams or timeout_s is not None else self.batch(),
            inputs=tuple(inputs),
            input_ports=tuple(input_ports),
            outputs=tuple(outputs),
            when=when,
            retry=retry,
            catch=catches,
            timeout_s=timeout_s,
            scaling=Scaling(max_replicas=self.pick((None, 1, 2)), concurrency=self.pick((1, 1, 2))),
            credit=Credit(items=self.pick((1, 2, 3))) if self.features.tight_credit else Credit(items=1000),
        )
        self.scopes[name] = scope
        self.behaviours[name] = Behaviour(
            shapes=shapes,
            counts=tuple(self.draw(st.lists(st.sampled_from((1, 2, 3, 0)), min_size=1, max_size=2))),
            reads=self.pick((1, 2)) if self.features.partial_reads and self.chance(10) else None,
            per_item=self.chance(70),
            absent={p.name: self.pick((2, 3, 1)) for p in outputs if self.chance(15)},
            faults=faults,
        )
        for port in outputs:
            self.offer(name, port, scope, shapes[port.name])
        if handler:
            self.sources.append(_Source(Edge(PortRef(name, ERROR_PORT)), scope, None))
            error = self.sources.pop()
            self.add_function(handler, scope, [Input("e", (error.edge,))], [(Port("e"), error)], ())

    def batch(self) -> Batch | None:
        """How the tasks of a new function run together, if they do. A hanging task would hold up the others."""
        if not self.features.batches or not self.chance(50):
            return None
        cost = self.pick((None, None, "2"))
        return Batch(
            self.pick((2, 3, 1)),
            self.pick((0.0, 0.0, 5.0)),
            cost,
            None if cost is None else self.pick((4.0, 1.0)),
            self.pick((True, False)),
        )

    def outputs(self) -> tuple[list[Port], dict[str, Shape]]:
        """Ports of a new function: streams or values or both."""
        ports, shapes = [], {}
        for number in range(self.pick((1, 1, 2, 3))):
            port = Port(f"p{number}", stream=self.chance(45))
            ports.append(port)
            shapes[port.name] = self.pick(
                (Shape.INT, Shape.INT, Shape.TENSOR, Shape.FORWARD) + ((Shape.KEYED,) if port.stream else ())
            )
        return ports, shapes

    def trouble(self, outputs: list[Port]) -> tuple[dict[int, Fault], Retry | None, tuple[Catch, ...], float | None]:
        """Failures of a new function and what is done about them."""
        if self.features.retry_all:
            return {}, Retry(max_attempts=50, interval_s=self.pick((0.0, 0.5))), (), None
        if not self.features.faults or not self.chance(30):
            return {}, None, (), None
        kind = "" if self.features.hangs and self.chance(30) else self.pick(KINDS)
        fault = Fault(kind, after=self.pick((0, 1, 2)), one_in=self.pick((1, 1, 2)))
        faults = dict.fromkeys(range(1, self.pick((1, 2, 9)) + 1), fault)
        retry = None
        if self.features.retries and self.chance(60):
            errors = self.pick((("*",), ("ValueError", "Timeout")))
            retry = Retry(errors, max_attempts=self.pick((2, 3)), interval_s=self.pick((0.0, 0.5)))
        catches: tuple[Catch, ...] = ()
        if self.chance(40):
            named = self.draw(st.lists(st.sampled_from([p.name for p in outputs]), unique=True))
            values = [p.name for p in outputs if not p.stream and p.name in named]
            catches = (Catch(self.pick((("*",), KINDS[:1])), output=dict.fromkeys(values, 99)),)
        return faults, retry, catches, 5.0 if not kind else None

    def results(self) -> tuple[Output, ...]:
        """One to four outputs, read as at scope ()."""
        readable = [s for s in self.sources if s.scope == () and s.edge.fanout is not Fanout.KEYED]
        inner = [s for s in readable if s.edge.source.stage != INPUTS] or readable
        edges = self.draw(st.lists(st.sampled_from(inner), min_size=1, max_size=4, unique_by=lambda s: s.edge))
        return tuple(Output(f"o{number}", source.edge) for number, source in enumerate(edges))


@st.composite
def scenarios(draw: st.DrawFn, features: Features = Features()) -> Scenario:
    """A random valid workflow with behaviours and inputs."""
    builder = _Builder(draw, features)
    ports, values = builder.inputs()
    for number in range(draw(st.integers(1, features.stages))):
        builder.add_stage(f"s{number}")
    outputs = builder.results()
    order = list(builder.stages.items())
    workflow = Workflow("w", dict(reversed(order) if draw(st.booleans()) else order), ports, outputs)
    return Scenario(workflow, builder.behaviours, values)
