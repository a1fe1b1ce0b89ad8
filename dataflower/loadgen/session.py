"""A whole bench: the first calls, one measurement or a sweep of them, and the report."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from dataflower.clock import Clock, SystemClock
from dataflower.errors import Code, DataflowerError, InvalidArgument, Unavailable
from dataflower.gateway.async_client import AsyncClient
from dataflower.loadgen.arrivals import Arrivals, Shape, Times, gaps_of
from dataflower.loadgen.assess import Terms, assess
from dataflower.loadgen.crew import Crew
from dataflower.loadgen.measure import Bench, Measurement, Progress
from dataflower.loadgen.messages import Door
from dataflower.loadgen.replay import Recorded
from dataflower.loadgen.report import Outcome, Point, Report, SweepResult
from dataflower.loadgen.schedule import Schedule, dealt, generators_for
from dataflower.loadgen.sweep import Sweep

FIRST_CALL_S = 300.0
"""A first call that takes longer than this is given up."""
MIN_REQUESTS = 10
"""A sweep does not go down to rates at which fewer requests are to be expected in a run."""
FATAL = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.FAILED_PRECONDITION,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.UNIMPLEMENTED,
        Code.UNAVAILABLE,
    }
)
"""Where the first call fails with one of these, all would."""
_WARMUP_SEED = 0x5EED
PACKAGES = ("dataflower", "grpcio", "numpy", "msgspec", "uvloop")


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent.

    Attributes:
        arrivals: the process; of a trace only its `rate` counts (the mean rate to replay it at).
        bodies: encoded requests, one for each set of inputs.
        duration_s: of the measured part.
        warmup_s: before it, at the first rate of the process; in no figure.
        seed: of everything that is drawn.
        shuffled: input sets at random rather than in turn.
        recorded: the trace, as fast as it was asked for.
        picks: of a trace whose columns are inputs, the body of each arrival.
        requests: stop after so many; None: no such limit.
    """

    arrivals: Arrivals
    bodies: tuple[bytes, ...]
    duration_s: float
    warmup_s: float
    seed: int
    shuffled: bool = False
    recorded: Recorded | None = None
    picks: tuple[int, ...] = ()
    requests: int | None = None

    def at_rate(self, rate: float) -> Load:
        """The same, quicker or slower: a trace is stretched, and takes another time."""
        duration_s = self.duration_s
        if self.recorded is not None:
            duration_s *= self.arrivals.rate / rate
        return replace(self, arrivals=self.arrivals.at_rate(rate), duration_s=duration_s)

    def schedule(self, seed: int) -> Schedule:
        """The requests for a seed."""
        main = self._main(seed)
        if self.requests is not None:
            main = main[: self.requests]
        warm: Times = np.empty(0)
        if self.warmup_s > 0:
            shape = Shape.POISSON if self.arrivals.shape is Shape.TRACE else Shape.GAMMA
            flat = replace(self.arrivals, shape=shape)
            warm = flat.times(self.warmup_s, seed ^ _WARMUP_SEED)
        end_s = self.warmup_s + self.duration_s
        if self.requests is not None and len(main) == self.requests:
            end_s = self.warmup_s + float(main[-1])
        times = np.concatenate((warm, main + self.warmup_s))
        picks = dealt(len(times), len(self.bodies), seed=seed, shuffled=self.shuffled)
        if self.picks:
            picks[len(warm) :] = self.picks[: len(main)]
        return Schedule(times, picks, self.bodies, self.warmup_s, end_s)

    def _main(self, seed: int) -> Times:
        if self.recorded is None:
            return self.arrivals.times(self.duration_s, seed)
        own = gaps_of(self.recorded.times)[0] or self.arrivals.rate
        times = self.recorded.times * (own / self.arrivals.rate)
        return np.asarray(times[times < self.duration_s + 1e-9])


@dataclass(frozen=True, slots=True)
class Watch:
    """What is told while a bench runs; every part may be left out.

    `run` opens the display of one measurement (its title) and gives what takes its progress.
    """

    note: Callable[[str], None] = lambda text: None
    run: Callable[[str], AbstractContextManager[Callable[[Progress], None]]] = lambda title: nullcontext(
        lambda progress: None
    )
    report: Callable[[float, Report], None] = lambda rate, report: None


