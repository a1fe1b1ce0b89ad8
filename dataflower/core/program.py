"""A workflow made ready to run: names turned into numbers, and for every port the list of those who read it.

Compiled once when a workflow is applied, so that the way of a token needs no look-up by name.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from dataflower.errors import InvalidArgument
from dataflower.spec.expression import Expression, compile_expression
from dataflower.spec.function import Port
from dataflower.spec.scopes import edge_scope, scopes_of
from dataflower.spec.workflow import ERROR_PORT, INPUTS, Edge, Fanout, Input, Merge, Stage, Workflow

CALLER = 0
"""Index of the pseudo-stage whose ports are the workflow's inputs: the caller is its function."""
OUTPUT = -1
"""Stage index of a consumer that is a workflow output."""

Element = int
"""A fan-out: the index of the stage whose streams fan out, or `keyed_element(stage)`."""


def keyed_element(stage: int) -> Element:
    """The fan-out that belongs to a stage which groups its input by key."""
    return -stage - 1


def case_port(case: str) -> str:
    """Pseudo-port of a switch that carries a token where the case was taken, absence elsewhere."""
    return f"?{case}"


def goto_port(stage: str) -> str:
    """Pseudo-port of a stage with `catch` that carries a token where the clause `goto: stage` was taken."""
    return f"!{stage}"


class Mode(enum.Enum):
    """How a consumer takes the tokens that reach it."""

    VALUE = enum.auto()
    STREAM = enum.auto()
    GATHER = enum.auto()
    KEYED = enum.auto()


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """One reader of a port: edge number `edge` of input number `input` of a stage (or of a workflow output).

    `depth`: length of the tag under which the input sees the token. `broadcast`: the stage lies deeper than that.
    `ordered`: a gather that is read as a stream: items go on in order as they come, not as one list.
    """

    stage: int
    input: int
    edge: int
    mode: Mode
    depth: int
    broadcast: bool = False
    ordered: bool = False


@dataclass(slots=True, eq=False)
class InputProgram:
    """An input of a stage, or one of its controls (`when`, `goto`: nameless, they carry no data)."""

    name: str
    edges: int
    merge: Merge | None = None
    first: int = 1
    stream: bool = False
    depth: int = 0

    @property
    def is_control(self) -> bool:
        """Whether it only says if the stage runs."""
        return not self.name


@dataclass(frozen=True, slots=True, eq=False)
class Follower:
    """A stage all of whose inputs are value outputs of one other. `ports`: (input, output) pairs.

    `is_sole`: nobody else reads any output of that other.
    """

    stage: int
    ports: tuple[tuple[str, str], ...]
    is_sole: bool


@dataclass(slots=True, eq=False)
class StageProgram:
    """A stage with numbers for names."""

    index: int
    name: str
    stage: Stage
    elements: tuple[Element, ...]
    """The fan-outs of its scope, outermost first; its depth is their number."""
    inputs: list[InputProgram] = field(default_factory=list)
    values: dict[str, list[Consumer]] = field(default_factory=dict)
    """Value ports (real and pseudo) and who reads them."""
    streams: dict[str, list[Consumer]] = field(default_factory=dict)
    cases: tuple[tuple[str, Expression | None], ...] = ()
    edges: int = 0
    """How many edges feed it: each speaks exactly once for each task, with a token or with absence."""
    broadcast_depth: int | None = None
    """Shallowest depth at which it takes a broadcast input; None if it takes none."""
    broadcasts_at: dict[int, int] = field(default_factory=dict)
    """How many broadcast edges it has, by the depth at which they speak."""
    data_inputs: tuple[tuple[int, str, bool], ...] = ()
    """(number, name, streams) of the inputs that a task is given."""
    is_sink: bool = False
    follower: Follower | None = None
    """A stage that can be given its inputs by this stage's container (see `core.relay`)."""

    @property
    def depth(self) -> int:
        """Length of its tasks' tags."""
        return len(self.elements)


@dataclass(frozen=True, slots=True, eq=False)
class OutputProgram:
    """A workflow output; `stream`: its items are handed out one by one."""

    name: str
    stream: bool


