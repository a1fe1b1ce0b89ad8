"""A plan as a file: what `dataflower plan` writes and the engine runs by. Durations in milliseconds, rates a second.

The file is versioned (`apiVersion: dataflower/v1`, `kind: Plan`), self-contained, and says for each stage what it may
take (`budget_ms`) and by which groups of containers it is served. Reading refuses what an engine could not carry out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dataflower.core.plan import Replan
from dataflower.errors import InvalidArgument, Problem
from dataflower.planner.answers import TokenStage
from dataflower.planner.basis import BasisDocument, basis_of, question_of
from dataflower.planner.loading import Weights, WeightsDocument, weights_document
from dataflower.planner.options import Billing, Dispatch, Options
from dataflower.planner.plan import Plan, StagePlan
from dataflower.planner.question import Question
from dataflower.planner.reading import DocumentInvalid, read
from dataflower.planner.schedule import ROUNDING, Allotment, whole
from dataflower.planner.token_basis import LengthsDocument, StartedDocument
from dataflower.planner.tokens import TokenPlan
from dataflower.spec.document import Document
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import Path, Tree
from dataflower.spec.workflow import Workflow

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class GroupDocument(Document):
    """Containers of one kind that share their batches: the next full batch goes to the first that is free.

    A batch closes when it holds `batch` tasks, or when its oldest task has waited for `timeout_ms`, counted from when
    the stages before are to be done with it: so it is to be done itself `timeout_ms + duration_ms` after them.
    """

    device: str = Field(min_length=1, description="Kind of machine")
    batch: int = Field(ge=1, description="Most tasks in a batch")
    machines: Positive = Field(description="Machines kept busy, on the average; may be a fraction")
    replicas: int = Field(ge=0, description="Containers to keep; what `shared` machines carry is not among them")
    rate_per_s: Positive = Field(description="Tasks a second that this group is meant for, dummies included")
    duration_ms: Positive = Field(description="Of a full batch")
    timeout_ms: NotNegative = Field(
        description="How long the oldest task of a batch may wait for others; of several groups in a stage the one "
        "that would be done soonest counts for all"
    )
    worst_ms: Positive = Field(description="Latency that is counted on, from queued to done")


class TokensDocument(Document):
    """How a stage with a language model keeps its tokens. What is expected is for one replica under its share."""

    sequences: int = Field(ge=1, description="Answers that one replica writes at a time, at most")
    step_tokens: int = Field(ge=2, description="Tokens that one step computes at most: the size of a prompt's pieces")
    ttft_ms: Positive = Field(description="To the first token from when the stage has its prompt, at the percentile")
    tpot_ms: Positive = Field(description="For a further token, on the average")
    itl_ms: Positive = Field(description="Between two tokens, at most")
    ttft_limit_ms: Positive | None = Field(None, description="What the objective for the first token leaves the stage")
    tpot_limit_ms: Positive | None = Field(None, description="What that for further tokens leaves")
    itl_limit_ms: Positive | None = Field(None, description="What that for gaps leaves")
    prompt_tokens: LengthsDocument
    output_tokens: LengthsDocument
    params: dict[str, int | float] = Field(
        default_factory=dict, description="Limits that the function's `setup` is given"
    )
    started: StartedDocument | None = Field(
        default=None, description="What containers were started for by the first plan, if this was planned again since"
    )


class StageDocument(Document):
    """How one stage keeps its share of the SLO; the groups best ranked first."""

    budget_ms: Positive = Field(description="Share of the SLO; on every path the shares sum up to at most the SLO")
    rate_per_s: Positive = Field(description="Tasks a second that the stage must serve")
    dummy_rate_per_s: NotNegative = Field(default=0.0, description="Tasks that nobody sent; dropped first under load")
    groups: list[GroupDocument] = Field(min_length=1)
    tokens: TokensDocument | None = Field(None, description="Of a language model; `batch` of its group counts tasks")
    weights: WeightsDocument | None = Field(default=None, description="What a first container on a machine waits for")


class ShareDocument(Document):
    """The part of a group that does not fill a machine."""

    workflow: str
    stage: str
    group: int = Field(ge=0, description="Position of the group in its stage")
    batch: int = Field(ge=1, description="Most tasks in one turn")
    rate_per_s: Positive


class SharedDocument(Document):
    """A machine that parts of several groups share, each in its turn."""

    device: str
    cycle_ms: Positive = Field(description="One round of all shares")
    shares: list[ShareDocument] = Field(min_length=2)


class PlanDocument(Document):
    """A plan: which promise it keeps, at what cost, and how."""

    api_version: Literal["dataflower/v1"] = Field(default="dataflower/v1", alias="apiVersion")
    kind: Literal["Plan"] = "Plan"
    workflow: str = Field(min_length=1)
    rate_per_s: Positive = Field(description="Invocations a second")
    slo_ms: Positive = Field(description="End to end")
    percentile: float = Field(gt=0, le=100, description="Share of the invocations that keep it; 100 for paced arrivals")
    arrivals: Literal["paced", "poisson", "traced"]
    method: str = "ours"
    dispatch: Literal["group", "ranked"] = Field(
        "group",
        description="group: tasks are dealt out to the groups of a stage in proportion to their rates; "
        "ranked: the best ranked group with a free container collects all that comes",
    )
    billing: Literal["use", "integer"]
    cost_per_hour: NotNegative
    cost_per_1000: NotNegative
    worst_ms: Positive = Field(description="The longest path at what its stages count on")
    path: list[str] = Field(default_factory=list, description="That path")
    stages: dict[str, StageDocument] = Field(min_length=1)
    shared: list[SharedDocument] = Field(default_factory=list)
    replan: Replan = Field(
        Replan.OFF,
        strict=False,
        description="What a server does when the traffic is not what the plan was made for: `off` nothing, `dry-run` "
        "says what it would do, `on` plans again",
    )
    basis: BasisDocument | None = Field(None, description="What it was made from, to plan again")
    reasons: list[dict[str, Any]] | None = Field(default=None, description="What `--explain` says, for people")
    compared: list[dict[str, Any]] | None = Field(default=None, description="What `--compare` says, for people")

    @model_validator(mode="before")
    @classmethod
    def _is_plan(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind", "Plan") != "Plan":
            raise ValueError(f"kind: {data['kind']} is not a Plan (`dataflower plan -o yaml` writes one)")
        return data

    def as_data(self) -> dict[str, Any]:
        """Plain values for YAML or JSON; `parse_plan` reads them back."""
        data = self.model_dump(by_alias=True, mode="json")
        for name in ("basis", "reasons", "compared"):
            if data[name] is None:
                del data[name]
        for stage, own in self.stages.items():
            if own.tokens is None:
                del data["stages"][stage]["tokens"]
            else:
                data["stages"][stage]["tokens"] = own.tokens.model_dump(mode="json", exclude_none=True)
            if own.weights is None:
                del data["stages"][stage]["weights"]
            else:
                data["stages"][stage]["weights"] = own.weights.model_dump(mode="json", exclude_none=True)
        if self.basis is not None:
            data["basis"] = self.basis.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return data


def parse_plan(text: str, file: str) -> PlanDocument:
    """The plan in a YAML or JSON text.

    Raises:
        DocumentInvalid: not a plan, or one that nobody could carry out.
    """
    document, tree = read(text, file, PlanDocument, "`dataflower plan -o yaml` writes a plan")
    problems: list[Problem] = []
    for name, stage in document.stages.items():
        at = ("stages", name)
        if stage.dummy_rate_per_s >= sum(g.rate_per_s for g in stage.groups):
            problems.append(tree.problem((*at, "dummy_rate_per_s"), f"stage {name!r} would serve dummies only"))
        for i, group in enumerate(stage.groups):
            place: Path = (*at, "groups", i)
            most = group.machines * group.batch / (group.duration_ms / 1000)
            if group.rate_per_s > most * (1 + 1e-6):
                message = f"{group.machines:g} machines serve {most:.4g} tasks a second, not {group.rate_per_s:g}"
                problems.append(tree.problem((*place, "machines"), message))
            if group.duration_ms > stage.budget_ms * (1 + 1e-6):
                message = f"a batch takes {group.duration_ms:g} ms, more than the budget of {stage.budget_ms:g} ms"
                problems.append(tree.problem((*place, "duration_ms"), message))
            elif group.timeout_ms + group.duration_ms > stage.budget_ms * (1 + 1e-6):
                left = stage.budget_ms - group.duration_ms
                message = f"a time-out of {group.timeout_ms:g} ms, where the budget leaves {left:g} ms for waiting"
                problems.append(tree.problem((*place, "timeout_ms"), message))
        if stage.tokens is not None:
            problems += _token_problems(stage.tokens, tree, (*at, "tokens"))
    problems += _basis_problems(document, tree)
    for i, machine in enumerate(document.shared):
        for j, share in enumerate(machine.shares):
            own = document.stages.get(share.stage) if share.workflow == document.workflow else None
            if share.workflow == document.workflow and (own is None or share.group >= len(own.groups)):
                problems.append(
                    tree.problem(("shared", i, "shares", j), f"no group {share.group} of a stage {share.stage!r}")
                )
    if problems:
        raise DocumentInvalid(tuple(problems))
    return document


def _token_problems(tokens: TokensDocument, tree: Tree, at: Path) -> Iterator[Problem]:
    for name in ("ttft", "tpot", "itl"):
        expected, limit = getattr(tokens, f"{name}_ms"), getattr(tokens, f"{name}_limit_ms")
        if limit is not None and expected > limit * (1 + 1e-6):
            yield tree.problem(
                (*at, f"{name}_ms"), f"{expected:g} ms are expected, more than the limit of {limit:g} ms"
            )
    if tokens.step_tokens <= tokens.sequences:
        message = f"a step of {tokens.step_tokens} tokens leaves no room for prompts beside {tokens.sequences} answers"
        yield tree.problem((*at, "step_tokens"), message)


def _basis_problems(document: PlanDocument, tree: Tree) -> Iterator[Problem]:
    if document.basis is None:
        if document.replan is not Replan.OFF:
            message = "the plan does not say what it was made from (`basis`), so it can't be planned again"
            yield tree.problem(("replan",), message, "write it anew with `dataflower plan`; not for a recording")
        return
    if set(document.basis.stages) != set(document.stages):
        yield tree.problem(("basis", "stages"), "it is about other stages than the plan", "plan again")
        return
    try:
        question_of(document.basis, document.workflow)
    except (InvalidArgument, ValueError) as error:
        yield tree.problem(("basis",), str(error))


def as_it_starts(stage: StageDocument) -> StartedDocument:
    """What containers of a stage that works in tokens are started for."""
    assert stage.tokens is not None, "it does not work in tokens"
    return stage.tokens.started or StartedDocument(
        concurrency=max(group.batch for group in stage.groups),
        sequences=stage.tokens.sequences,
        step_tokens=stage.tokens.step_tokens,
    )


def check_against(document: PlanDocument, workflow: Workflow, file: str) -> None:
    """Refuse a plan that was made for another workflow, or for another version of this one.

    Raises:
        DocumentInvalid: another name, or stages that only one of the two has.
    """
    wanted = {name for name, stage in workflow.stages.items() if not stage.is_switch}
    messages = []
    if document.workflow != workflow.name:
        messages.append((f"the plan is for workflow {document.workflow!r}, not {workflow.name!r}", ""))
    else:
        unknown, missing = sorted(set(document.stages) - wanted), sorted(wanted - set(document.stages))
        messages += [(f"the workflow has no stage {name!r}", did_you_mean(name, wanted)) for name in unknown]
        messages += [(f"the plan has nothing for stage {name!r}", "plan again") for name in missing]
    if messages:
        raise DocumentInvalid(tuple(Problem(file, 1, 1, message, hint) for message, hint in messages))


def document_of(
    plan: Plan,
    options: Options,
    method: str = "ours",
    question: Question | None = None,
    weights: Mapping[str, Weights] | None = None,
) -> PlanDocument:
    """A plan as a document; `options` are those that it was made with.

    `question`: what it answers, kept as the plan's basis so that it can be asked again for another rate.
    `weights`: of stages, where they are and how long they take to load.
    """
    away: set[tuple[str, int]] = set()
    shared = []
    for machine in plan.shared:
        for share in machine.shares:
            if share.workflow == plan.application:
                away.add((share.stage, share.tuple_index))
        shared.append(
            SharedDocument(
                device=machine.hardware,
                cycle_ms=_ms(machine.cycle_s),
                shares=[
                    ShareDocument(
                        workflow=s.workflow, stage=s.stage, group=s.tuple_index, batch=s.batch, rate_per_s=_rate(s.rate)
                    )
                    for s in machine.shares
                ],
            )
        )
    return PlanDocument(
        apiVersion="dataflower/v1",
        workflow=plan.application,
        rate_per_s=plan.rate,
        slo_ms=_ms(plan.slo_s),
        percentile=plan.percentile,
        arrivals=options.arrivals.value,
        method=method,
        dispatch="group" if options.dispatch is Dispatch.GROUP else "ranked",
        billing="use" if options.billing is Billing.USE else "integer",
        cost_per_hour=_rate(plan.cost),
        cost_per_1000=_rate(plan.cost_per_1000),
        worst_ms=_ms(plan.worst_s),
        path=list(plan.path),
        stages={
            stage.stage: _stage(
                stage,
                away,
                None if question is None else question.tokens.get(stage.stage),
                None if weights is None else weights.get(stage.stage),
            )
            for stage in plan.stages
        },
        shared=shared,
        replan=Replan.OFF,
        basis=None if question is None else basis_of(question),
    )


def _stage(
    stage: StagePlan, away: set[tuple[str, int]], tokens: TokenStage | None, weights: Weights | None
) -> StageDocument:
    return StageDocument(
        budget_ms=_ms(stage.budget_s),
        rate_per_s=_rate(stage.rate),
        dummy_rate_per_s=_rate(stage.dummy_rate),
        groups=[_group(stage, a, is_shared=(stage.stage, i) in away) for i, a in enumerate(stage.tuples)],
        tokens=None if tokens is None or stage.tokens is None else _tokens(stage.tokens, tokens),
        weights=None if weights is None else weights_document(stage, weights),
    )


def _tokens(found: TokenPlan, stage: TokenStage) -> TokensDocument:
    limits = {
        f"{name}_limit_ms": None if value is None else _ms(value)
        for name, value in (("ttft", stage.ttft_s), ("tpot", stage.tpot_s), ("itl", stage.gap_s))
    }
    ttft, tpot, itl = limits.values()
    settings = {"max_sequences": found.sequences, "step_tokens": found.step_tokens, "ttft_ms": ttft, "tpot_ms": tpot}
    return TokensDocument(
        sequences=found.sequences,
        step_tokens=found.step_tokens,
        ttft_ms=_ms(found.steady.ttft_s),
        tpot_ms=_ms(found.steady.tpot_s),
        itl_ms=_ms(found.gap_s),
        ttft_limit_ms=ttft,
        tpot_limit_ms=tpot,
        itl_limit_ms=itl,
        prompt_tokens=LengthsDocument(mean=_rate(stage.prompt[0]), high=_rate(stage.prompt[1])),
        output_tokens=LengthsDocument(mean=_rate(stage.output[0]), high=_rate(stage.output[1])),
        params={name: value for name, value in settings.items() if name in stage.takes and value is not None},
    )


def _group(stage: StagePlan, a: Allotment, *, is_shared: bool) -> GroupDocument:
    c = a.configuration
    full = math.floor(a.machines + ROUNDING)
    if is_shared and a.machines <= 1 + ROUNDING:  # all of it
        full = 0
    return GroupDocument(
        device=c.hardware,
        batch=c.batch,
        machines=_rate(a.machines),
        replicas=full if is_shared else whole(a.machines),
        rate_per_s=_rate(a.rate),
        duration_ms=_ms(c.duration_s),
        timeout_ms=_ms(stage.timeout_s(c)),
        worst_ms=_ms(a.worst_s),
    )


def _ms(seconds: float) -> float:
    return _rate(seconds * 1000)


def _rate(value: float) -> float:
    """To nine significant digits, which is finer than anything measured."""
    return float(f"{value:.9g}")
