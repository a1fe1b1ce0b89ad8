"""Functions for storms of cancellations, each busy in a way of its own, with notes of when they ran."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bench.storm_functions import NOTE, STEP_S
from dataflower import Context, Stream, function


class Noting:
    """Notes when a function ran."""

    def setup(self, log: str, place: int) -> None:
        """`place`: of the stage among the others."""
        self._place = place
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)

    def _note(self, call: int, begun: float, ended: float) -> None:
        os.write(self._log, NOTE.pack(call, self._place, begun, ended))

    @contextmanager
    def _noted(self, call: int) -> Iterator[None]:
        begun = time.monotonic()
        self._note(call, begun, 0.0)
        try:
            yield
        finally:
            self._note(call, begun, time.monotonic())


class Sleep(Noting):
    """All of it in one system call."""

    def __call__(self, x: Any, call: int, seconds: float) -> Any:
        """Pass on what came."""
        with self._noted(call):
            time.sleep(seconds)
        return x


class Spin(Noting):
    """In pure Python, without letting go of the interpreter."""

    def __call__(self, x: Any, call: int, seconds: float) -> Any:
        """Pass on what came."""
        with self._noted(call):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass
        return x


class Await(Noting):
    """Asynchronous."""

    async def __call__(self, x: Any, call: int, seconds: float) -> Any:
        """Pass on what came."""
        with self._noted(call):
            await asyncio.sleep(seconds)
        return x


@function(batch=True)
class Together(Noting):
    """In batches: each member ends when it has waited or is not wanted any more, the last one by an interruption."""

    def __call__(self, x: list[Any], call: list[int], seconds: list[float], context: list[Context]) -> list[Any]:
        """Pass on what came."""
        begun = time.monotonic()
        for number in call:
            self._note(number, begun, 0.0)
        left = set(range(len(call)))
        try:
            while left:
                time.sleep(STEP_S)
                now = time.monotonic()
                for member in [i for i in left if context[i].cancelled or now >= begun + seconds[i]]:
                    left.discard(member)
                    self._note(call[member], begun, now)
        finally:
            for member in left:
                self._note(call[member], begun, time.monotonic())
        return x


@function(outputs={"chunk": Stream()})
class Pour(Noting):
    """A stream as fast as there is credit and room for it."""

    def setup(self, log: str, place: int, items: int, nbytes: int) -> None:
        """So many arrays, so large."""
        super().setup(log, place)
        self._items, self._nbytes = items, nbytes

    def __call__(self, call: int, seconds: float) -> Iterator[Any]:
        """The first one after `seconds`."""
        with self._noted(call):
            time.sleep(seconds)
            for _ in range(self._items):
                yield np.zeros(self._nbytes, np.uint8)
