"""A measured profile as a file: what `dataflower profile` writes and `dataflower plan` reads. Durations in ms.

One file holds one workflow on one kind of machine: for each stage the duration of batches, how often it runs for one
invocation, and its memory. Several files together (other devices, tables from elsewhere) make the `Profiles` of a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dataflower.errors import Problem
from dataflower.planner.application import Fanned
from dataflower.planner.profile import Device, Point, Profile
from dataflower.planner.reading import DocumentInvalid, read
from dataflower.planner.table import Dips, series
from dataflower.spec.document import Document
from dataflower.spec.tree import Path, Tree

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


NOISE = 0.03
"""More tokens may seem quicker by this share."""


class PointDocument(Document):
    """One batch size. A duration is from the batch's hand-over to a container until its results are back."""

    batch: int = Field(ge=1)
    duration_ms: Positive = Field(description="Median")
    high_ms: Positive | None = Field(default=None, description="90th percentile")
    busy_ms: Positive | None = Field(default=None, description="Median while the other cores are busy")
    busy_high_ms: Positive | None = Field(default=None, description="90th percentile of that")
    std_ms: NotNegative = Field(default=0.0, description="Spread, from the quartiles")
    runs: int = Field(default=1, ge=1)
    steady: bool = Field(default=True, description="The median is known to within 5 % (95 % confidence)")
    memory_bytes: int | None = Field(default=None, ge=1, description="Most that the container had for itself")


class TokenPoint(Document):
    """A duration of a language model: of a prompt, or of a step that decodes."""

    duration_ms: Positive = Field(description="Median")
    high_ms: Positive | None = Field(default=None, description="90th percentile")
    busy_ms: Positive | None = Field(default=None, description="Median while the other cores are busy")
    busy_high_ms: Positive | None = Field(default=None, description="90th percentile of that")
    runs: int = Field(default=1, ge=1)
    steady: bool = Field(default=True, description="The median is known to within 5 % (95 % confidence)")


class PrefillPoint(TokenPoint):
    """From a prompt of so many tokens to its first token, nothing beside it."""

    tokens: int = Field(ge=1)


class DecodePoint(TokenPoint):
    """A step that decodes a token of each of `batch` sequences that hold `context` tokens each."""

    batch: int = Field(ge=1)
    context: int = Field(ge=1)


class Lengths(Document):
    """Tokens of prompts or answers, as real runs had them."""

    mean: Positive
    high: Positive = Field(description="The most that was seen")

    @model_validator(mode="after")
    def _holds(self) -> Lengths:
        if self.mean > self.high:
            raise ValueError(f"a mean of {self.mean:g} tokens can't be above the most, {self.high:g}")
        return self


class TokensProfile(Document):
    """What a stage costs that works in tokens: prompts and answers apart."""

    sequences: int = Field(ge=1, description="Answers that one replica writes at a time, at most")
    step_tokens: int = Field(ge=2, description="Tokens that a step computes at most")
    kv_tokens: int | None = Field(default=None, ge=1, description="Tokens for whose keys and values there is room")
    context: int = Field(ge=2, description="Tokens of one sequence, at most")
    takes: list[str] = Field(default_factory=list, description="Of these limits, those that `setup` takes by name")
    generations: Positive = Field(default=1.0, description="Answers for one task, on the average")
    prompt: Lengths
    output: Lengths
    prefill: list[PrefillPoint] = Field(min_length=2)
    decode: list[DecodePoint] = Field(min_length=1)

    @model_validator(mode="after")
    def _holds(self) -> TokensProfile:
        sizes = [point.tokens for point in self.prefill]
        if sizes != sorted(set(sizes)):
            raise ValueError("prefill: the tokens must rise from point to point")
        if 1 not in {point.batch for point in self.decode}:
            raise ValueError("decode: a point for batch 1 is missing")
        if len({(point.batch, point.context) for point in self.decode}) < len(self.decode):
            raise ValueError("decode: two points for one batch and context")
        if self.step_tokens <= self.sequences:
            raise ValueError(f"step_tokens: {self.step_tokens} leave no room beside {self.sequences} sequences")
        return self


class StageProfile(Document):
    """What was measured of one stage."""

    function: str = ""
    digest: str = Field(default="", description="Of function, params and the files that it read")
    cores: float = Field(default=1.0, gt=0, description="Cores of one replica")
    tasks: NotNegative = Field(default=1.0, description="For one invocation, on the average")
    most: int = Field(default=0, ge=0, description="Of one invocation")
    start_ms: NotNegative | None = Field(default=None, description="From the order of a container to its readiness")
    first_ms: Positive | None = Field(default=None, description="The first task of a new container")
    how: Literal["alone", "in place"] = Field(default="alone", description="On recorded inputs, or within real runs")
    points: list[PointDocument] = Field(default_factory=list)
    tokens: TokensProfile | None = Field(default=None, description="Of a language model: prefill and decode apart")

    @property
    def is_steady(self) -> bool:
        """Whether what plans count on is known to within 5 %."""
        if self.tokens is not None:
            return all(point.steady for point in (*self.tokens.prefill, *self.tokens.decode))
        return all(point.steady for point in self.points)