@dataclass(slots=True, eq=False)
class Program:
    """A compiled workflow. `stages[CALLER]` stands for the caller."""

    workflow: Workflow
    stages: list[StageProgram]
    outputs: list[OutputProgram]
    gathers: dict[Element, list[Consumer]]
    """For each fan-out, the gathers that put it together again."""
    broadcasts: dict[Element, list[StageProgram]]
    """For each fan-out, the stages inside it that take a broadcast input from outside it."""
    ordered_roots: dict[Consumer, Element]
    """For each ordered gather, the fan-out that it puts together."""
    ordered: frozenset[Element]
    """Fan-outs with an ordered gather: their items stay counted until that has handed them on."""
    sources: list[StageProgram]
    """Stages without inputs: they fire when the invocation arrives."""
    has_sinks: bool


def compile_program(workflow: Workflow) -> Program:
    """Compile a workflow that `spec.load` or `spec.builder` has checked.

    Raises InvalidArgument for what only the engine refuses (merging lists or streams).
    """
    return _Compiler(workflow).compile()


class _Compiler:
    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        caller = Stage(name=INPUTS, outputs=workflow.inputs)
        self.all = [caller, *workflow.stages.values()]
        self.index = {stage.name: i for i, stage in enumerate(self.all)}
        self.scopes = scopes_of(workflow)
        self.programs = [
            StageProgram(i, stage.name, stage, tuple(self.element(e) for e in self.scopes.get(stage.name, ())))
            for i, stage in enumerate(self.all)
        ]

    def element(self, name: str) -> Element:
        if name in self.index:
            return self.index[name]
        return keyed_element(self.index[name.removesuffix("/keyed")])

    def compile(self) -> Program:
        for program in self.programs:
            self.declare_ports(program)
        for program in self.programs[1:]:
            self.wire_inputs(program)
        outputs = [self.wire_output(i) for i in range(len(self.workflow.outputs))]
        gathers: dict[Element, list[Consumer]] = {}
        for program in self.programs:
            depth = program.depth
            for port, consumers in (*program.values.items(), *program.streams.items()):
                for consumer in consumers:
                    if consumer.mode is Mode.GATHER:
                        inner = program.index if port in program.streams else program.elements[depth - 1]
                        gathers.setdefault(inner, []).append(consumer)
        broadcasts: dict[Element, list[StageProgram]] = {}
        for program in self.programs:
            if program.broadcast_depth is not None:
                for element in program.elements[program.broadcast_depth :]:
                    broadcasts.setdefault(element, []).append(program)
        roots = {c: element for element, consumers in gathers.items() for c in consumers if c.ordered}
        for program in self.programs[1:]:
            program.is_sink = not any((*program.values.values(), *program.streams.values()))
            program.follower = self.follower(program)
        return Program(
            workflow=self.workflow,
            stages=self.programs,
            outputs=outputs,
            gathers=gathers,
            broadcasts=broadcasts,
            ordered_roots=roots,
            ordered=frozenset(roots.values()),
            sources=[p for p in self.programs[1:] if not p.inputs],
            has_sinks=any(p.is_sink for p in self.programs[1:]),
        )

    def follower(self, program: StageProgram) -> Follower | None:
        """The first stage that needs nothing but value outputs of this one, under the same tag."""
        if program.cases or program.streams or program.stage.batch is not None:
            return None
        found: dict[int, list[tuple[str, str]]] = {}
        for port in program.stage.outputs:
            for consumer in program.values[port.name]:
                if consumer.stage != OUTPUT and consumer.mode is Mode.VALUE and not consumer.broadcast:
                    name = self.programs[consumer.stage].inputs[consumer.input].name
                    found.setdefault(consumer.stage, []).append((name, port.name))
        for index in sorted(found):
            stage = self.programs[index].stage
            simple = stage.batch is None and stage.timeout_s is None and not stage.is_switch
            if simple and self.programs[index].edges == len(found[index]) == len(self.programs[index].inputs):
                readers = sum(len(consumers) for consumers in program.values.values())
                return Follower(index, tuple(found[index]), readers == len(found[index]))
        return None

    def declare_ports(self, program: StageProgram) -> None:
        for port in program.stage.outputs:
            (program.streams if port.stream else program.values)[port.name] = []
        for case in program.stage.cases:
            program.values[case_port(case.name)] = []
        program.cases = tuple(
            (case.name, None if case.when is None else compile_expression(case.when)) for case in program.stage.cases
        )
        if program.stage.catch:
            program.values[ERROR_PORT] = []
            for clause in program.stage.catch:
                if clause.goto is not None:
                    program.values.setdefault(goto_port(clause.goto), [])

    def wire_inputs(self, program: StageProgram) -> None:
        ports = {port.name: port for port in program.stage.input_ports}
        for item in program.stage.inputs:
            self.wire_input(program, item, ports.get(item.name))
        for ref in program.stage.when:
            self.wire_control(program, self.programs[self.index[ref.stage]], case_port(ref.case))
        for other in self.programs[1:]:
            if any(clause.goto == program.name for clause in other.stage.catch):
                self.wire_control(program, other, goto_port(program.name))
        program.edges = sum(i.edges for i in program.inputs)
        program.data_inputs = tuple((n, i.name, i.stream) for n, i in enumerate(program.inputs) if not i.is_control)

    def wire_input(self, program: StageProgram, item: Input, port: Port | None) -> None:
        number = len(program.inputs)
        wants_stream = port is not None and port.stream
        compiled = InputProgram(item.name, len(item.edges), item.merge, item.first, stream=False)
        for position, edge in enumerate(item.edges):
            consumer = self.consumer(program, number, position, edge, wants_stream)
            compiled.depth = consumer.depth
            compiled.stream = consumer.mode is Mode.STREAM or consumer.ordered
            if len(item.edges) > 1 and (compiled.stream or consumer.mode is not Mode.VALUE):
                raise InvalidArgument(
                    f"stage {program.name!r}, input {item.name!r}: a merge takes values, not streams or gathered lists"
                )
            self.attach(edge, consumer)
            if consumer.broadcast:
                self.note_broadcast(program, consumer.depth)
        program.inputs.append(compiled)

    def consumer(self, program: StageProgram, number: int, position: int, edge: Edge, wants_stream: bool) -> Consumer:
        depth = len(edge_scope(self.workflow, self.scopes, edge)) if edge.fanout is not Fanout.KEYED else program.depth
        mode, ordered = Mode.VALUE, False
        source = self.programs[self.index[edge.source.stage]]
        if edge.fanout is Fanout.GATHER:
            mode, ordered = Mode.GATHER, wants_stream
        elif edge.fanout is Fanout.KEYED:
            mode = Mode.KEYED
            depth = source.depth + 1
        elif edge.fanout is Fanout.ALL and edge.source.port in source.streams:
            mode = Mode.STREAM
        return Consumer(
            stage=program.index,
            input=number,
            edge=position,
            mode=mode,
            depth=depth,
            broadcast=depth < program.depth,
            ordered=ordered,
        )

    def attach(self, edge: Edge, consumer: Consumer) -> None:
        source = self.programs[self.index[edge.source.stage]]
        readers = source.streams if edge.source.port in source.streams else source.values
        readers[edge.source.port].append(consumer)

    def wire_control(self, program: StageProgram, source: StageProgram, port: str) -> None:
        broadcast = source.depth < program.depth
        program.inputs.append(InputProgram("", 1, depth=source.depth))
        source.values[port].append(
            Consumer(program.index, len(program.inputs) - 1, 0, Mode.VALUE, source.depth, broadcast=broadcast)
        )
        if broadcast:
            self.note_broadcast(program, source.depth)

    @staticmethod
    def note_broadcast(program: StageProgram, depth: int) -> None:
        known = program.broadcast_depth
        program.broadcast_depth = depth if known is None else min(known, depth)
        program.broadcasts_at[depth] = program.broadcasts_at.get(depth, 0) + 1

    def wire_output(self, number: int) -> OutputProgram:
        output = self.workflow.outputs[number]
        edge = output.edge
        source = self.programs[self.index[edge.source.stage]]
        mode, ordered = Mode.VALUE, False
        if edge.fanout is Fanout.GATHER:
            mode, ordered = Mode.GATHER, True
        elif edge.source.port in source.streams:
            mode = Mode.STREAM
        self.attach(edge, Consumer(OUTPUT, number, 0, mode, 0, ordered=ordered))
        return OutputProgram(output.name, stream=mode is not Mode.VALUE)


__all__ = [
    "CALLER",
    "OUTPUT",
    "Consumer",
    "Follower",
    "InputProgram",
    "Mode",
    "Program",
    "StageProgram",
    "compile_program",
]
