"""Whether this machine can make sandboxes, asked once and in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec

import dataflower
from dataflower.errors import FailedPrecondition
from dataflower.spec.workflow import Isolation, Workflow
from dataflower.wire import Walls

MODULE = "dataflower.container.isolation"
_TIMEOUT_S = 30.0


class Layer(msgspec.Struct, frozen=True):
    """One means of isolation: whether it works here, and details or the reason."""

    layer: str
    possible: bool
    detail: str


class Isolations(msgspec.Struct, frozen=True):
    """What sandboxes are made of here; `why_not`: what is lacking for the best kind."""

    walls: Walls
    why_not: str
    layers: tuple[Layer, ...] = ()


def ask() -> Isolations:
    """Try it. Takes a tenth of a second. Raises OSError and subprocess errors."""
    root = str(Path(dataflower.__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, known)))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", MODULE], env=environ, capture_output=True, timeout=_TIMEOUT_S, check=True
    )
    return msgspec.json.decode(done.stdout, type=Isolations)


class Gate:
    """Refuses workflows that demand a sandbox on a machine that has none."""

    def __init__(self) -> None:
        self._found: Isolations | None = None
        self._asking = asyncio.Lock()

    async def check(self, workflow: Workflow) -> None:
        """Raises FailedPrecondition, naming the stage and the reason."""
        demanding = [stage.name for stage in workflow.stages.values() if stage.isolation is Isolation.SANDBOX]
        if not demanding:
            return
        async with self._asking:
            if self._found is None:
                try:
                    self._found = await asyncio.to_thread(ask)
                except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
                    self._found = Isolations(Walls.NONE, f"it could not be found out: {error}")
        if self._found.walls is Walls.NONE:
            raise FailedPrecondition(
                f"stage {demanding[0]!r} says `isolation: sandbox`, which this machine can't make: "
                f"{self._found.why_not}; `dataflower doctor` says what to do about it"
            )