class ProfileDocument(Document):
    """The profile of a workflow."""

    api_version: Literal["dataflower/v1"] = Field(default="dataflower/v1", alias="apiVersion")
    kind: Literal["Profile"] = "Profile"
    workflow: str = Field(min_length=1)
    device: str = Field(min_length=1, description="Kind of machine, as the price file calls it")
    machine: str = Field(default="", description="What it was measured on")
    measured_at: str = ""
    invocations: int = Field(default=1, ge=1, description="Real runs that the numbers of tasks are from")
    items: dict[str, NotNegative] = Field(default_factory=dict, description="Items for one task, by fan-out")
    stages: dict[str, StageProfile] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _is_profile(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind", "Profile") != "Profile":
            raise ValueError(f"kind: {data['kind']} is not a Profile (`dataflower profile` writes one)")
        return data

    def as_data(self) -> dict[str, Any]:
        """Plain values for YAML; `parse_measured` reads them back."""
        return self.model_dump(by_alias=True, mode="json", exclude_none=True)

    def fanned(self) -> Fanned:
        """How often each stage runs."""
        tasks = {name: (stage.tasks, stage.most) for name, stage in self.stages.items()}
        return Fanned(tasks, dict(self.items))


def parse_measured(text: str, file: str) -> ProfileDocument:
    """The profile in a YAML text.

    Raises:
        DocumentInvalid: not a profile; gaps between batches, falling or missing durations.
    """
    document, tree = read(text, file, ProfileDocument, "`dataflower profile` measures one")
    problems: list[Problem] = []

    def blame(line: int, column: int, message: str, hint: str = "") -> None:
        problems.append(Problem(file, line, column, message, hint))

    for name, stage in document.stages.items():
        rows = [
            (tree.problem(("stages", name, "points", i), "").line, Point(p.batch, p.duration_ms / 1000))
            for i, p in enumerate(stage.points)
        ]
        if rows:
            series(blame, 1, (name, document.device), rows, Dips.REFUSE)
        if stage.tokens is not None:
            problems += _falling(stage.tokens, tree, ("stages", name, "tokens"))
    if problems:
        raise DocumentInvalid(tuple(sorted(problems, key=lambda p: (p.line, p.column))))
    return document


def _falling(tokens: TokensProfile, tree: Tree, at: Path) -> Iterator[Problem]:
    """Times that fall by more than noise as there is more to compute: somebody mixed them up."""
    for i, (one, other) in enumerate(pairwise(tokens.prefill), 1):
        if other.duration_ms < one.duration_ms * (1 - NOISE):
            message = f"a prompt of {other.tokens} tokens takes less than one of {one.tokens} ({one.duration_ms:g} ms)"
            yield tree.problem((*at, "prefill", i, "duration_ms"), message, "profile again")
    for i, two in enumerate(tokens.decode):
        for less in tokens.decode:
            smaller = less.batch <= two.batch and less.context <= two.context
            if smaller and two.duration_ms < less.duration_ms * (1 - NOISE):
                message = (
                    f"a step of {two.batch} sequences of {two.context} tokens takes less than one of {less.batch} of "
                    f"{less.context} ({less.duration_ms:g} ms)"
                )
                yield tree.problem((*at, "decode", i, "duration_ms"), message, "profile again")
                break


def hardware(device: str, cores: float) -> str:
    """What a replica with so many cores of a device is called."""
    return device if cores == 1 else f"{device} x{cores:g}"


def kind_of(label: str) -> str:
    """The device of a replica that is called so."""
    device, _, cores = label.rpartition(" x")
    return device if device and cores.replace(".", "", 1).isdigit() else label


def profiles_of(
    documents: Sequence[ProfileDocument], devices: Mapping[str, Device], *, high: bool = False, busy: bool = False
) -> tuple[tuple[Profile, ...], dict[str, Device]]:
    """Profiles whose models are the stages' names, and the devices that they need, at their price for one core.

    Args:
        documents: of one workflow, on different devices.
        devices: by name; a replica with n cores costs n times the price of one.
        high: plan with the 90th percentile of the durations instead of the median.
        busy: plan with what was measured while the other cores were busy, where that is known.

    Raises:
        KeyError: a device without a price; the caller knows which file is to blame.
    """
    found: list[Profile] = []
    needed: dict[str, Device] = {}
    for document in documents:
        device = devices[document.device]
        for name, stage in document.stages.items():
            if not stage.points:
                continue
            label = hardware(document.device, stage.cores)
            needed[label] = Device(label, device.price * stage.cores, device.memory_bytes)
            longest, points = 0.0, []
            for p in stage.points:
                longest = max(longest, _counted_ms(p, high=high, busy=busy) / 1000)
                points.append(Point(p.batch, longest, p.std_ms / 1000, p.memory_bytes))
            found.append(Profile(name, label, tuple(points)))
    return tuple(found), needed


def _counted_ms(point: PointDocument, *, high: bool, busy: bool) -> float:
    """The duration that a plan reckons with."""
    alone = point.high_ms if high and point.high_ms else point.duration_ms
    if not busy or point.busy_ms is None:
        return alone
    return max(alone, point.busy_high_ms if high and point.busy_high_ms else point.busy_ms)
