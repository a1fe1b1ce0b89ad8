"""What the host memory tier is told."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.errors import Code


@dataclass(frozen=True, slots=True)
class Asked:
    """A client wants a model. `density`: it only wants it to be there, so much per byte; None: it needs it."""

    client: int
    model: str
    density: float | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """A model was found. `key`: its content as far as the disk tells. `remote`: it has to be fetched first."""

    model: str
    key: str
    nbytes: int
    remote: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class NotLocated:
    """A model was not found, or its files contradict each other."""

    model: str
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """All bytes of a model are in memory and checked."""

    key: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A load ended with an error."""

    key: str
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A client let go of its memory, or died."""

    client: int


@dataclass(frozen=True, slots=True)
class Valued:
    """A client that holds a model, or will, values a byte of it otherwise now."""

    client: int
    density: float


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A client wants a model (named as somebody asked for it) out of memory as soon as nobody uses it."""

    client: int
    model: str


@dataclass(frozen=True, slots=True)
class Pins:
    """Which of the models in memory are pinned, now."""

    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Prefaulted:
    """Segments were made ready in advance; `MemoryTier.spare` said how many there may be."""

    segments: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The system did not give the memory for a load that failed: there are fewer free segments than thought."""

    segments: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """There was no memory for a load though the cap leaves room: others than the tier use it, too."""

    key: str


Event = (
    Asked | Located | NotLocated | Loaded | LoadFailed | Gone | Valued | Unwanted | Pins | Prefaulted | Lost | NoRoom
)
