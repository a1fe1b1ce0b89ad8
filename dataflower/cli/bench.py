"""`dataflower bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataflower.cli.exits import ExitCode, WrongUsage
from dataflower.cli.options import CodePath, ConfigFile, Inputs, Output, Profile, Server
from dataflower.cli.terminal import Format, emit, show, terminal
from dataflower.loadgen.arrivals import Shape
from dataflower.loadgen.messages import Protocol
from dataflower.loadgen.replay import Unit

if TYPE_CHECKING:
    from dataflower.loadgen.report import Report


def bench(
    workflow: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORKFLOW]",
            help="Name of a workflow on a server, or a workflow file, which gets a server of its own.",
            show_default=False,
        ),
    ] = None,
    inputs: Inputs = None,
    *,
    server: Server = None,
    local: Annotated[
        bool, typer.Option("--local", help="Start a server for the file, whatever servers are configured.")
    ] = False,
    profile: Profile = None,
    code_path: CodePath = None,
    config: ConfigFile = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests a second. A trace is stretched to it.",
            show_default="that of the plan, or half of what one call after the other gives",
        ),
    ] = None,
    arrivals: Annotated[Shape | None, typer.Option(help="How requests come.", show_default="poisson")] = None,
    cv: Annotated[
        float | None, typer.Option(help="Coefficient of variation of the gaps: 0 even, 1 Poisson, more is burstier.")
    ] = None,
    rate_to: Annotated[
        float | None, typer.Option(help="Ramp: the rate at the end. Burst: the rate within a burst.")
    ] = None,
    burst: Annotated[str, typer.Option(metavar="TIME", help="Length of a burst.")] = "1s",
    every: Annotated[str, typer.Option(metavar="TIME", help="From one burst to the next.")] = "10s",
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay the arrivals of a CSV or JSONL file.")
    ] = None,
    trace_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its column with the times.", show_default="timestamp, time, ...")
    ] = None,
    trace_unit: Annotated[Unit, typer.Option(help="What numbers in that column count.")] = Unit.S,
    trace_window: Annotated[
        str | None, typer.Option(metavar="FROM:TO", help="Part of the trace (60s:5m).", show_default="all of it")
    ] = None,
    trace_input: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=COLUMN", help="Take an input from a column of the trace (repeatable)."),
    ] = None,
    speed: Annotated[float, typer.Option(help="Replay so many times as fast.")] = 1.0,
    duration: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Length of the measured part.", show_default="30s, or that of the trace"),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="End after so many measured requests.")] = None,
    warmup: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Load before the measured part, in no figure.",
            show_default="a tenth of the duration, 1 to 10 s",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    input_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines, a set of inputs on each; they are taken in turn."),
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Draw the sets of inputs at random.")] = False,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Of each request, from its scheduled start (5, 500ms)."),
    ] = None,
    drain: Annotated[
        str, typer.Option(metavar="TIME", help="How long to wait for answers after the last request.")
    ] = "30s",
    generators: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that send.", show_default="one for each 400 requests/s"),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Take outputs item by item.", show_default="if any output streams"),
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="How requests travel.")] = Protocol.GRPC,
    http_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the server's HTTP is.", show_default="the server's host, port 8000"),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMIT=TIME", help="e2e, ttft, itl, tpot, over those of the workflow (repeatable)."),
    ] = None,
    attainment: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Of requests that must keep the SLO.", show_default="as the SLO says"),
    ] = None,
    accepted_only: Annotated[
        bool, typer.Option("--accepted-only", help="Judge by the requests that the server did not refuse.")
    ] = False,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE=TIME", help="Share of the SLO of a stage (repeatable)."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plan of the workflow: its budgets, its rate, its cost. Local: run by it."),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV with `hardware` and `price` (for an hour).")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME[xN]", help="Which and how many of them served.", show_default="the one")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the highest rate that meets the SLO, from --rate on.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs at each rate of a sweep.")] = 2,
    tolerance: Annotated[float, typer.Option(help="How close a sweep comes, as a share of the rate.")] = 0.05,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Compare two reports; nothing is run.", show_default=False),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line for each request.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots that opens offline.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Load a workflow, and say whether its SLO holds.

    Requests start when they are due, whether or not earlier ones were answered (open loop), and latency counts from the
    moment when they were due. Ends with 3 if too few requests kept the SLO, with 1 if that can't be said because the
    load was not what was asked for. Ctrl-C ends the run and reports what was measured.

    Example: dataflower bench workflows/wordcount.yaml --rate 20 --duration 30s --html report.html
    """
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr what we say ourselves
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # no process that is forked here uses it
    from dataflower.cli import bench_run

    if compare is not None:
        if workflow is not None:
            raise WrongUsage("--compare takes two reports and runs nothing: leave out the workflow")
        _compare(compare, output, seed)
        return
    if workflow is None:
        raise WrongUsage("which workflow? (a name on a server, or a file; --help has an example)")
    asked = bench_run.Asked(
        workflow=workflow,
        inputs=tuple(inputs or ()),
        server=server,
        local=local,
        profile=profile,
        code_path=tuple(code_path or ()) or None,
        config=config,
        rate=rate,
        shape=arrivals,
        cv=cv,
        rate_to=rate_to,
        burst=burst,
        every=every,
        trace=trace,
        trace_column=trace_column,
        trace_unit=trace_unit,
        trace_window=trace_window,
        trace_input=tuple(trace_input or ()),
        speed=speed,
        duration=duration,
        requests=requests,
        warmup=warmup,
        seed=seed,
        input_file=input_file,
        shuffle=shuffle,
        deadline=deadline,
        drain=drain,
        generators=generators,
        stream=stream,
        protocol=protocol,
        http_url=http_url,
        slo=tuple(slo or ()),
        attainment=attainment,
        accepted_only=accepted_only,
        budget=tuple(budget or ()),
        plan=plan,
        prices=prices,
        device=device,
        sweep=sweep,
        repeats=repeats,
        tolerance=tolerance,
    )
    report = bench_run.run(asked)
    _write(report, json, csv, html)
    _print(report, output)
    raise typer.Exit(_exit_code(report))


