"""docs/semantics.md stated a second time, as naively as possible.

Evaluation is by demand and recursive, nothing is matched and nothing arrives: to know a token, its producer is run.
Where the semantics leave something to the order of arrival (`any`, `first`), a chooser decides, and `outcomes` tries
all its choices.

A failure that nobody catches is a poison that spreads with the values computed from it: if it reaches a result or a
sink the invocation must fail; one that reaches neither may or may not be met before the end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cel

from dataflower.spec.workflow import ERROR_PORT, INPUTS, Catch, Edge, Fanout, Input, Merge, Retry, Stage, Workflow
from dataflower.testing.behaviour import Behaviour, Emit, End, FakeTensor, Hang, Raised, Read, Steps
from dataflower.testing.choices import Choose, Paths
from dataflower.testing.outcome import ABSENT, Absent, Fails, Outcome, Poison, TooMany
from dataflower.testing.scopes import Scopes
from dataflower.wire import Tag


def outcomes(
    workflow: Workflow, behaviours: Mapping[str, Behaviour], inputs: Mapping[str, Any], limit: int = 3000
) -> Iterator[Outcome]:
    """All legal ends, one for each way in which arrivals may race; `inputs` maps stream inputs to lists.

    Raises `TooMany` after `limit` of them.
    """
    paths = Paths()
    for _ in range(limit):
        yield Execution(workflow, behaviours, inputs, paths.choose).outcome()
        if not paths.advance():
            return
    raise TooMany


class Status(enum.Enum):
    """How a task ended, or that it has not."""

    RUNNING = "running"
    SKIPPED = "skipped"
    DONE = "done"
    GOTO = "goto"
    POISONED = "poisoned"


@dataclass(slots=True)
class _Task:
    """A firing; `steps` is advanced only as far as somebody asks for its items."""

    stage: Stage
    tag: Tag
    status: Status = Status.RUNNING
    started: bool = False
    attempt: int = 1
    inputs: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, _Stream] = field(default_factory=dict)
    steps: Steps | None = None
    positions: dict[str, int] = field(default_factory=dict)
    emitted: int = 0
    items: list[Mapping[str, Any]] = field(default_factory=list)
    values: Mapping[str, Any] = field(default_factory=dict)
    poison: Poison | None = None
    case: str | None = None
    goto: str | None = None


_Get = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class _Stream:
    """A sequence by index: an item, `End.END`, `ABSENT` (at index 0: there is no stream) or `Poison`."""

    get: _Get


class Execution:
    """One invocation, evaluated by demand."""

    def __init__(
        self, workflow: Workflow, behaviours: Mapping[str, Behaviour], inputs: Mapping[str, Any], choose: Choose
    ) -> None:
        self._workflow = workflow
        self._behaviours = behaviours
        self._inputs = inputs
        self._choose = choose
        self._scopes = Scopes(workflow)
        self._tasks: dict[tuple[str, Tag], _Task] = {}
        self._merges: dict[tuple[str, str, Tag], Any] = {}

    def outcome(self) -> Outcome:
        """Ask for all outputs and sinks; then run everything else too, to see what might have failed."""
        poisons: set[Fails] = set()
        outputs: dict[str, Any] = {}
        for output in self._workflow.outputs:
            value = self._result(output.edge)
            outputs[output.name] = value
            if isinstance(value, Poison):
                poisons |= value.why
        for stage in self._sinks():
            for task in self._all_tasks(stage):
                if isinstance(task, Poison):
                    poisons |= task.why
                elif task.poison is not None:
                    poisons |= task.poison.why
        everything: set[Fails] = set(poisons)
        for stage in self._workflow.stages.values():
            for task in self._all_tasks(stage):
                everything |= task.why if isinstance(task, Poison) else task.poison.why if task.poison else set()
        ran = frozenset(key for key, task in self._tasks.items() if task.started and not task.stage.is_switch)
        return Outcome(None if poisons else outputs, frozenset(everything), ran)

    def _sinks(self) -> list[Stage]:
        return [stage for name, stage in self._workflow.stages.items() if name not in self._scopes.feeding]

    def _all_tasks(self, stage: Stage) -> Iterator[_Task | Poison]:
        for tag in self._tags(self._scopes.of_stage[stage.name]):
            if isinstance(tag, Poison):
                yield tag
            else:
                task = self._task(stage.name, tag)
                self._finish(task)
                yield task

    def _tags(self, scope: tuple[str, ...], prefix: Tag = ()) -> Iterator[Tag | Poison]:
        """The tags of `scope` below `prefix`, and the reasons why there may be more of them."""
        if len(prefix) == len(scope):
            yield prefix
            return
        index = 0
        while True:
            there = self._has_item(scope, prefix, index)
            if isinstance(there, Poison):
                yield there
                return
            if there is not True:
                return
            yield from self._tags(scope, (*prefix, index))
            index += 1

    def _has_item(self, scope: tuple[str, ...], prefix: Tag, index: int) -> bool | Absent | Poison:
        """Whether the fan-out `scope[len(prefix)]` has an item `index`; `ABSENT` if the fan-out itself is absent."""
        name = scope[len(prefix)]
        kind, _, owner = name.partition(":")
        if kind == "input":
            streams = [self._inputs[port.name] for port in self._workflow.inputs if port.stream]
            return any(index < len(items) for items in streams)
        if kind == "keyed":
            keys = self._keyed(owner, prefix)
            return keys if isinstance(keys, (Poison, Absent)) else index < len(keys)
        task = self._task(owner, prefix)
        self._pump(task, index + 1)
        if len(task.items) > index:
            return True
        if task.poison is not None:
            return task.poison
        return ABSENT if task.status is Status.SKIPPED else False

    def _keyed(self, consumer: str, prefix: Tag) -> list[list[Any]] | Poison | Absent:
        """The lists of values, one per key in order of first appearance."""
        stage = self._workflow.stages[consumer]
        edge = next(e for i in stage.inputs for e in i.edges if e.fanout is Fanout.KEYED)
        items: list[Any] | Poison | Absent = _whole(self._stream_of(edge, prefix))
        if not isinstance(items, list):
            return items
        groups: dict[str, list[Any]] = {}
        for item in items:
            groups.setdefault(repr(item["key"]), []).append(item["value"])
        return list(groups.values())

    # --- edges ---

    def _result(self, edge: Edge) -> Any:
        if edge.fanout is Fanout.ALL and self._scopes.is_stream(edge.source):
            return _whole(self._stream_of(edge, ()))
        return self._value_of(edge, (), "")

    def _value_of(self, edge: Edge, tag: Tag, consumer: str) -> Any:
        """What a value input sees through `edge`: a value, a list, `ABSENT` or `Poison`."""
        source, scope = edge.source, self._scopes.of_port(edge.source)
        match edge.fanout:
            case Fanout.ALL:
                if source.stage == INPUTS:
                    return self._inputs[source.port]
                task = self._task(source.stage, tag[: len(scope)])
                self._finish(task)
                return task.poison or task.values.get(source.port, ABSENT)
            case Fanout.EACH:
                index = tag[len(scope) - 1]
                if source.stage == INPUTS:
                    items = self._inputs[source.port]
                    return items[index] if index < len(items) else ABSENT
                return self._task(source.stage, tag[: len(scope) - 1]).items[index].get(source.port, ABSENT)
            case Fanout.KEYED:
                depth = len(scope) - 1
                groups = self._keyed(consumer, tag[:depth])
                return groups[tag[depth]] if isinstance(groups, list) else groups
            case Fanout.GATHER:
                return _whole(self._stream_of(edge, tag))

    def _stream_of(self, edge: Edge, tag: Tag) -> _Stream:
        """The items that come through `edge` in order, absent ones left out."""
        source, scope = edge.source, self._scopes.of_port(edge.source)
        prefix = tag[: len(scope) - 1]
        streaming = self._scopes.is_stream(source)

        def items() -> Iterator[Any]:
            index = 0
            while True:
                there = self._has_item(scope, prefix, index)
                if there is not True:
                    yield End.END if there is False else there
                    return
                inner = Edge(source, Fanout.EACH if streaming else Fanout.ALL)
                value = self._value_of(inner, (*prefix, index), "")
                if value is not ABSENT:
                    yield value
                if isinstance(value, Poison):
                    return
                index += 1

        seen: list[Any] = []
        source_items = items()

        def get(index: int) -> Any:
            while len(seen) <= index:
                item = next(source_items, None)
                if item is None:
                    return seen[-1]
                seen.append(item)
            return seen[index]

        return _Stream(get)

    def _merged(self, stage: Stage, input_: Input, tag: Tag) -> Any:
        key = (stage.name, input_.name, tag)
        if key not in self._merges:
            self._merges[key] = self._merge(stage, input_, tag)
        return self._merges[key]

    def _merge(self, stage: Stage, input_: Input, tag: Tag) -> Any:
        if input_.merge is None:
            return self._value_of(input_.edges[0], tag, stage.name)
        if input_.merge is Merge.ALL:
            values = [self._value_of(edge, tag, stage.name) for edge in input_.edges]
            return _poisons(values) or [value for value in values if value is not ABSENT]
        wanted = input_.first if input_.merge is Merge.FIRST else 1
        waiting = list(input_.edges)
        came: list[Any] = []
        while waiting and len(came) < wanted:
            index = self._choose(len(waiting)) if len(waiting) > 1 else 0
            value = self._value_of(waiting.pop(index), tag, stage.name)
            if isinstance(value, Poison):
                return value
            if value is not ABSENT:
                came.append(value)
        if len(came) < wanted:
            return ABSENT
        return came if input_.merge is Merge.FIRST else came[0]

    # --- tasks ---

    def _task(self, name: str, tag: Tag) -> _Task:
        key = (name, tag)
        if key not in self._tasks:
            task = self._tasks[key] = _Task(self._workflow.stages[name], tag)
            self._fire(task)
        return self._tasks[key]

    def _fire(self, task: _Task) -> None:
        stage, tag = task.stage, task.tag
        needs = self._gates(task)
        for input_ in stage.inputs:
            edge = input_.edges[0]
            if self._scopes.takes_stream(stage, input_):
                stream = task.streams[input_.name] = self._stream_of(edge, tag)
                needs.append(stream.get(0))
            else:
                task.inputs[input_.name] = value = self._merged(stage, input_, tag)
                needs.append(value)
        if ABSENT in needs:
            task.status = Status.SKIPPED
            return
        if poison := _poisons(needs):
            task.status, task.poison = Status.POISONED, poison
            return
        fed = {input_.name for input_ in stage.inputs}
        task.inputs |= {p.name: p.default for p in stage.input_ports if p.name not in fed and p.optional}
        task.started = True
        if stage.is_switch:
            self._switch(task)
        else:
            self._begin(task)

    def _gates(self, task: _Task) -> list[Any]:
        """One entry for each `when` and for the `goto` that names the stage: `ABSENT`, a poison, or True."""
        gates: list[Any] = []
        for ref in task.stage.when:
            switch = self._task(ref.stage, task.tag[: len(self._scopes.of_stage[ref.stage])])
            gates.append(switch.poison or (True if switch.case == ref.case else ABSENT))
        if thrower := self._scopes.thrower.get(task.stage.name):
            failing = self._task(thrower, task.tag[: len(self._scopes.of_stage[thrower])])
            self._finish(failing)
            gates.append(failing.poison or (True if failing.goto == task.stage.name else ABSENT))
        return gates

    def _switch(self, task: _Task) -> None:
        seen = {name: _look(value) for name, value in task.inputs.items()}
        try:
            task.case = next((c.name for c in task.stage.cases if c.when is None or cel.evaluate(c.when, seen)), None)
            task.status = Status.DONE
        except (ArithmeticError, RuntimeError, ValueError, TypeError):
            self._raised(task, "SwitchError")

    def _begin(self, task: _Task) -> None:
        behaviour = self._behaviours[task.stage.name]
        task.positions = dict.fromkeys(task.streams, 0)
        task.emitted = 0
        task.steps = behaviour.start(task.stage, task.tag, task.inputs, tuple(task.streams), task.attempt)

    def _finish(self, task: _Task) -> None:
        self._pump(task, 1 << 30)

    def _pump(self, task: _Task, items: int) -> None:
        """Run the task until it has emitted so many items, or is over."""
        answer: Any = None
        while task.status is Status.RUNNING and len(task.items) < items:
            assert task.steps is not None
            try:
                request = task.steps.send(answer)
            except StopIteration as stop:
                task.status, task.values = Status.DONE, stop.value
                return
            except Raised as raised:
                self._raised(task, raised.kind)
                answer = None
                continue
            answer = None
            match request:
                case Read(name):
                    answer = task.streams[name].get(task.positions[name])
                    task.positions[name] += 1
                    if isinstance(answer, Poison):
                        task.status, task.poison = Status.POISONED, answer
                case Emit(outputs):
                    if task.emitted == len(task.items):
                        task.items.append(outputs)
                    task.emitted += 1
                case Hang():
                    self._raised(task, "Timeout")

    def _raised(self, task: _Task, kind: str) -> None:
        retry = task.stage.retry
        if retry is not None and _matches(retry, kind) and task.attempt < retry.max_attempts:
            task.attempt += 1
            self._begin(task)
            return
        for catch in task.stage.catch:
            if _matches(catch, kind):
                self._caught(task, catch, kind)
                return
        task.status = Status.POISONED
        task.poison = Poison(frozenset({Fails(task.stage.name, kind, task.attempt)}))

    def _caught(self, task: _Task, catch: Catch, kind: str) -> None:
        if catch.goto is None:
            streams = {port.name for port in task.stage.outputs if port.stream}
            constants = catch.output or {}
            task.status = Status.DONE
            task.values = {port: value for port, value in constants.items() if port not in streams}
            return
        error = {"kind": kind, "message": "", "stage": task.stage.name, "attempt": task.attempt}
        task.status, task.goto, task.values = Status.GOTO, catch.goto, {ERROR_PORT: error}


def _look(value: Any) -> Any:
    """A payload as an expression sees it."""
    if isinstance(value, FakeTensor):
        return {"dtype": "UINT8", "shape": [value.size]}
    if isinstance(value, dict):
        return {key: _look(item) for key, item in value.items()}
    return [_look(item) for item in value] if isinstance(value, list) else value


def _matches(rule: Retry | Catch, kind: str) -> bool:
    return "*" in rule.errors or kind in rule.errors


def _poisons(values: list[Any]) -> Poison | None:
    why = frozenset[Fails]().union(*(value.why for value in values if isinstance(value, Poison)))
    return Poison(why) if why else None


def _whole(stream: _Stream) -> Any:
    """All items of a stream, or `Poison` or `ABSENT`."""
    items: list[Any] = []
    while not isinstance(item := stream.get(len(items)), (End, Absent, Poison)):
        items.append(item)
    return items if item is End.END else item
