"""What a `Mux` tells of what comes, and of what has arrived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """A message came."""

    payload: bytearray


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream began; its bytes go where `place` said."""

    stream: int


@dataclass(frozen=True, slots=True)
class Completed:
    """All bytes of a stream are there."""

    stream: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """A stream will never be complete."""

    stream: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A stream of this side is complete over there."""

    stream: int


@dataclass(frozen=True, slots=True)
class Grew:
    """So many bytes of a stream are there, from its beginning."""

    stream: int
    nbytes: int


MuxEvent = Message | Opened | Grew | Completed | Aborted | Arrived
