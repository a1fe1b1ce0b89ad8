"""Something to be done once in the next turn of the loop, however often it is asked for before that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Soon:
    """Call it to have `do` called soon."""

    __slots__ = ("_do", "_is_due", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, do: Callable[[], None]) -> None:
        self._loop = loop
        self._do = do
        self._is_due = False

    def __call__(self) -> None:
        """Ask for it."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._is_due = False
        self._do()
