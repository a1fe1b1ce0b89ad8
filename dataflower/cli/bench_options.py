"""Options of `dataflower bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from dataflower.cli.options import CodePath, ConfigFile, Profile, Server
from dataflower.loadgen.arrivals import Shape
from dataflower.loadgen.messages import Protocol
from dataflower.loadgen.replay import Unit


@dataclass(frozen=True, slots=True)
class Place:
    """Where the workflow is, or is to be."""

    server: Server = None
    local: Annotated[
        bool, typer.Option("--local", help="Start a server for the file, whatever servers are configured.")
    ] = False
    profile: Profile = None
    code_path: CodePath = None
    config: ConfigFile = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests come."""

    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests a second. A trace is stretched to it.",
            show_default="that of the plan, or half of what one call after the other gives",
        ),
    ] = None
    arrivals: Annotated[Shape | None, typer.Option(help="How requests come.", show_default="poisson")] = None
    cv: Annotated[
        float | None, typer.Option(help="Coefficient of variation of the gaps: 0 even, 1 Poisson, more is burstier.")
    ] = None
    rate_to: Annotated[
        float | None, typer.Option(help="Ramp: the rate at the end. Burst: the rate within a burst.")
    ] = None
    burst: Annotated[str, typer.Option(metavar="TIME", help="Length of a burst.")] = "1s"
    every: Annotated[str, typer.Option(metavar="TIME", help="From one burst to the next.")] = "10s"


@dataclass(frozen=True, slots=True)
class Recording:
    """Which recorded requests are replayed."""

    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Replay the arrivals of a CSV or JSONL file.")] = (
        None
    )
    trace_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its column with the times.", show_default="timestamp, time, ...")
    ] = None
    trace_unit: Annotated[Unit, typer.Option(help="What numbers in that column count.")] = Unit.S
    trace_window: Annotated[
        str | None, typer.Option(metavar="FROM:TO", help="Part of the trace (60s:5m).", show_default="all of it")
    ] = None
    trace_input: Annotated[
        list[str],
        typer.Option(metavar="INPUT=COLUMN", help="Take an input from a column of the trace (repeatable)."),
    ] = field(default_factory=list)
    speed: Annotated[float, typer.Option(help="Replay so many times as fast.")] = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """How long it takes."""

    duration: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Length of the measured part.", show_default="30s, or that of the trace"),
    ] = None
    requests: Annotated[int | None, typer.Option(min=1, help="End after so many measured requests.")] = None
    warmup: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Load before the measured part, in no figure.",
            show_default="a tenth of the duration, 1 to 10 s",
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0


@dataclass(frozen=True, slots=True)
class Calls:
    """What each request is."""

    input_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines, a set of inputs on each; they are taken in turn."),
    ] = None
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Draw the sets of inputs at random.")] = False
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Of each request, from its scheduled start (5, 500ms)."),
    ] = None
    drain: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for answers after the last request.")] = (
        "30s"
    )
    generators: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that send.", show_default="one for each 400 requests/s"),
    ] = None
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Take outputs item by item.", show_default="if any output streams"),
    ] = None
    protocol: Annotated[Protocol, typer.Option(help="How requests travel.")] = Protocol.GRPC
    http_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the server's HTTP is.", show_default="the server's host, port 8000"),
    ] = None


@dataclass(frozen=True, slots=True)
class Demands:
    """What it is judged by."""

    slo: Annotated[
        list[str],
        typer.Option(metavar="LIMIT=TIME", help="e2e, ttft, itl, tpot, over those of the workflow (repeatable)."),
    ] = field(default_factory=list)
    attainment: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Of requests that must keep the SLO.", show_default="as the SLO says"),
    ] = None
    accepted_only: Annotated[
        bool, typer.Option("--accepted-only", help="Judge by the requests that the server did not refuse.")
    ] = False
    budget: Annotated[
        list[str],
        typer.Option(metavar="STAGE=TIME", help="Share of the SLO of a stage (repeatable)."),
    ] = field(default_factory=list)
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plan of the workflow: its budgets, its rate, its cost. Local: run by it."),
    ] = None
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV with `hardware` and `price` (for an hour).")
    ] = None
    device: Annotated[
        str | None, typer.Option(metavar="NAME[xN]", help="Which and how many of them served.", show_default="the one")
    ] = None


@dataclass(frozen=True, slots=True)
class Search:
    """Whether the highest rate is looked for."""

    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the highest rate that meets the SLO, from --rate on.")
    ] = False
    repeats: Annotated[int, typer.Option(min=1, help="Runs at each rate of a sweep.")] = 2
    tolerance: Annotated[float, typer.Option(help="How close a sweep comes, as a share of the rate.")] = 0.05


@dataclass(frozen=True, slots=True)
class Files:
    """What is written."""

    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report.")] = None
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line for each request.")] = None
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots that opens offline.")] = (
        None
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, but for what is to be done with the report."""

    workflow: str
    inputs: tuple[str, ...]
    place: Place
    traffic: Traffic
    recording: Recording
    span: Span
    calls: Calls
    terms: Demands
    search: Search
