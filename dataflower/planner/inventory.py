"""What a plan may use: measured profiles, tables from elsewhere and prices, put together for one workflow. Pure.

Every profile is keyed by the stage that it is for: a measured profile names stages itself, a table names models, which
the caller maps stages to (a stage that is not mapped is looked for under its own name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dataflower.errors import InvalidArgument, NotFound, Problem
from dataflower.planner.answers import TokenKind, TokenStage
from dataflower.planner.application import Application, Fanned, from_workflow
from dataflower.planner.measured import (
    Lengths,
    ProfileDocument,
    TokensProfile,
    hardware,
    parse_measured,
    profiles_of,
)
from dataflower.planner.profile import Device, Profile, Profiles
from dataflower.planner.reading import DocumentInvalid
from dataflower.planner.table import Dips, models_in, parse_prices, parse_profiles
from dataflower.planner.token_fit import cost_of
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import parse
from dataflower.spec.workflow import Workflow

ASSUMED_PRICE = 1.0
"""For an hour of a device that was measured here, where there is no price file."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text and its name, for messages."""

    text: str
    file: str

    @property
    def is_table(self) -> bool:
        """Whether it is CSV; everything else is YAML."""
        return self.file.endswith(".csv")


Length = tuple[float, float]
"""Tokens: the mean, and at the percentile."""


