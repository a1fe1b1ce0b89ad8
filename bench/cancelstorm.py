"""Does a cancelled invocation stop at once: no later stage runs, and nothing is held?

10,000 invocations of three stages with a tensor are cancelled at random moments of their first stage or between
stages. A later stage that was given out after the cancellation counts as run; slots, tasks and memory that are still
held a second after the last cancellation count as held.
"""

from __future__ import annotations

import asyncio
import random
import time
from argparse import Namespace

import uvloop

from bench.engine import document, engine, stage
from bench.report import Report, arguments, finish
from dataflower.errors import DataflowerError
from dataflower.host.runtime import Runtime

IN_FLIGHT = 3
NBYTES = 65_536


def workflow() -> str:
    """A stage that takes a while and makes a tensor, and two that hand it on."""
    stages = (
        stage("first", "linger", "{seconds: inputs.seconds, nbytes: inputs.nbytes}"),
        stage("second", "forward", "{x: first.out}"),
        stage("third", "forward", "{x: second.out}"),
    )
    return document("storm", "{seconds: float, nbytes: int}", "\n".join(stages), "{y: third.out}")


class Storm:
    """Callers that change their minds, and counts."""

    def __init__(self, host: Runtime, cancels: int) -> None:
        self.host = host
        self.left = cancels
        self.cancelled = self.ran = self.completed = 0
        self._random = random.Random(11)

    async def call(self) -> None:
        """Invoke and cancel, again and again."""
        while self.left > 0:
            self.left -= 1
            seconds = self._random.choice((0.0, 0.002, 10.0))
            invocation = await self.host.invoke("storm", {"seconds": seconds, "nbytes": NBYTES})
            await asyncio.sleep(self._random.uniform(0.0, 0.03))
            invocation.cancel()
            at = time.monotonic()
            try:
                await invocation.result()
            except DataflowerError:
                self.cancelled += 1
            else:
                self.completed += 1
                continue
            await invocation.wait_over()
            trace = invocation.trace
            assert trace is not None
            self.ran += sum(1 for task in trace.tasks if task.stage != "first" and task.dispatched > at)


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    cancels = 500 if options.quick else 10_000
    async with engine(workflow()) as host:
        storm = Storm(host, cancels)
        await asyncio.gather(*(storm.call() for _ in range(IN_FLIGHT)))
        await asyncio.sleep(1.0)
        core = host.statistics().core
        held = core.slots + core.tasks + core.queued + core.invocations + host._engine.arena.statistics().slots
        host._core.check_integrity()
    words = f"{storm.cancelled} cancelled, {storm.completed} were faster"
    report.add("cancel_ran", f"{words}: later stages given out afterwards", storm.ran, at_most=0)
    report.add("cancel_held", f"{words}: slots, tasks, memory held 1 s later", held, at_most=0)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("cancelstorm")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