def _write(report: Report, json: Path | None, csv: Path | None, html: Path | None) -> None:
    from dataflower.loadgen.page import page
    from dataflower.loadgen.report import save
    from dataflower.loadgen.table import requests_csv

    if json is not None:
        save(report, json)
    for path, make in ((csv, requests_csv), (html, page)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(report), encoding="utf-8")
    written = [str(path) for path in (json, csv, html) if path is not None]
    if written:
        terminal().note(f"wrote {', '.join(written)}")


def _print(report: Report, output: Format) -> None:
    import msgspec

    from dataflower.cli.bench_tables import summary, verdict_line

    if output is Format.TABLE:
        for table in summary(report):
            show(table)
        show(verdict_line(report))
    else:
        emit(msgspec.to_builtins(report), output, lambda: "")


def _exit_code(report: Report) -> ExitCode:
    from dataflower.loadgen.report import Outcome

    verdict = report.verdict
    if report.sweep is not None and not verdict.cut_short:
        return ExitCode.SLO_NOT_MET if report.sweep.best_rate is None else ExitCode.FINE
    if any("stopped" in reason for reason in verdict.reasons):
        return ExitCode.INTERRUPTED
    if verdict.outcome is Outcome.MISSED and not verdict.cut_short:
        return ExitCode.SLO_NOT_MET
    if verdict.outcome is Outcome.UNPROVEN or verdict.cut_short or not report.counts.ok:
        return ExitCode.FAILED
    return ExitCode.FINE


def _compare(files: tuple[Path, Path], output: Format, seed: int) -> None:
    import msgspec

    from dataflower.cli.bench_tables import comparison_table
    from dataflower.loadgen.compare import compare
    from dataflower.loadgen.report import load

    found = compare(load(files[0]), load(files[1]), seed=seed)
    for warning in found.warnings:
        terminal().note(f"note: {warning}")
    emit(msgspec.to_builtins(found), output, lambda: comparison_table(found, files))
