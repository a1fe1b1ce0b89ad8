"""One measurement: requests on schedule, the server's state beside it, the record points of what it did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dataflower.clock import Clock, SystemClock
from dataflower.core.trace import InvocationTrace
from dataflower.errors import DataflowerError
from dataflower.gateway.async_client import AsyncClient
from dataflower.host.api import StageStatus
from dataflower.loadgen.crew import Crew
from dataflower.loadgen.messages import Door, Sample
from dataflower.loadgen.schedule import Schedule

WATCH_S = 0.5
"""A picture of containers and queues so often, for the timeline."""
TRACES = 1000
"""Record points are fetched of so many invocations at most."""
SLOWEST = 5
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Picture:
    """Containers and queues at a moment (seconds since the begin)."""

    at: float
    stages: tuple[StageStatus, ...]


@dataclass(slots=True)
class Measurement:
    """What came of a schedule.

    Attributes:
        schedule: what was to be sent.
        run: what invocation ids begin with.
        samples: the requests that were sent, as they ended.
        pictures: of the server, oldest first.
        traces: record points by number of the request, of the slowest and of others evenly over the run.
        lost: when the server went away (seconds since the begin); None if it did not.
        interrupted: it was stopped before the end.
        begun_at: wall-clock seconds.
        missing_traces: invocations that were asked for and not known (any more).
    """

    schedule: Schedule
    run: str
    samples: list[Sample] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    traces: dict[int, InvocationTrace] = field(default_factory=dict)
    lost: float | None = None
    interrupted: bool = False
    begun_at: float = 0.0
    missing_traces: int = 0
    sent: int = 0

    def ident(self, sample: Sample) -> str:
        """The id of the invocation."""
        return sample.invocation or f"{self.run}-{sample.number}"


@dataclass(slots=True)
class Progress:
    """How far a measurement is, for whoever watches."""

    elapsed_s: float
    total_s: float
    scheduled: int
    sent: int
    done: int
    failed: int
    recent: list[Sample]


class Bench:
    """Measures one workflow on one server with one crew. The caller owns both."""

    def __init__(self, door: Door, client: AsyncClient, crew: Crew, clock: Clock | None = None) -> None:
        self.door = door
        self._client = client
        self.crew = crew
        self._clock = clock or SystemClock()

    async def measure(
        self,
        schedule: Schedule,
        run: str,
        *,
        deadline_s: float | None = None,
        drain_s: float = 30.0,
        grace_s: float = 1.0,
        stop: asyncio.Event | None = None,
        progress: Callable[[Progress], None] | None = None,
        traces: int = TRACES,
    ) -> Measurement:
        """Send everything, wait for the answers (at most `drain_s` after the last start), fetch record points.

        `stop`: when set, nothing more is sent and what was measured is returned. `traces` 0 fetches none.

        Raises:
            InvalidArgument, DataflowerError: as `Crew.run`.
        """
        ended = asyncio.Event()
        wanted = stop or asyncio.Event()
        found = Measurement(schedule, run, begun_at=self._clock.wall())
        jobs = schedule.jobs(self.door, run, len(self.crew.pids), deadline_s=deadline_s, drain_s=drain_s)
        begin = self._clock.monotonic()

        def begun(at: float) -> None:
            nonlocal begin
            begin = at
            found.begun_at = self._clock.wall() + at - self._clock.monotonic()

        def listen(samples: Sequence[Sample], sent: int) -> None:
            found.samples += samples
            found.sent = sent
            if progress is not None:
                progress(self._progress(found, begin, samples))

        async def pass_on() -> None:
            await wanted.wait()
            found.interrupted = not ended.is_set()
            ended.set()

        passing = asyncio.create_task(pass_on())
        watching = asyncio.create_task(self._watch(found, lambda: self._clock.monotonic() - begin))
        try:
            found.lost = await self.crew.run(jobs, listen, stop=ended, grace_s=grace_s, begun=begun)
        finally:
            for task in (passing, watching):
                task.cancel()
            await asyncio.wait({passing, watching})
        found.samples.sort(key=lambda sample: sample.number)
        if found.lost is None and traces:
            await self._trace(found, traces)
        return found

    def _progress(self, found: Measurement, begin: float, recent: Sequence[Sample]) -> Progress:
        return Progress(
            elapsed_s=self._clock.monotonic() - begin,
            total_s=found.schedule.end_s,
            scheduled=len(found.schedule.times),
            sent=found.sent,
            done=len(found.samples),
            failed=sum(bool(s.code) for s in found.samples),
            recent=list(recent),
        )

    async def _watch(self, found: Measurement, now: Callable[[], float]) -> None:
        """A timeline is made of pictures taken now and then; nothing but the timeline depends on this clock."""
        while True:
            with contextlib.suppress(DataflowerError):  # a server that is gone is noticed by those who send
                info = await self._client.workflow(self.door.workflow)
                found.pictures.append(Picture(now(), info.stages))
            await asyncio.sleep(WATCH_S)

    async def _trace(self, found: Measurement, limit: int) -> None:
        wanted = iter(chosen(found.samples, found.schedule.warmup_s, limit))

        async def fetch() -> None:
            for sample in wanted:
                try:
                    found.traces[sample.number] = await self._client.trace(found.ident(sample))
                except DataflowerError:  # forgotten since, or it left none
                    found.missing_traces += 1

        await asyncio.gather(*(fetch() for _ in range(_AT_ONCE)))


def chosen(samples: Sequence[Sample], warmup_s: float, limit: int) -> list[Sample]:
    """The requests to look at closely: the slowest that succeeded, and others evenly over the run."""
    answered = [s for s in samples if not s.code and s.scheduled >= warmup_s]
    slowest = sorted(answered, key=lambda s: -s.latency_s)[:SLOWEST]
    step = max(1, -(-len(answered) // limit))
    return list({s.number: s for s in (*slowest, *answered[::step])}.values())
