"""Where the files of a model lie in memory: one after the other, each at a multiple of a page. Pure.

A file's bytes keep their distance from a page's beginning, so that the disk can put them into place past the page
cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PAGE_BYTES = 4096
SEGMENT_BYTES = 32 * 1024 * 1024
"""Memory is taken, recycled and handed over in pieces of this size; a multiple of the chunks that files are read in."""
TAIL_BYTES = SEGMENT_BYTES // 4
"""A rest up to this size gets a piece of just its size instead of a whole segment."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A file in memory: `nbytes` at `offset`."""

    name: str
    offset: int
    nbytes: int


def place(files: Iterable[tuple[str, int]]) -> tuple[Placed, ...]:
    """Places for files of (name, bytes), in their order."""
    placed: list[Placed] = []
    at = 0
    for name, nbytes in files:
        placed.append(Placed(name, at, nbytes))
        at += pages(nbytes)
    return tuple(placed)


def pages(nbytes: int) -> int:
    """Rounded up to whole pages."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def pieces(nbytes: int) -> tuple[int, int]:
    """Memory for `nbytes`: how many whole segments, and bytes of a tail (whole pages, or 0)."""
    whole, rest = divmod(pages(nbytes), SEGMENT_BYTES)
    return (whole + 1, 0) if rest > TAIL_BYTES else (whole, rest)
