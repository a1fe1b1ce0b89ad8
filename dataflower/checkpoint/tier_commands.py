"""What the host memory tier says is to be done."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.errors import Code


@dataclass(frozen=True, slots=True)
class Locate:
    """Find out what a model is; answer with Located or NotLocated."""

    model: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model into memory for it: `recycled` free segments first, new ones for the rest. Answer when done."""

    key: str
    recycled: int


@dataclass(frozen=True, slots=True)
class Evict:
    """Forget a model; its whole segments become free ones."""

    key: str


@dataclass(frozen=True, slots=True)
class Trim:
    """Give free segments back to the system."""

    segments: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A client gets a model that is in memory."""

    client: int
    key: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A client held a model that had to go."""

    client: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """A client gets an error."""

    client: int
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A client's unwanted model is out of memory; `gone` False: it stays, since it is pinned or somebody asked."""

    client: int
    gone: bool


Command = Locate | Load | Evict | Trim | Grant | Drop | Refuse | Forgotten