@dataclass(slots=True)
class Session:
    """A bench of one workflow on one server. `stop`, when set, ends it early with what was measured."""

    door: Door
    load: Load
    terms: Terms
    inputs: Mapping[str, Any]
    deadline_s: float | None = None
    drain_s: float = 30.0
    generators: int | None = None
    traces: int = 1000
    watch: Watch = field(default_factory=Watch)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    clock: Clock = field(default_factory=SystemClock)
    run_id: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:8]}")
    crew: Crew | None = None
    """The generators, while a measurement runs."""
    _runs: int = field(default=0, init=False)

    async def once(self) -> Report:
        """One measurement.

        Raises:
            DataflowerError: the server can't be reached, or the workflow can't be called like this.
        """
        async with self._client() as client, self._crew(self.load.arrivals.peak) as crew:
            report = await self._measured(Bench(self.door, client, crew, self.clock), self.load, self.load.seed, "")
        return self._dressed(report)

    async def sweep(self, sweep: Sweep) -> Report:
        """Measurements at one rate after the other; the report is that of the highest rate that met the SLO (or of
        the last one measured), with the sweep in it.

        Raises:
            InvalidArgument: there is no SLO to meet.
            DataflowerError: as `once`.
        """
        if self.terms.slo is None:
            raise InvalidArgument("a sweep wants an SLO: none in the workflow, so give one with --slo e2e=400ms")
        if self.load.recorded is None:  # fewer would say nothing
            sweep.floor = max(sweep.floor, MIN_REQUESTS / self.load.duration_s)
        points: list[Point] = []
        best: Report | None = None
        last: Report | None = None
        limited = ""
        async with self._client() as client:
            while (rate := sweep.next_rate()) is not None and not self.stop.is_set():
                load = self.load.at_rate(rate)
                async with self._crew(load.arrivals.peak) as crew:
                    bench = Bench(self.door, client, crew, self.clock)
                    outcomes = []
                    for repeat in range(sweep.repeats):
                        title = f"{rate:.4g}/s, {repeat + 1} of {sweep.repeats}"
                        report = await self._measured(bench, load, load.seed + repeat, title)
                        points.append(_point(rate, repeat, report))
                        outcomes.append(report.verdict.outcome)
                        self.watch.report(rate, report)
                        if outcomes[-1] is not Outcome.MET:
                            break
                last = report
                if self.stop.is_set() or report.verdict.cut_short:
                    limited = ", ".join(report.verdict.reasons)
                    break
                sweep.record(rate, outcomes)
                if outcomes[-1] is Outcome.MET:
                    best = report
                elif rate == sweep.missed:
                    limited = ", ".join(report.verdict.reasons)
        shown = best or last
        if shown is None:
            raise InvalidArgument("nothing was measured")
        result = SweepResult(sweep.met, sweep.missed, sweep.rule, tuple(points), limited)
        return self._dressed(msgspec.structs.replace(shown, sweep=result))

    def _client(self) -> AsyncClient:
        return AsyncClient(self.door.address, api_key=self.door.api_key or None, ca_file=self.door.ca_file or None)

    def _crew(self, peak: float) -> Crew:
        self.crew = Crew(self.generators or generators_for(peak, os.cpu_count() or 1), self.clock)
        return self.crew

    async def _measured(self, bench: Bench, load: Load, seed: int, title: str) -> Report:
        schedule = load.schedule(seed)
        if not schedule.measured:
            raise InvalidArgument("no request falls into the measured part: raise the rate or the duration")
        self._runs += 1
        run = f"{self.run_id}-{self._runs}"
        with self.watch.run(title) as progress:
            found: Measurement = await bench.measure(
                schedule,
                run,
                deadline_s=self.deadline_s,
                drain_s=self.drain_s,
                stop=self.stop,
                progress=progress,
                traces=self.traces,
            )
        settings = msgspec.structs.replace(
            self.terms.settings,
            arrivals=self.described(load),
            rate=load.arrivals.rate,
            seed=seed,
            duration_s=schedule.window_s,
            warmup_s=schedule.warmup_s,
            generators=len(bench.crew.pids),
        )
        return assess(found, replace(self.terms, settings=settings))

    @staticmethod
    def described(load: Load) -> str:
        """The load in words."""
        if load.recorded is None:
            return str(load.arrivals)
        own, cv = gaps_of(load.recorded.times)
        speed = load.recorded.speed * load.arrivals.rate / (own or 1)
        return f"trace, {load.arrivals.rate:.4g}/s on average, cv {cv:.2f}, at {speed:.4g}x"

    def _dressed(self, report: Report) -> Report:
        return msgspec.structs.replace(report, versions=versions(), machine=machine())


async def first_calls(
    client: AsyncClient, workflow: str, inputs: Mapping[str, Any], calls: int, clock: Clock
) -> tuple[list[float], str]:
    """Call the workflow `calls` times, one after the other: it starts what has to be started.

    Returns the durations in seconds of those that succeeded, and what the last failure said.

    Raises:
        DataflowerError: a failure that every other call would meet too.
    """
    seconds, failure = [], ""
    for _ in range(calls):
        began = clock.monotonic()
        try:
            await client.invoke(workflow, dict(inputs), deadline_s=FIRST_CALL_S)
        except DataflowerError as error:
            if error.code in FATAL or isinstance(error, Unavailable):
                raise
            failure = error.message
        else:
            seconds.append(clock.monotonic() - began)
    return seconds, failure


def _point(rate: float, repeat: int, report: Report) -> Point:
    e2e, lag = report.metrics.get("e2e_ms"), report.metrics.get("send_lag_ms")
    return Point(
        rate,
        repeat,
        report.verdict.outcome,
        report.verdict.attainment,
        report.rates.goodput_per_s,
        p50_ms=e2e.p50 if e2e else None,
        p99_ms=e2e.p99 if e2e else None,
        refused=report.counts.refused,
        lag_p99_ms=lag.p99 if lag else None,
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The one that the bench runs on: cores, memory, kernel."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {"cores": str(os.cpu_count()), "memory_gib": f"{memory:.1f}", "kernel": platform.release()}
