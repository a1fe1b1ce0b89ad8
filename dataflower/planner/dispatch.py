"""A plan as the engine obeys it: from a plan file to `core.plan.DispatchPlan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from graphlib import TopologicalSorter

from msgspec.structs import replace

from dataflower.core.batching import GRACE_S
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch, TokenPlan
from dataflower.errors import Problem
from dataflower.planner.document import GroupDocument, PlanDocument, StageDocument, as_it_starts, check_against
from dataflower.planner.reading import DocumentInvalid
from dataflower.spec.scopes import predecessors
from dataflower.spec.workflow import Workflow

Parents = Mapping[str, Iterable[str]]
LAG_S = 2 * GRACE_S
"""A batch that is cut at the last moment ends that little late, and must not come just too late for the next stage."""

_WEIGHS = frozenset({"max_sequences", "ttft_ms"})
"""Params of a function that decides for itself how many answers are written at a time, and who comes too late."""


def dispatch_plan(
    document: PlanDocument, workflow: Workflow, file: str = "plan", *, admission: bool = True
) -> DispatchPlan:
    """What a plan file asks of the engine.

    A stage that the plan puts on machines shared with others only gets a container of its own, since containers of
    this engine belong to one stage.

    Raises:
        DocumentInvalid: the plan is for another workflow, or wants batches of a function that takes none.
    """
    check_against(document, workflow, file)
    problems = [
        Problem(
            file,
            1,
            1,
            f"stage {name!r} is planned in batches of {group.batch}, but its function takes one task at a time",
            "declare it with @function(batch=True), or plan with --batch-1",
        )
        for name, stage in document.stages.items()
        for group in stage.groups
        if group.batch > 1 and workflow.stages[name].batch is None and stage.tokens is None
    ]
    problems += [
        Problem(
            file,
            1,
            1,
            f"stage {name!r} is planned in batches of {group.batch}, its batch.max_size is {batch.max_size}",
            f"raise max_size to {group.batch}",
        )
        for name, stage in document.stages.items()
        for group in stage.groups
        if (batch := workflow.stages[name].batch) is not None and group.batch > batch.max_size
    ]
    if problems:
        raise DocumentInvalid(tuple(problems))
    return dispatch_of(document, workflow, admission=admission)


def tuned(workflow: Workflow, document: PlanDocument | None) -> Workflow:
    """The workflow as its containers are started under a plan (None: as it is).

    A stage with a language model runs as many tasks at a time as the plan says, and its function is given the plan's
    limits as params, as far as its `setup` takes them. If it takes those by which it refuses requests, it gets as many
    tasks again: they wait in the runner, which knows what each weighs, and not in a queue that counts them.
    """
    if document is None:
        return workflow
    stages = dict(workflow.stages)
    for name, planned in document.stages.items():
        if planned.tokens is not None and name in stages:
            stage = stages[name]
            concurrency = as_it_starts(planned).concurrency * (2 if planned.tokens.params.keys() >= _WEIGHS else 1)
            scaling = dataclasses.replace(stage.scaling, concurrency=concurrency)
            stages[name] = dataclasses.replace(stage, scaling=scaling, params={**stage.params, **planned.tokens.params})
    return dataclasses.replace(workflow, stages=stages)


def dispatch_of(document: PlanDocument, workflow: Workflow, *, admission: bool = True) -> DispatchPlan:
    """The same without a look at whether it fits; stages that the plan does not name take no time."""
    parents = {name: predecessors(workflow, stage) for name, stage in workflow.stages.items()}
    until_s = _until(document, parents)
    eager = _eager(document, document.slo_ms / 1000 - max(until_s.values()))
    stages = tuple(
        _stage(name, stage, document, until_s=until_s[name], eager=name in eager)
        for name, stage in document.stages.items()
    )
    mixing = {stage.stage for stage in stages if len(stage.groups) > 1}
    if mixing:
        stages = tuple(_behind(stage, mixing, document, parents, until_s) for stage in stages)
    return DispatchPlan(document.slo_ms / 1000, document.rate_per_s, stages, admission)


def _behind(
    stage: StageDispatch, mixing: Set[str], document: PlanDocument, parents: Parents, until_s: Mapping[str, float]
) -> StageDispatch:
    """The stage with what it must know of those just before it where tasks overtake each other (`core.turnstile`)."""
    before: dict[str, None] = {}
    through: dict[str, None] = {}
    open_ = list(parents[stage.stage])
    while open_:
        name = open_.pop()
        if name in document.stages:
            before[name] = None
        else:  # it takes no time, but tasks may be on their way in it
            through[name] = None
            open_ += parents[name]
    behind = tuple(name for name in before if name in mixing)
    if not behind:
        return stage
    return replace(stage, behind=(*behind, *through), from_s=max(until_s[name] for name in before))


def _until(document: PlanDocument, parents: Parents) -> dict[str, float]:
    """By when each stage should be done with an invocation's tasks, seconds after its arrival.

    Time-outs and run times along the longest path to it, itself included, and `LAG_S` for each stage.
    """
    until: dict[str, float] = {}
    for name in TopologicalSorter(parents).static_order():
        planned = document.stages.get(name)
        own = 0.0 if planned is None else min(g.timeout_ms + g.duration_ms for g in planned.groups) / 1000
        until[name] = max((until[parent] for parent in parents[name]), default=0.0) + own + (LAG_S if own else 0.0)
    return until


def _eager(document: PlanDocument, unused_s: float) -> frozenset[str]:
    """The stages that need not wait for full batches, the quickest first: a run of each fits into the unused time.

    A run that was started early may make a task that is more urgent wait for its end, once at each stage.
    """
    found = set()
    runs = sorted((max(group.duration_ms for group in stage.groups), name) for name, stage in document.stages.items())
    for duration_ms, name in runs:
        unused_s -= duration_ms / 1000
        if unused_s < 0:
            break
        found.add(name)
    return frozenset(found)


def _worst_ms(stage: StageDocument) -> float:
    return max(group.worst_ms for group in stage.groups)


def _stage(name: str, stage: StageDocument, document: PlanDocument, *, until_s: float, eager: bool) -> StageDispatch:
    groups = [_group(name, g, document) for g in stage.groups if g.replicas] or [
        _group(name, stage.groups[0], document)
    ]
    return StageDispatch(
        stage=name,
        groups=tuple(groups),
        until_s=until_s,
        worst_s=_worst_ms(stage) / 1000,
        ranked=document.dispatch == "ranked",
        dummy_rate=stage.dummy_rate_per_s,
        factor=stage.rate_per_s / document.rate_per_s,
        eager=eager,
        prewarm=stage.weights is not None and stage.weights.prewarm,
        tokens=_tokens(name, stage, document),
    )


def _tokens(name: str, stage: StageDocument, document: PlanDocument) -> TokenPlan | None:
    """What a request of a language model takes: as measured, or (in a file without a basis) as the plan expects."""
    planned = stage.tokens
    if planned is None:
        return None
    known = None if document.basis is None else document.basis.stages.get(name)
    kinds = {} if known is None or known.tokens is None else known.tokens.kinds
    kind = kinds.get(stage.groups[0].device)
    slowdown = 1.0 if known is None else known.slowdown
    measured = None if kind is None else kind.prompt_token_ms * slowdown
    return TokenPlan(
        prompt_s=(planned.ttft_ms / planned.prompt_tokens.high if measured is None else measured) / 1000,
        answer_s=planned.tpot_ms / planned.sequences / 1000,
        token_s=planned.tpot_ms / 1000,
        prompt=planned.prompt_tokens.mean,
        answer=planned.output_tokens.mean,
        longest=planned.output_tokens.high,
        ttft_s=(planned.ttft_limit_ms or 0.0) / 1000,
    )


def _group(name: str, group: GroupDocument, document: PlanDocument) -> GroupPlan:
    """A group of a stage, with a container at least: those of shared machines have none of their own in the plan."""
    known = None if document.basis is None else document.basis.stages.get(name)
    if known is not None and known.tokens is not None:  # no batch of whole tasks is run
        known = None
    points = () if known is None else known.points.get(group.device, ())
    slowdown = 1.0 if known is None else known.slowdown
    return GroupPlan(
        group.batch,
        max(1, group.replicas),
        group.duration_ms / 1000,
        group.rate_per_s,
        group.device,
        tuple((point.batch, point.duration_ms / 1000 * slowdown) for point in points),
    )
