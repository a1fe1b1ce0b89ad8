"""All ways in which races may go: a chooser that takes another way each time."""

from __future__ import annotations

from collections.abc import Callable

Choose = Callable[[int], int]
"""Given a number of alternatives, the index of the one that happens."""


class Paths:
    """Walks through all sequences of choices, each run of `choose` calls one step further than the last."""

    def __init__(self) -> None:
        self._plan: list[int] = []
        self._taken: list[tuple[int, int]] = []

    def choose(self, alternatives: int) -> int:
        """The choice that this run makes next."""
        at = len(self._taken)
        index = self._plan[at] if at < len(self._plan) else 0
        self._taken.append((index, alternatives))
        return index

    def advance(self) -> bool:
        """Set out on the next run; False after the last."""
        while self._taken and self._taken[-1][0] + 1 == self._taken[-1][1]:
            self._taken.pop()
        self._plan = [index for index, _ in self._taken]
        self._taken = []
        if not self._plan:
            return False
        self._plan[-1] += 1
        return True
