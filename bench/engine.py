"""A host in this process for benchmarks that measure the engine without a front door."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dataflower.config.sources import file_reader, source_finder
from dataflower.host.heap import spare_the_collector
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.load import load

ROOT = Path(__file__).parent.parent
GIB = 1024**3


@asynccontextmanager
async def engine(*sources: str, **settings: Any) -> AsyncIterator[Runtime]:
    """A running host with these workflows (YAML texts) applied."""
    config = HostConfig(**{"code_path": (str(ROOT),), "container_arena_bytes": 4 * GIB, **settings})
    async with Runtime(config) as host:
        for source in sources:
            workflow = load(source, file="<bench>", read=file_reader, find_source=source_finder([ROOT]))
            await host.apply(workflow, source)
        spare_the_collector()  # as `dataflower serve` does
        yield host


async def call(host: Runtime, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Invoke and wait for all results."""
    invocation = await host.invoke(name, inputs)
    return await invocation.result()


def document(name: str, inputs: str, stages: str, outputs: str) -> str:
    """A workflow file."""
    return (
        f"apiVersion: dataflower/v1\nkind: Workflow\nmetadata: {{name: {name}}}\n"
        f"inputs: {inputs}\nstages:\n{stages}\noutputs: {outputs}\n"
    )


def stage(name: str, function: str, inputs: str, rest: str = "") -> str:
    """One line of `stages`."""
    return f"  {name}: {{function: 'bench.functions:{function}', inputs: {inputs}{rest}}}"


def pin(core: int | None) -> set[int]:
    """Keep this process and its future children on one core (None: any); returns what was allowed before."""
    allowed = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    return allowed
