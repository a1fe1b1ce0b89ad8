"""What a plan is for: a DAG of modules, each with a model and the number of its requests for one invocation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dataflower.errors import InvalidArgument
from dataflower.spec.scopes import predecessors, scopes_of
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.workflow import INPUTS, Stage, Workflow


@dataclass(frozen=True, slots=True)
class Module:
    """A stage as the planner sees it: `factor` requests of `model` for one invocation, on the average.

    `most`: of one invocation; 0 where it is not known, which counts as the average rounded up.
    """

    name: str
    model: str
    factor: float = 1.0
    most: int = 0

    @property
    def burst(self) -> int:
        """Requests that may come at once."""
        return max(self.most, math.ceil(self.factor - 1e-9))


@dataclass(frozen=True)
class Application:
    """Modules and the edges between them, by name.

    Raises:
        InvalidArgument: no modules, a name twice or unknown, a factor that is not positive, a cycle.
    """

    name: str
    modules: tuple[Module, ...]
    edges: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [m.name for m in self.modules]
        if not names:
            raise InvalidArgument(f"application {self.name!r} has no modules")
        if len(set(names)) < len(names):
            raise InvalidArgument(f"application {self.name!r} has two modules of one name")
        for module in self.modules:
            if not module.factor > 0:
                raise InvalidArgument(f"module {module.name!r}: factor {module.factor} is not positive")
        for edge in self.edges:
            if unknown := [name for name in edge if name not in names]:
                raise InvalidArgument(f"edge {edge[0]} -> {edge[1]}: no module {unknown[0]!r}")
        if len(self.order) < len(names):
            stuck = next(name for name in names if name not in self.order)
            raise InvalidArgument(f"module {stuck!r} of {self.name!r} waits for itself")

    def module(self, name: str) -> Module:
        """By name, which must be there."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Module]:
        return {m.name: m for m in self.modules}

    @cached_property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """Direct predecessors of each module."""
        return {m.name: tuple(dict.fromkeys(a for a, b in self.edges if b == m.name)) for m in self.modules}

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """Direct successors of each module."""
        return {m.name: tuple(dict.fromkeys(b for a, b in self.edges if a == m.name)) for m in self.modules}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Each module after its parents; those on a cycle are left out."""
        waiting = {m.name: len(self.parents[m.name]) for m in self.modules}
        ready = [name for name, count in waiting.items() if count == 0]
        order: list[str] = []
        while ready:
            name = ready.pop(0)
            order.append(name)
            for child in self.children[name]:
                waiting[child] -= 1
                if waiting[child] == 0:
                    ready.append(child)
        return tuple(order)

    def through(self, latency_s: Mapping[str, float]) -> dict[str, float]:
        """Length of the longest path through each module, when each takes `latency_s`."""
        until: dict[str, float] = {}
        for name in self.order:
            until[name] = max((until[p] for p in self.parents[name]), default=0.0) + latency_s[name]
        after: dict[str, float] = {}
        for name in reversed(self.order):
            after[name] = max((after[c] for c in self.children[name]), default=0.0) + latency_s[name]
        return {name: until[name] + after[name] - latency_s[name] for name in self.order}

    def longest(self, latency_s: Mapping[str, float]) -> float:
        """Length of the longest path."""
        until: dict[str, float] = {}
        for name in self.order:
            until[name] = max((until[p] for p in self.parents[name]), default=0.0) + latency_s[name]
        return max(until.values())

    def longest_path(self, latency_s: Mapping[str, float]) -> tuple[str, ...]:
        """The modules on the longest path, the first of them if there are several."""
        after: dict[str, float] = {}
        for name in reversed(self.order):
            after[name] = max((after[c] for c in self.children[name]), default=0.0) + latency_s[name]
        path: list[str] = []
        choices: Iterable[str] = [name for name in self.order if not self.parents[name]]
        while choices:
            path.append(max(choices, key=lambda name: after[name]))
            choices = self.children[path[-1]]
        return tuple(path)


@dataclass(frozen=True, slots=True)
class Fanned:
    """How often stages ran in real runs.

    Attributes:
        tasks: stage -> tasks for one invocation: the average, and the most.
        items: fan-out (as in `from_workflow`) -> items for one task.
    """

    tasks: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    items: Mapping[str, float] = field(default_factory=dict)


def from_workflow(
    workflow: Workflow,
    *,
    models: Mapping[str, str] | None = None,
    items: Mapping[str, float] | None = None,
    shares: Mapping[str, float] | None = None,
    measured: Fanned | None = None,
) -> Application:
    """The application that a workflow is.

    A stage inside fan-outs gets one request for each item of each of them, and a stage behind `when` those whose case
    was taken. Switches run in the host and cost nothing: their neighbours are joined to each other.

    Args:
        workflow: a checked workflow.
        models: stage -> model; a stage that is not named is its own model.
        items: stage whose stream is fanned out (`inputs` for the workflow's inputs; for a keyed fan-out the stage
            that takes the keys, with `/keyed` behind it) -> items for one task, on the average.
        shares: `stage.case` -> share of the tasks that take this case; where it is not named as measured, else 1 (the
            safe side).
        measured: what real runs said; `items` and `shares` go before it.

    Raises:
        InvalidArgument: a fan-out without its number of items; a name that the workflow does not have.
    """
    counts = _Counts(workflow, items or {}, shares or {}, measured or Fanned())
    modules = []
    for stage in workflow.stages.values():
        if not stage.is_switch:
            factor, most = counts.of(stage)
            modules.append(Module(stage.name, (models or {}).get(stage.name, stage.name), factor, most))
    sources = {name: _sources(workflow, name) for name in (m.name for m in modules)}
    edges = tuple((source, name) for name, found in sources.items() for source in found)
    return Application(workflow.name, tuple(modules), edges)


class _Counts:
    """Requests of each stage for one invocation."""

    def __init__(
        self, workflow: Workflow, items: Mapping[str, float], shares: Mapping[str, float], measured: Fanned
    ) -> None:
        self._scopes = scopes_of(workflow)
        self._items, self._shares, self._measured = items, shares, measured
        fanouts = {fanout for scope in self._scopes.values() for fanout in scope}
        for name in items:
            if name not in fanouts:
                raise InvalidArgument(
                    f"no fan-out {name!r} ({did_you_mean(name, fanouts, none='the workflow has none')})"
                )
        cases = {f"{s.name}.{case.name}" for s in workflow.stages.values() for case in s.cases}
        for name in shares:
            if name not in cases:
                raise InvalidArgument(
                    f"no case {name!r} ({did_you_mean(name, cases, none='the workflow has no switch')})"
                )

    def of(self, stage: Stage) -> tuple[float, int]:
        """On the average, and the most (0 where it is not known)."""
        scope = self._scopes[stage.name]
        given = any(fanout in self._items for fanout in scope)
        chosen = [str(case) for case in stage.when if str(case) in self._shares]
        tasks, most = self._measured.tasks.get(stage.name, (0.0, 0))
        if tasks > 0 and not given and not chosen:
            return tasks, most
        whole, measured = 1.0, 1.0
        for fanout in scope:
            known = self._items.get(fanout, self._measured.items.get(fanout))
            if known is None:
                hint = "the workflow's inputs" if fanout == INPUTS else f"{fanout!r}"
                raise InvalidArgument(f"stage {stage.name!r} runs for each item of {hint}: say how many there are")
            whole *= known
            measured *= self._measured.items.get(fanout, known)
        if chosen:
            whole *= math.prod(self._shares.get(str(case), 1.0) for case in stage.when)
        elif tasks > 0 and measured > 0:
            whole *= tasks / measured
        if not whole > 0:
            whole = tasks if tasks > 0 else 1.0  # it never ran: the safe side is that it might
        return whole, math.ceil(most * whole / tasks) if tasks > 0 else 0


def _sources(workflow: Workflow, name: str) -> tuple[str, ...]:
    """The stages that a stage waits for, looking through switches."""
    found: dict[str, None] = {}
    for source in predecessors(workflow, workflow.stages[name]):
        inner = _sources(workflow, source) if workflow.stages[source].is_switch else (source,)
        found.update(dict.fromkeys(inner))
    return tuple(found)
