"""What a plan was made from, kept in its file: whoever runs by it can plan again without the profiles at hand."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field

from dataflower.errors import InvalidArgument
from dataflower.planner.application import Application, Module
from dataflower.planner.options import Options
from dataflower.planner.profile import Device, Point, Profile, Profiles
from dataflower.planner.question import Question
from dataflower.planner.token_basis import TokensBasis, token_stage, tokens_basis
from dataflower.spec.document import Document

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Switch = str | bool | int | float | None


class PointBasis(Document):
    """How long a batch takes, and what it holds in memory."""

    batch: int = Field(ge=1)
    duration_ms: Positive
    std_ms: NotNegative | None = None
    memory_bytes: int | None = Field(None, ge=0)


class StageBasis(Document):
    """A stage as the planner sees it."""

    factor: Positive = Field(default=1.0, description="Tasks for one invocation, on the average")
    most: int = Field(default=0, ge=0, description="Tasks of one invocation at once; 0: not known")
    after: list[str] = Field(default_factory=list, description="Stages that it waits for")
    batches: list[int] = Field(default_factory=list, description="Batch sizes to consider between the measured ones")
    points: dict[str, list[PointBasis]] = Field(min_length=1, description="By kind of device")
    slowdown: float = Field(
        default=1.0, ge=1.0, le=100.0, description="What durations are counted as, over `points`: measured by a server"
    )
    tokens: TokensBasis | None = Field(default=None, description="Of a language model: costs of steps and prompts")
    cap_ms: Positive | None = Field(default=None, description="What an objective for the first token leaves the stage")


class DeviceBasis(Document):
    """A kind of machine."""

    price: Positive = Field(description="Of an hour")
    memory_bytes: int | None = Field(None, ge=0)


class BasisDocument(Document):
    """Profiles, prices and the method: everything that planning takes besides a rate and an SLO."""

    options: dict[str, Switch] = Field(
        default_factory=dict, description="Switches of the method that aren't at default"
    )
    devices: dict[str, DeviceBasis] = Field(min_length=1)
    stages: dict[str, StageBasis] = Field(min_length=1)


def basis_of(question: Question) -> BasisDocument | None:
    """The basis of plans that answer a question; None for recorded arrivals, which no plan file has room for."""
    if question.trace is not None:
        return None
    application, profiles = question.application, question.profiles
    used = {module.model for module in application.modules}
    own = [p for p in profiles.profiles if p.model in used]
    kinds = dict.fromkeys(p.hardware for p in own)
    return BasisDocument(
        options=_switches(question.options),
        devices={name: _device(profiles.devices[name]) for name in kinds},
        stages={
            module.name: StageBasis(
                factor=module.factor,
                most=module.most,
                after=list(application.parents[module.name]),
                batches=list(question.batches.get(module.model, ())),
                points={p.hardware: [_point(point) for point in p.points] for p in own if p.model == module.model},
                tokens=tokens_basis(question.tokens[module.name]) if module.name in question.tokens else None,
                cap_ms=_ms(question.caps[module.name]) if module.name in question.caps else None,
            )
            for module in application.modules
        },
    )


def question_of(
    basis: BasisDocument, workflow: str, allows: Callable[[str, str], bool] = lambda stage, device: True
) -> Question:
    """The question again. `workflow`: its name; `allows`: whether a stage may run on a device.

    Raises:
        InvalidArgument: the stages don't hold together, an option is unknown, or no profile is left for a stage.
    """
    modules = tuple(Module(name, name, stage.factor, stage.most) for name, stage in basis.stages.items())
    edges = tuple((parent, name) for name, stage in basis.stages.items() for parent in stage.after)
    found = []
    for name, stage in basis.stages.items():
        own = {kind: points for kind, points in stage.points.items() if allows(name, kind)}
        if not own:
            raise InvalidArgument(f"stage {name!r} has a profile on {', '.join(stage.points)} only, which is not here")
        for kind, points in own.items():
            if kind not in basis.devices:
                raise InvalidArgument(f"stage {name!r} has a profile on {kind!r}, which is not among the devices")
            if [p.batch for p in points] != sorted({p.batch for p in points}) or not points:
                raise InvalidArgument(f"the batches of stage {name!r} on {kind!r} do not rise")
            found.append(Profile(name, kind, tuple(_measured(p, stage.slowdown) for p in points)))
    prices = {name: Device(name, device.price, device.memory_bytes) for name, device in basis.devices.items()}
    batches = {name: tuple(stage.batches) for name, stage in basis.stages.items() if stage.batches}
    tokens = {
        name: token_stage(name, stage.tokens, stage.slowdown, allows)
        for name, stage in basis.stages.items()
        if stage.tokens is not None
    }
    caps = {name: stage.cap_ms / 1000 for name, stage in basis.stages.items() if stage.cap_ms is not None}
    application = Application(workflow, modules, edges)
    profiles = Profiles(tuple(found), prices)
    return Question(application, profiles, _options(basis.options), batches, tokens=tokens, caps=caps)


def _switches(options: Options) -> dict[str, Switch]:
    found: dict[str, Switch] = {}
    for field in fields(Options):
        value: Any = getattr(options, field.name)
        if value != field.default:
            found[field.name] = value.value if isinstance(value, enum.Enum) else value
    return found


def _options(switches: dict[str, Switch]) -> Options:
    defaults = {field.name: field.default for field in fields(Options)}
    values: dict[str, Any] = {}
    for name, value in switches.items():
        if name not in defaults:
            raise InvalidArgument(f"there is no option {name!r}")
        default: Any = defaults[name]
        values[name] = type(default)(value) if isinstance(default, enum.Enum) else value
    try:
        return Options(**values)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"the options do not fit together: {error}") from None


def _device(device: Device) -> DeviceBasis:
    return DeviceBasis(price=device.price, memory_bytes=device.memory_bytes)


def _point(point: Point) -> PointBasis:
    std_ms = None if point.std_s is None else _ms(point.std_s)
    return PointBasis(
        batch=point.batch, duration_ms=_ms(point.duration_s), std_ms=std_ms, memory_bytes=point.memory_bytes
    )


def slowdown_of(basis: BasisDocument) -> dict[str, float]:
    """What durations of stages are counted as, over the profile, where that is more than 1."""
    return {name: stage.slowdown for name, stage in basis.stages.items() if stage.slowdown > 1}


def slowed(basis: BasisDocument, slowdown: Mapping[str, float]) -> BasisDocument:
    """The same basis with durations counted as so many times the profile's; 1 for stages that are not named."""
    stages = {
        name: stage.model_copy(update={"slowdown": slowdown.get(name, 1.0)}) for name, stage in basis.stages.items()
    }
    return basis.model_copy(update={"stages": stages})


def _measured(point: PointBasis, slowdown: float) -> Point:
    std_s = None if point.std_ms is None else point.std_ms / 1000 * slowdown
    return Point(point.batch, point.duration_ms / 1000 * slowdown, std_s, point.memory_bytes)


def _ms(seconds: float) -> float:
    """To nine significant digits, which is finer than anything measured."""
    return float(f"{seconds * 1000:.9g}")
