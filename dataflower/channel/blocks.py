"""Free memory: best fit, with neighbours joined again. Pure bookkeeping on integers."""

from __future__ import annotations

from bisect import bisect_left, insort

LINE = 64
"""Alignment of every block, and the grain of small ones."""
PAGE = 4096
"""Alignment and grain of blocks of at least `BIG` bytes."""
BIG = 16 * PAGE


def rounded(nbytes: int) -> int:
    """Size of the block that holds so many bytes (at least one line)."""
    grain = PAGE if nbytes >= BIG else LINE
    return max(-(-nbytes // grain), 1) * grain


class Blocks:
    """Free ranges of addresses. `take` and `give` cost a binary search in the list of free blocks.

    The smallest block that fits is used, of equals the lowest: that recycles what was used before, and leaves
    the untouched end of a segment (always the largest block, and new pages are what costs) for last.
    """

    __slots__ = ("_ends", "_sizes", "_starts")

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] = []  # (size, start), sorted
        self._starts: dict[int, int] = {}  # start -> size
        self._ends: dict[int, int] = {}  # end -> start

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def largest(self) -> int:
        """Size of the largest free block; 0 if there is none."""
        return self._sizes[-1][0] if self._sizes else 0

    def take(self, size: int) -> int | None:
        """Address of a block of `size` (as `rounded` gives it), or None."""
        sizes = self._sizes
        at = bisect_left(sizes, (size, 0))
        if at == len(sizes):
            return None
        have, start = sizes[at]
        gap = -start % PAGE if size >= BIG else 0
        if gap + size > have:  # only its alignment does not fit; any block this much larger does
            at = bisect_left(sizes, (size + PAGE - LINE, 0))
            if at == len(sizes):
                return None
            have, start = sizes[at]
            gap = -start % PAGE
        del sizes[at]
        del self._starts[start]
        del self._ends[start + have]
        if gap:
            self._put(start, gap)
        if have > gap + size:
            self._put(start + gap + size, have - gap - size)
        return start + gap

    def give(self, start: int, size: int) -> None:
        """Make a range free; it is joined with free neighbours."""
        before = self._ends.get(start)
        if before is not None:
            length = start - before
            self._drop(before, length)
            start, size = before, size + length
        after = self._starts.get(start + size)
        if after is not None:
            self._drop(start + size, after)
            size += after
        self._put(start, size)

    def ranges(self) -> list[tuple[int, int]]:
        """All free (start, size), by address."""
        return sorted(self._starts.items())

    def _put(self, start: int, size: int) -> None:
        insort(self._sizes, (size, start))
        self._starts[start] = size
        self._ends[start + size] = start

    def _drop(self, start: int, size: int) -> None:
        del self._sizes[bisect_left(self._sizes, (size, start))]
        del self._starts[start]
        del self._ends[start + size]
