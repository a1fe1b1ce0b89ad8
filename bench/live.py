"""Does what was planned hold on this machine? Two applications, profiled, planned, served by their plans, and loaded.

The applications run at once on one server, each by a plan for its rate; then one of them is overloaded three times, and
the other swept by three plans (ours, batch 1, even split of the SLO). Every stage has one container, as a machine of
two cores has no room for more. What is planned leaves room on the cores for the server, which is no stage of any plan,
and for the generators. `--quick` uses functions that sleep, and leaves the sweeps out.

Machines change their speed from minute to minute where others use them, too. So each application is profiled right
before it is measured (again before the sweeps), the plans are swept by turns, each of them several times (the median
counts), and a fixed piece of work is timed between all steps: how far those times are apart is among the figures
(`machine_drift`).
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from ruamel.yaml import YAML

from bench.engine import ROOT
from bench.promised import MAX_BATCH, Promised, real, sleeping
from bench.report import Report
from dataflower.cli.served import Served, serve_apart
from dataflower.config.sources import file_reader, source_finder
from dataflower.core.admission import MARGIN
from dataflower.gateway.client import Client
from dataflower.loadgen.arrivals import Arrivals, Shape
from dataflower.loadgen.assess import Terms
from dataflower.loadgen.messages import Door
from dataflower.loadgen.report import Report as Found
from dataflower.loadgen.report import Settings
from dataflower.loadgen.sender import encode
from dataflower.loadgen.session import Load, Session
from dataflower.loadgen.sweep import Sweep
from dataflower.planner import Arrivals as Planned
from dataflower.planner import Billing, Options, Plan, Question, Splitter, document_of, plan
from dataflower.planner.inventory import Inventory, Source, Wishes, take_stock
from dataflower.spec.load import load
from dataflower.spec.workflow import Slo

OURS = Options(arrivals=Planned.POISSON, billing=Billing.INTEGER, pack=False, margin=MARGIN)
METHODS = {
    "ours": OURS,
    "batch1": replace(OURS, batching=False),
    "even": replace(OURS, splitter=Splitter.EVEN),
}
TIGHT = 3.0
"""The SLO over the run times of all stages at the largest batch: what batches wait for must be chosen with care."""
SHARE = 0.6
"""Of the highest rate that can be planned for each application, at most."""
BUSY = 0.35
"""Of the machine's cores, that the plans of all applications together keep busy at most."""
OVERLOAD = 3.0
SEED = 7


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. Seconds; `profile_s` for each batch size of a stage."""

    profile_s: float
    load_s: float
    sweep_s: float | None
    sweeps: int = 0
    """Of each method."""


FULL = Scale(2.0, 30.0, 8.0, 3)
QUICK = Scale(0.15, 2.5, None)


@dataclass(frozen=True, slots=True)
class Known:
    """An application with its profile."""

    promised: Promised
    stock: Inventory

    def plan(self, options: Options, rate: float) -> Plan | None:
        """None if there is none, or if it needs a second container for some stage."""
        stock = self.stock
        found = plan(stock.application, stock.profiles, rate, self.promised.slo_ms / 1e3, options, explain=False)
        if not isinstance(found, Plan) or any(len(s.tuples) > 1 or s.tuples[0].machines > 1 for s in found.stages):
            return None
        return found

    def busy(self, rate: float) -> float:
        """Cores that our plan for this rate keeps busy, on the average; infinite without a plan."""
        found = self.plan(OURS, rate)
        if found is None:
            return math.inf
        return sum(t.rate / t.configuration.throughput for stage in found.stages for t in stage.tuples)

    def largest(self, options: Options) -> float:
        """The highest rate that can be planned with a container for each stage, to within 1 %; 0 if none can."""
        low, high = 0.0, 0.5
        while self.plan(options, high) is not None:
            low, high = high, high * 2
        if low == 0.0:
            return 0.0
        while high > low * 1.01:
            middle = (low + high) / 2
            low, high = (middle, high) if self.plan(options, middle) is not None else (low, middle)
        return low


def shared_rates(known: Sequence[Known]) -> list[float]:
    """The same share of what each could be planned for alone: as much as the cores have room for."""
    most = [one.largest(OURS) for one in known]
    cores = len(os.sched_getaffinity(0))
    share = SHARE
    while sum(one.busy(share * rate) for one, rate in zip(known, most, strict=True)) > BUSY * cores:
        share *= 0.95
    return [share * rate for rate in most]


def know(promised: Promised, scale: Scale, folder: Path, slo_ms: float | None = None) -> Known:
    """Profile an application by `dataflower profile`, and read what it wrote.

    `slo_ms`: what is promised; None: `TIGHT` times what its stages take.
    """
    file, out, sets = (folder / f"{promised.name}{end}" for end in (".yaml", ".profile.yaml", ".jsonl"))
    file.write_text(promised.source)
    with sets.open("w") as lines:
        for inputs in promised.inputs:
            lines.write(f"{_json(inputs)}\n")
    sizes = ",".join(str(2**i) for i in range(MAX_BATCH.bit_length()))
    command = [sys.executable, "-m", "dataflower.cli", "profile", str(file), "--out", str(out), "--batches", sizes]
    more = ["--inputs", str(sets), "--seconds", str(scale.profile_s), "--no-cache", "--code-path", str(ROOT), "-q"]
    subprocess.run([*command, *more], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    sources = [Source(out.read_text(), str(out))]
    workflow = load(promised.source, file=str(file), read=file_reader, find_source=source_finder([ROOT]))
    stock = take_stock(workflow, sources, wishes=Wishes(mend=True))
    slo_ms = slo_ms or float(round(TIGHT * 1e3 * sum(p.points[-1].duration_s for p in stock.profiles.profiles)))
    return Known(promised.within(slo_ms), stock)


class Steps:
    """Says on stderr what is being done, and times a fixed piece of work before each step: how fast is the machine?"""

    def __init__(self) -> None:
        self.paces: list[float] = []
        self._begun = time.perf_counter()

    def begin(self, what: str) -> None:
        """Next."""
        self.paces.append(_pace())
        passed = time.perf_counter() - self._begun
        pace = self.paces[-1] / self.paces[0]
        print(f"[{passed:4.0f} s] {what} (the machine takes {pace:.2f} of its first time)", file=sys.stderr, flush=True)

    def end(self, report: Report) -> None:
        """Add what was seen."""
        self.paces.append(_pace())
        words = "a fixed piece of work between the steps: longest over shortest time"
        report.add("machine_drift", words, max(self.paces) / min(self.paces), samples=self.paces)


def _pace() -> float:
    """Seconds of a fixed piece of work, the median of several."""
    found = []
    for _ in range(9):
        begun = time.perf_counter()
        sum(n * n for n in range(200_000))
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def _json(inputs: Mapping[str, object]) -> str:
    import json

    return json.dumps(inputs)


def applied(client: Client, known: Known, options: Options, rate: float, folder: Path) -> Plan:
    """Run it by its plan for this rate from now on."""
    found = known.plan(options, rate)
    assert found is not None, f"{known.promised.name}: no plan for {rate}/s"
    file = folder / f"{known.promised.name}.plan.yaml"
    with file.open("w") as text:
        question = Question(known.stock.application, known.stock.profiles, options)
        YAML(typ="safe", pure=True).dump(document_of(found, options, question=question).as_data(), text)
    client.apply(known.promised.source, plan=file)
    for inputs in known.promised.inputs[:1]:
        client.invoke(known.promised.name, inputs)
    return found


def session(served: Served, known: Known, rate: float, seconds: float) -> Session:
    """Poisson arrivals at this rate."""
    promised = known.promised
    door = Door(served.address, promised.name)
    bodies = tuple(encode(promised.name, dict(inputs), stream=False) for inputs in promised.inputs)
    settings = Settings(promised.name, 1, "local", "grpc", "", rate, SEED, seconds, 0.0, 1)
    slo = Slo(e2e_ms=promised.slo_ms, percentile=99.0)
    load_ = Load(Arrivals(Shape.POISSON, rate), bodies, seconds, min(3.0, seconds / 5), SEED)
    return Session(door, load_, Terms(settings, slo), {}, drain_s=10.0, generators=1)


async def at_once(sessions: Sequence[Session]) -> list[Found]:
    """All of them at the same time."""
    return list(await asyncio.gather(*(one.once() for one in sessions)))


def errors(known: Known, found: Found) -> list[float]:
    """For each stage |predicted - measured| / measured of the run of a batch, at the mean size of its batches."""
    result = []
    for row in found.stages:
        measured = row.parts_ms["compute"] + row.parts_ms["transfer"]
        profile = known.stock.profiles.find(row.stage, next(iter(known.stock.profiles.profiles)).hardware)
        size = row.batch or 1.0
        below, above = (profile.estimate(n).duration_s * 1e3 for n in (int(size), min(MAX_BATCH, int(size) + 1)))
        predicted = below + (above - below) * (size - int(size))
        result.append(abs(predicted - measured) / measured)
    return result


def highest(served: Served, client: Client, known: Known, method: str, scale: Scale, folder: Path) -> float:
    """The highest rate within the SLO by a plan of this method for the highest rate that it can plan."""
    assert scale.sweep_s is not None
    options = METHODS[method]
    planned = known.largest(options)
    if planned == 0.0:
        return 0.0
    applied(client, known, options, planned, folder)
    searched = Sweep(planned * SHARE, factor=1.5, repeats=2, tolerance=0.1)
    swept = asyncio.run(session(served, known, planned * SHARE, scale.sweep_s).sweep(searched))
    assert swept.sweep is not None
    return swept.sweep.best_rate or 0.0


def measure(report: Report, *, quick: bool) -> None:
    """Add the figures of this file to a report."""
    scale, applications = (QUICK, sleeping()) if quick else (FULL, real())
    with tempfile.TemporaryDirectory(prefix="dataflower-live-") as name:
        folder = Path(name)
        steps = Steps()
        steps.begin(f"profiling {', '.join(one.name for one in applications)}")
        # functions that sleep don't mind each other
        with ThreadPoolExecutor(len(applications) if quick else 1) as pool:
            known = list(pool.map(lambda promised: know(promised, scale, folder), applications))
        with serve_apart(["--code-path", str(ROOT)]) as served, Client(served.address) as client:
            rates = shared_rates(known)
            steps.begin(f"both at once at their planned rates, {scale.load_s:g} s")
            for one, rate in zip(known, rates, strict=True):
                applied(client, one, OURS, rate, folder)
            found = asyncio.run(
                at_once([session(served, one, rate, scale.load_s) for one, rate in zip(known, rates, strict=True)])
            )
            _steady(report, known, rates, found)
            steps.begin(f"{known[0].promised.name} at {OVERLOAD:g} times what can be planned, {scale.load_s / 2:g} s")
            _overload(report, served, known[0], scale)
            _sweeps(report, served, client, known[1], scale, folder, steps)
            steps.end(report)


def _steady(report: Report, known: Sequence[Known], rates: Sequence[float], found: Sequence[Found]) -> None:
    shares = [one.verdict.attainment or 0.0 for one in found]
    lags = [reason for one in found for reason in one.verdict.reasons]
    names = ", ".join(f"{one.promised.name} {rate:.3g}/s" for one, rate in zip(known, rates, strict=True))
    report.add("attainment", f"at once, by plan: {names}; the lower share", min(shares), at_least=0.99, samples=shares)
    if lags:
        report.add("unproven", f"notes of the generators: {'; '.join(lags)}", float(len(lags)))
    wrong = [error for one, its in zip(known, found, strict=True) for error in errors(one, its)]
    report.add(
        "prediction_error",
        "profile against measured run of a batch, by stage, median relative error",
        statistics.median(wrong) if wrong else None,
        at_most=0.15,
        samples=wrong,
        missing="" if wrong else "no stage was measured",
    )


def _overload(report: Report, served: Served, known: Known, scale: Scale) -> None:
    most = known.largest(OURS) * OVERLOAD
    found = asyncio.run(session(served, known, most, scale.load_s / 2).once())
    share = found.verdict.attainment_accepted
    counts = found.counts
    question = f"{known.promised.name} at {most:.3g}/s, three times what can be planned: accepted in time"
    question += f" ({counts.measured - counts.refused} of {counts.measured} accepted)"
    report.add("overload_in_time", question, share, at_least=0.97, missing="" if share is not None else "all refused")


def _sweeps(
    report: Report, served: Served, client: Client, known: Known, scale: Scale, folder: Path, steps: Steps
) -> None:
    questions = {"batch1": "over batch 1", "even": "over a static even split"}
    if scale.sweep_s is None:
        for method, question in questions.items():
            report.add(f"rate_vs_{method}", question, None, at_least=1.5, missing="--quick runs no sweeps")
        return
    steps.begin(f"profiling {known.promised.name} again")
    again = know(known.promised, scale, folder, slo_ms=known.promised.slo_ms)
    rates: dict[str, list[float]] = {method: [] for method in METHODS}
    for method in by_turns(list(METHODS), scale.sweeps):
        steps.begin(f"the highest rate of {known.promised.name} by a plan of {method!r}")
        rates[method].append(highest(served, client, again, method, scale, folder))
    middle = {method: statistics.median(found) for method, found in rates.items()}
    seen = "; ".join(f"{method} {' '.join(f'{rate:.3g}' for rate in found)}" for method, found in rates.items())
    for method, question in questions.items():
        ratio = middle["ours"] / middle[method] if middle[method] else None
        words = f"highest rate within the SLO {question}, medians of sweeps by turns ({seen} a second)"
        missing = "" if ratio is not None else f"{method} met the SLO at no rate"
        report.add(f"rate_vs_{method}", words, ratio, at_least=1.5, missing=missing)


def by_turns(methods: Sequence[str], rounds: int) -> list[str]:
    """Each method once a round, every other round from the last to the first: none is always measured first."""
    return [method for turn in range(rounds) for method in (methods if turn % 2 == 0 else methods[::-1])]
