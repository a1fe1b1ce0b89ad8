"""`dataflower bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataflower.cli.bench_options import Asked, Calls, Demands, Files, Place, Recording, Search, Span, Traffic
from dataflower.cli.exits import ExitCode, WrongUsage
from dataflower.cli.grouped import grouped
from dataflower.cli.options import Inputs, Output
from dataflower.cli.terminal import Format, emit, show, terminal

if TYPE_CHECKING:
    from dataflower.loadgen.report import Report


@grouped
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
    place: Place,
    traffic: Traffic,
    recording: Recording,
    span: Span,
    calls: Calls,
    terms: Demands,
    search: Search,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Compare two reports; nothing is run.", show_default=False),
    ] = None,
    files: Files,
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
        _compare(compare, output, span.seed)
        return
    if workflow is None:
        raise WrongUsage("which workflow? (a name on a server, or a file; --help has an example)")
    asked = Asked(workflow, tuple(inputs or ()), place, traffic, recording, span, calls, terms, search)
    report = bench_run.run(asked)
    _write(report, files)
    _print(report, output)
    raise typer.Exit(_exit_code(report))


def _write(report: Report, files: Files) -> None:
    from dataflower.loadgen.page import page
    from dataflower.loadgen.report import save
    from dataflower.loadgen.table import requests_csv

    if files.json is not None:
        save(report, files.json)
    for path, make in ((files.csv, requests_csv), (files.html, page)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(report), encoding="utf-8")
    written = [str(path) for path in (files.json, files.csv, files.html) if path is not None]
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