EVERY = "*"
"""Stands for every stage that works in tokens."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller says about a workflow; see `from_workflow` for `models`, `items` and `shares`.

    Attributes:
        high: plan with the 90th percentile of measured durations instead of the median.
        busy: plan with durations measured while the other cores were busy, where there are any.
        prompts: stage that works in tokens -> tokens of its prompts: the mean, and at the percentile (0: as much more
            than the mean as in real runs). `EVERY` for all that are not named.
        answers: likewise of its answers.
        mend: accept tables in which a larger batch is measured faster (`Dips.MEND`).
        only: devices that may be used; all if empty.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    high: bool = True
    busy: bool = True
    prompts: Mapping[str, Length] = field(default_factory=dict)
    answers: Mapping[str, Length] = field(default_factory=dict)
    mend: bool = False
    only: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Inventory:
    """A workflow as an application, and everything that it may run on.

    Attributes:
        application: its stages.
        profiles: how long they take.
        documents: the measured profiles that this is from.
        notes: what was assumed.
        tokens: the stages that work in tokens.
        streams: of them, those whose answers leave the workflow token by token.
    """

    application: Application
    profiles: Profiles
    documents: tuple[ProfileDocument, ...] = ()
    notes: tuple[str, ...] = ()
    tokens: Mapping[str, TokenStage] = field(default_factory=dict)
    streams: tuple[str, ...] = ()


def take_stock(
    workflow: Workflow, sources: Sequence[Source], prices: Source | None = None, wishes: Wishes | None = None
) -> Inventory:
    """Read profiles and prices, and check that every stage can run somewhere.

    Raises:
        DocumentInvalid: a profile that does not hold together, or is for a device without a price.
        ProfileInvalid: the same for a table or the price file.
        InvalidArgument: a stage that is mapped but not there, or has no number of items.
        NotFound: a stage without any profile.
    """
    wishes = wishes or Wishes()
    stages = [name for name, stage in workflow.stages.items() if not stage.is_switch]
    for name in wishes.models:
        if name not in stages:
            raise InvalidArgument(f"no stage {name!r} ({did_you_mean(name, stages)})")
    devices = parse_prices(prices.text, prices.file) if prices is not None else {}
    documents: list[ProfileDocument] = []
    notes: list[str] = []
    for source in sources:
        if not source.is_table:
            document = parse_measured(source.text, source.file)
            if document.workflow == workflow.name:
                _know_device(document, source, prices, devices, notes)
                documents.append(document)
    found: list[Profile] = []
    needed: dict[str, Device] = {}
    tables = [source for source in sources if source.is_table]
    for source in tables:
        found += _from_table(source, stages, devices, wishes)
    _look_for_models(tables, wishes)
    measured, own = profiles_of(documents, devices, high=wishes.high, busy=wishes.busy)
    found += measured
    needed.update({p.hardware: devices[p.hardware] for p in found if p.hardware in devices})
    needed.update(own)
    if wishes.only:
        for name in wishes.only:
            if name not in needed:
                raise InvalidArgument(
                    f"no profile on device {name!r} ({did_you_mean(name, needed, none='there is none')})"
                )
        found = [p for p in found if p.hardware in wishes.only]
    found = [_trimmed(p, workflow) for p in found]
    _distinct(found)
    fanned = _fanned(documents)
    _complain(stages, found, documents)
    application = from_workflow(workflow, items=wishes.items, shares=wishes.shares, measured=fanned)
    tokens = _token_stages(documents, needed, wishes)
    streams = tuple(name for name in tokens if _streams_out(workflow, name))
    return Inventory(application, Profiles(tuple(found), needed), tuple(documents), tuple(notes), tokens, streams)


def _token_stages(
    documents: Sequence[ProfileDocument], devices: Mapping[str, Device], wishes: Wishes
) -> dict[str, TokenStage]:
    """The stages whose prompts and answers were measured apart, with the lengths that are wished for."""
    kinds: dict[str, list[TokenKind]] = {}
    measured: dict[str, TokensProfile] = {}
    for document in documents:
        for name, stage in document.stages.items():
            label = hardware(document.device, stage.cores)
            if stage.tokens is None or label not in devices or (wishes.only and label not in wishes.only):
                continue
            cost = cost_of(stage.tokens, high=wishes.high, busy=wishes.busy)
            kinds.setdefault(name, []).append(TokenKind(label, devices[label].price, cost))
            measured[name] = stage.tokens
    for name in (*wishes.prompts, *wishes.answers):
        if name not in measured and not (name == EVERY and measured):
            hint = did_you_mean(name, measured, none="none of them does; profile again if one has a language model")
            raise InvalidArgument(f"stage {name!r} has no profile of tokens ({hint})")
    found = {}
    for name, tokens in measured.items():
        prompt = _length(wishes.prompts.get(name, wishes.prompts.get(EVERY)), tokens.prompt)
        output = _length(wishes.answers.get(name, wishes.answers.get(EVERY)), tokens.output)
        if prompt[1] + output[1] > tokens.context:
            raise InvalidArgument(
                f"stage {name!r}: {prompt[1]:g} tokens of a prompt and {output[1]:g} of its answer do not fit into the "
                f"model's context of {tokens.context}"
            )
        found[name] = TokenStage(tuple(kinds[name]), prompt, output, tokens.generations, takes=tuple(tokens.takes))
    return found


def _length(wish: Length | None, seen: Lengths) -> Length:
    if wish is None:
        return seen.mean, seen.high
    mean, high = wish
    return mean, high or max(mean, mean * seen.high / seen.mean)


def _streams_out(workflow: Workflow, name: str) -> bool:
    ports = {port.name for port in workflow.stages[name].outputs if port.stream}
    return any(out.edge.source.stage == name and out.edge.source.port in ports for out in workflow.outputs)


def _trimmed(profile: Profile, workflow: Workflow) -> Profile:
    """Without batches that the stage does not take."""
    batch = workflow.stages[profile.model].batch
    most = 1 if batch is None else batch.max_size
    return replace(profile, points=tuple(p for p in profile.points if p.batch <= most))


def _know_device(
    document: ProfileDocument, source: Source, prices: Source | None, devices: dict[str, Device], notes: list[str]
) -> None:
    if document.device in devices:
        return
    if prices is None:
        devices[document.device] = Device(document.device, ASSUMED_PRICE)
        notes.append(f"no price file: an hour of {document.device} counts as {ASSUMED_PRICE:g}")
        return
    tree = parse(source.text, source.file)
    hint = f"{did_you_mean(document.device, devices, none='it is empty')}; add it to {prices.file}"
    raise DocumentInvalid((tree.problem(("device",), f"unknown device {document.device!r}", hint),))


def _from_table(source: Source, stages: Sequence[str], devices: Mapping[str, Device], wishes: Wishes) -> list[Profile]:
    """The rows of a table for these stages, under their names."""
    models = {name: wishes.models.get(name, name) for name in stages}
    parsed = parse_profiles(
        source.text,
        source.file,
        devices,
        models=frozenset(models.values()),
        dips=Dips.MEND if wishes.mend else Dips.REFUSE,
    )
    return [replace(p, model=stage) for stage, model in models.items() for p in parsed if p.model == model]


def _look_for_models(tables: Sequence[Source], wishes: Wishes) -> None:
    if not wishes.models:
        return
    known = {model for source in tables for model in models_in(source.text)}
    for stage, model in wishes.models.items():
        if model not in known:
            where = tables[0].file if tables else "--profiles"
            hint = did_you_mean(model, known, none="there are none")
            raise DocumentInvalid((Problem(where, 1, 1, f"no model {model!r}, wanted for stage {stage!r}", hint),))


def _distinct(found: Sequence[Profile]) -> None:
    seen: set[tuple[str, str]] = set()
    for p in found:
        if (p.model, p.hardware) in seen:
            raise InvalidArgument(f"stage {p.model!r} has two profiles on {p.hardware}: leave one of the files out")
        seen.add((p.model, p.hardware))


def _fanned(documents: Sequence[ProfileDocument]) -> Fanned | None:
    """From the profile with the most real runs."""
    return max(documents, key=lambda d: d.invocations).fanned() if documents else None


def _complain(stages: Sequence[str], found: Sequence[Profile], documents: Sequence[ProfileDocument]) -> None:
    missing = [name for name in stages if not any(p.model == name for p in found)]
    if not missing:
        return
    name = missing[0]
    if any(name in d.stages and not d.stages[name].points for d in documents):
        raise NotFound(f"stage {name!r} never ran when it was profiled: profile again with inputs that lead to it")
    raise NotFound(
        f"no profile of stage {name!r}: measure it with `dataflower profile`, or name its model in a table (--model)"
    )
