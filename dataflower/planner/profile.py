"""How long a batch takes on which device, and what the device costs.

Tables are read by `table`; this module holds what came out of them and fills the gaps between measured batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dataflower.errors import NotFound


@dataclass(frozen=True, slots=True)
class Point:
    """One measured batch size: `duration_s` is the time of the whole batch, `std_s` its spread if it is known."""

    batch: int
    duration_s: float
    std_s: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A duration with the relative error to expect of it; `confidence` is 1 - `error`, not below 0."""

    batch: int
    duration_s: float
    error: float
    measured: bool

    @property
    def confidence(self) -> float:
        """Between 0 (a guess) and 1 (measured, no spread)."""
        return max(0.0, 1.0 - self.error)

    @property
    def safe_s(self) -> float:
        """The duration with its error added: what a plan should count on."""
        return self.duration_s * (1.0 + self.error)


@dataclass(frozen=True)
class Profile:
    """A model on a device: points with rising batch sizes and durations that don't fall."""

    model: str
    hardware: str
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError(f"profile of {self.model} on {self.hardware} has no points")
        for point in self.points:
            if point.batch < 1 or not (math.isfinite(point.duration_s) and point.duration_s > 0):
                raise ValueError(f"profile of {self.model} on {self.hardware}: batch {point.batch} is not positive")
        for a, b in zip(self.points, self.points[1:], strict=False):
            if b.batch <= a.batch or b.duration_s < a.duration_s:
                raise ValueError(f"profile of {self.model} on {self.hardware}: batch {b.batch} breaks the rising order")

    @cached_property
    def interpolation_error(self) -> float:
        """Median relative error when each inner point is predicted from its neighbours; 0.5 if there are none."""
        errors = []
        for a, b, c in zip(self.points, self.points[1:], self.points[2:], strict=False):
            guess = _between(a, c, b.batch)
            errors.append(abs(guess - b.duration_s) / b.duration_s)
        return statistics.median(errors) if errors else 0.5

    def estimate(self, batch: int) -> Estimate:
        """Duration of a batch, straight between measured neighbours.

        The error is the spread of the measurements, and between them also the error that interpolation makes at the
        points where it can be checked, largest half-way. Beyond the measured batches nothing is estimated.

        Raises:
            NotFound: `batch` lies outside the measured range.
        """
        first, last = self.points[0].batch, self.points[-1].batch
        if not first <= batch <= last:
            raise NotFound(f"{self.model} on {self.hardware} is measured for batches {first} to {last}, not {batch}")
        right = next(i for i, point in enumerate(self.points) if point.batch >= batch)
        b = self.points[right]
        if b.batch == batch:
            return Estimate(batch, b.duration_s, _spread(b), measured=True)
        a = self.points[right - 1]
        share = (batch - a.batch) / (b.batch - a.batch)
        error = math.hypot(max(_spread(a), _spread(b)), self.interpolation_error * 4 * share * (1 - share))
        return Estimate(batch, _between(a, b, batch), error, measured=False)


def _between(a: Point, b: Point, batch: int) -> float:
    return a.duration_s + (b.duration_s - a.duration_s) * (batch - a.batch) / (b.batch - a.batch)


def _spread(point: Point) -> float:
    return (point.std_s or 0.0) / point.duration_s


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of machine: its price for an hour (any currency, the same for all) and its memory if it limits."""

    name: str
    price: float
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """A batch size on a device: `duration_s` of the batch, `price` of the machine for an hour.

    `memory_bytes` of what runs there and `limit_bytes` of the machine decide who may share it; 0 where unknown.
    """

    batch: int
    duration_s: float
    hardware: str
    price: float
    memory_bytes: int = 0
    limit_bytes: int = 0

    @property
    def throughput(self) -> float:
        """Requests that one machine serves in a second."""
        return self.batch / self.duration_s

    @property
    def ratio(self) -> float:
        """Throughput for the price: requests a second for one unit of price an hour."""
        return self.throughput / self.price

    def __str__(self) -> str:
        return f"{self.hardware} batch {self.batch}"


def ranked(configurations: Iterable[Configuration]) -> tuple[Configuration, ...]:
    """Best throughput for the price first; ties in a fixed order (shorter, then smaller, then by name)."""
    return tuple(sorted(configurations, key=lambda c: (-c.ratio, c.duration_s, c.batch, c.hardware)))


@dataclass(frozen=True)
class Profiles:
    """All profiles and all devices that a plan may use."""

    profiles: tuple[Profile, ...]
    devices: Mapping[str, Device] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[tuple[str, str]] = set()
        for profile in self.profiles:
            if profile.hardware not in self.devices:
                raise ValueError(f"profile of {profile.model} is for {profile.hardware}, which has no price")
            if (profile.model, profile.hardware) in seen:
                raise ValueError(f"two profiles of {profile.model} on {profile.hardware}")
            seen.add((profile.model, profile.hardware))

    @property
    def models(self) -> tuple[str, ...]:
        """All models, sorted."""
        return tuple(sorted({p.model for p in self.profiles}))

    def find(self, model: str, hardware: str) -> Profile:
        """The profile of a model on a device.

        Raises:
            NotFound: there is none.
        """
        for profile in self.profiles:
            if (profile.model, profile.hardware) == (model, hardware):
                return profile
        raise NotFound(f"no profile of {model!r} on {hardware!r}")

    def configurations(self, model: str, *, batches: Iterable[int] = ()) -> tuple[Configuration, ...]:
        """Every configuration of a model, ranked: its measured batches, and `batches` where they lie between.

        Interpolated durations are taken with their error added. Configurations that do not fit into the memory of
        their device are left out.

        Raises:
            NotFound: the model has no profile, or fits on no device.
        """
        found: list[Configuration] = []
        extra = tuple(batches)
        profiles = [p for p in self.profiles if p.model == model]
        if not profiles:
            raise NotFound(f"no profile of {model!r}; there are {', '.join(self.models) or 'none'}")
        for profile in profiles:
            device = self.devices[profile.hardware]
            fitting = [p for p in profile.points if _fits(p, device)]
            if not fitting:
                continue
            found += [_configuration(p, p.duration_s, p.batch, device) for p in fitting]
            measured = {p.batch for p in profile.points}
            inside = [b for b in extra if fitting[0].batch < b < fitting[-1].batch and b not in measured]
            for b in inside:
                larger = next(p for p in fitting if p.batch > b)  # takes at least as much memory
                found.append(_configuration(larger, profile.estimate(b).safe_s, b, device))
        if not found:
            raise NotFound(f"{model!r} fits into the memory of no device")
        return ranked(found)


def _configuration(point: Point, duration_s: float, batch: int, device: Device) -> Configuration:
    return Configuration(
        batch, duration_s, device.name, device.price, point.memory_bytes or 0, device.memory_bytes or 0
    )


def _fits(point: Point, device: Device) -> bool:
    if point.memory_bytes is None or device.memory_bytes is None:
        return True
    return point.memory_bytes <= device.memory_bytes
