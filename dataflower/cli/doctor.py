"""`dataflower doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.terminal import Format, emit, terminal
from dataflower.errors import DataflowerError

if TYPE_CHECKING:
    from dataflower.cli.probes import Finding, Probe

_MACHINE = (OSError, ValueError, LookupError, ImportError, RuntimeError, SubprocessError, DataflowerError)
"""What a probe may meet on a machine that nobody foresaw."""


def doctor(
    output: Annotated[Format, typer.Option("-o", "--output", help="Output format.")] = Format.TABLE,
) -> None:
    """Check what this machine lacks, and say how to mend it.

    Ends with 1 only if something is missing that nothing works without.

    Example: dataflower doctor -o json
    """
    from dataflower.cli.probes import Grade, probes
    from dataflower.cli.settings import composed

    findings = examine(probes(composed().config))
    if not (terminal().quiet and output is Format.TABLE):
        emit([dataclasses.asdict(f) for f in findings], output, lambda: _table(findings))
    if any(f.grade is Grade.MISSING for f in findings):
        raise typer.Exit(ExitCode.FAILED)


def examine(checks: Iterable[Probe]) -> list[Finding]:
    """Ask each probe; one that itself breaks is a warning, not the end of the report."""
    from dataflower.cli.probes import Finding, Grade

    findings: list[Finding] = []
    for check in checks:
        try:
            found = check()
            findings.extend(found if isinstance(found, tuple) else (found,))
        except _MACHINE as error:
            name = getattr(check, "__name__", "probe").replace("_", " ")
            findings.append(Finding(name, Grade.WARNING, f"can't be checked: {type(error).__name__}: {error}"))
    return findings


def _table(findings: list[Finding]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from dataflower.cli.probes import Grade

    styles = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.MISSING: "bold red"}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "what", "found", "mend"):
        table.add_column(title)
    for finding in findings:
        grade = Text(finding.grade.value, style=styles[finding.grade])
        table.add_row(grade, finding.name, Text(finding.detail), Text(finding.mend))
    return table
