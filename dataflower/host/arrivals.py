"""Tasks that have come from another host: their containers get them when all that came along has been heard.

A word that follows close behind, that one of them is not to be done after all, is then heard before it begins: what
wakes a container may take this process's place on the processor for milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from dataflower.wire import RunBatch, RunTask


class Arrivals:
    """Those that were not given out."""

    def __init__(self, give: Callable[[int, RunTask | RunBatch], None]) -> None:
        """`give(container, message)`: by the number that the container has with its owner."""
        self._give = give
        self._waiting: list[tuple[int, RunTask | RunBatch]] = []

    def add(self, number: int, message: RunTask | RunBatch) -> None:
        """It has come."""
        self._waiting.append((number, message))

    def take_back(self, number: int, tasks: Container[int]) -> tuple[int, ...]:
        """Those of these tasks of a container that were not given out, and never will be. Batches stay whole."""
        waiting, self._waiting = self._waiting, []
        found = []
        for entry in waiting:
            message = entry[1]
            if entry[0] == number and isinstance(message, RunTask) and message.task in tasks:
                found.append(message.task)
            else:
                self._waiting.append(entry)
        return tuple(found)

    def give_out(self) -> None:
        """All that came along was heard."""
        waiting, self._waiting = self._waiting, []
        for number, message in waiting:
            self._give(number, message)
