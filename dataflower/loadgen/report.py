"""What a bench found, as typed records: the JSON file is this, the tables and the HTML page are made of it.

Units are in the names: `_ms` milliseconds, `_s` seconds, `_per_s` a second. What does not apply is null.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from dataflower.config.text import read_text
from dataflower.errors import InvalidArgument
from dataflower.loadgen.statistics import Distribution

SCHEMA = "dataflower.bench/v1"


class Outcome(enum.Enum):
    """Of a run against its SLO."""

    MET = "met"
    MISSED = "missed"
    UNPROVEN = "unproven"
    """It looks met, but the load was not what was asked for: the generator fell behind, or the run ended early."""
    NONE = "no slo"


class Limits(Struct, frozen=True, omit_defaults=True):
    """The promise that was measured. `target`: share of requests that must keep it."""

    target: float
    e2e_ms: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tpot_ms: float | None = None
    percentile: float = 99.0


class Verdict(Struct, frozen=True):
    """Whether the SLO held, and why it can't be said where it can't."""

    outcome: Outcome
    attainment: float | None = None
    """Share of all measured requests that succeeded within every limit; failed and refused ones did not."""
    attainment_accepted: float | None = None
    """The same of those that the server did not refuse."""
    reasons: tuple[str, ...] = ()
    cut_short: bool = False
    """The server went away, or someone stopped the run."""


class Settings(Struct, frozen=True):
    """What was asked for."""

    workflow: str
    version: int
    server: str
    protocol: str
    arrivals: str
    rate: float
    seed: int
    duration_s: float
    warmup_s: float
    generators: int
    streaming: bool = False
    deadline_s: float | None = None
    input_sets: int = 1
    trace_file: str = ""
    accepted_only: bool = False


class Counts(Struct, frozen=True):
    """Requests. All but `scheduled`, `warmup` and `unsent` are of the measured part.

    `refused` (RESOURCE_EXHAUSTED), `failed` and `unfinished` (cut off by the end of the bench) don't overlap.
    """

    scheduled: int
    warmup: int
    unsent: int
    measured: int
    ok: int
    good: int
    refused: int
    failed: int
    unfinished: int


class Fault(Struct, frozen=True):
    """Failed requests of one kind, with the message of the first."""

    code: str
    kind: str
    stage: str
    count: int
    message: str


class Rates(Struct, frozen=True):
    """A second, over the measured part."""

    offered_per_s: float
    ok_per_s: float
    goodput_per_s: float
    """Requests that succeeded within every limit; without an SLO, that succeeded."""


class Row(Struct, frozen=True):
    """A stage, or the whole (`stage` empty): how long it took, and where the time went.

    Of a stage `n` and `latency` are about tasks, from inputs complete to outputs there. `parts_ms` are means of queue,
    batch, compute and transfer, and of the whole also engine and door; `parts_p99_ms` the same at the 99th percentile.
    `overhead_ms`: latency less queue, batch and compute, the mean; what is there because of dataflower.
    """

    stage: str
    latency_ms: Distribution
    parts_ms: dict[str, float]
    parts_p99_ms: dict[str, float]
    overhead_ms: float
    overhead_p99_ms: float
    budget_ms: float | None = None
    attainment: float | None = None
    goodput_per_s: float | None = None
    tasks_per_s: float = 0.0
    batch: float | None = None
    cold: int = 0
    errors: int = 0
    replicas: float | None = None
    replicas_max: int | None = None


class Second(Struct, frozen=True):
    """A stretch of the run, for the timeline. `at_s` is its begin."""

    at_s: float
    length_s: float
    offered: int
    ok: int
    refused: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    lag_p99_ms: float | None
    replicas: dict[str, float]
    queued: float


class Slow(Struct, frozen=True):
    """One of the slowest requests, with its record points (as `dataflower trace -o json` prints them) if known."""

    invocation: str
    scheduled_s: float
    latency_ms: float
    lag_ms: float
    deadline_ms: float | None
    tasks: tuple[dict[str, Any], ...] = ()
    server_ms: float | None = None


class Columns(Struct, frozen=True):
    """The measured requests in the order of their schedule: lists of the same length."""

    number: list[int]
    scheduled_s: list[float]
    lag_ms: list[float]
    latency_ms: list[float]
    ttft_ms: list[float | None]
    itl_ms: list[float | None]
    tpot_ms: list[float | None]
    code: list[str]
    good: list[bool]


class Cost(Struct, frozen=True):
    """What it cost: `machines` of `device`, for the measured part, at `price_per_hour` each."""

    device: str
    machines: float
    price_per_hour: float
    per_1000_good: float | None


class Point(Struct, frozen=True):
    """One measurement of a sweep."""

    rate: float
    repeat: int
    outcome: Outcome
    attainment: float | None
    goodput_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    refused: int
    lag_p99_ms: float | None


class SweepResult(Struct, frozen=True):
    """The highest rate that met the SLO (None: none did), the lowest that did not, and everything measured."""

    best_rate: float | None
    first_missed: float | None
    rule: str
    points: tuple[Point, ...]
    limited_by: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """All of it."""

    schema: str = SCHEMA
    settings: Settings
    started_at: str
    limits: Limits | None
    verdict: Verdict
    counts: Counts
    rates: Rates
    metrics: dict[str, Distribution]
    """`e2e_ms`, `send_lag_ms` (of the measured requests that succeeded, from the scheduled start; lag of all), and of
    streams `ttft_ms`, `itl_ms` (all gaps) and `tpot_ms` (a mean for each request)."""
    whole: Row | None
    stages: tuple[Row, ...]
    faults: tuple[Fault, ...]
    timeline: tuple[Second, ...]
    slowest: tuple[Slow, ...]
    requests: Columns
    cost: Cost | None = None
    sweep: SweepResult | None = None
    traced: int = 0
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    machine: dict[str, str] = {}
    command: str = ""


def save(report: Report, path: Path) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def load(path: Path) -> Report:
    """Read a JSON file that `save` wrote.

    Raises:
        NotFound: no such file.
        InvalidArgument: it is something else; the message says where it is wrong.
    """
    try:
        report = msgspec.json.decode(read_text(path), type=Report)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"{path} is no report of `dataflower bench`: {error}") from None
    if report.schema != SCHEMA:
        raise InvalidArgument(f"{path}: made by another version ({report.schema}, this is {SCHEMA})")
    return report
