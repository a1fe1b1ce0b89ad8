"""A measured profile as a file: what `dataflower profile` writes and `dataflower plan` reads. Durations in ms.

One file holds one workflow on one kind of machine: for each stage the duration of batches, how often it runs for one
invocation, and its memory. Several files together (other devices, tables from elsewhere) make the `Profiles` of a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dataflower.errors import Problem
from dataflower.planner.application import Fanned
from dataflower.planner.profile import Device, Point, Profile
from dataflower.planner.reading import DocumentInvalid, read
from dataflower.planner.table import Dips, series
from dataflower.spec.document import Document

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
    document, tree = read(text, file, ProfileDocument)
    problems: list[Problem] = []
    for name, stage in document.stages.items():
        rows = [
            (tree.problem(("stages", name, "points", i), "").line, Point(p.batch, p.duration_ms / 1000))
            for i, p in enumerate(stage.points)
        ]
        if rows:

            def blame(line: int, column: int, message: str, hint: str = "") -> None:
                problems.append(Problem(file, line, column, message, hint))

            series(blame, 1, (name, document.device), rows, Dips.REFUSE)
    if problems:
        raise DocumentInvalid(tuple(sorted(problems, key=lambda p: (p.line, p.column))))
    return document


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
