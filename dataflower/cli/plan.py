"""`dataflower plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.grouped import grouped
from dataflower.cli.options import CodePath, ConfigFile, Output, Profile
from dataflower.cli.plan_options import Asked, Facts, Objectives, Reckoning
from dataflower.cli.terminal import Format, emit, show, terminal

if TYPE_CHECKING:
    from dataflower.cli.planning import Case
    from dataflower.planner import Infeasible, Options, Together
    from dataflower.planner.promises import PromisesBroken


@grouped
def plan(
    files: Annotated[list[Path], typer.Argument(metavar="WORKFLOW...", help="Workflow files.", show_default=False)],
    *,
    rate: Annotated[
        list[str],
        typer.Option(
            "--rate", metavar="R", help="Invocations a second; WORKFLOW=R for one of several.", show_default=False
        ),
    ],
    objectives: Objectives,
    arrivals: Annotated[
        str, typer.Option("--arrivals", metavar="HOW", help="poisson, paced, or a recording (CSV or JSONL).")
    ] = "poisson",
    facts: Facts,
    reckoning: Reckoning,
    compare: Annotated[
        bool, typer.Option("--compare", help="Add what other methods would pay for evenly spaced calls.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each stage got its budget.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the plan file (a folder for several workflows).")
    ] = None,
    profile: Profile = None,
    code_path: CodePath = None,
    config: ConfigFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Find the cheapest way to keep an SLO: budgets, batch sizes, replicas and devices.

    Durations come from `dataflower profile` and from tables of other devices, prices from a price file. Several
    workflows are planned for one set of machines, which they share where that is cheaper. The plan file (-o yaml,
    --out) is what `apply --plan` takes. Ends with 4 if nothing keeps the SLO, and says what would.

    Objectives for tokens (`slo.ttft_ms`, `slo.tpot_ms`) are kept by the stages with a language model: the plan says how
    many replicas, how many answers at a time in each, and in which pieces prompts are computed.

    Example: dataflower plan workflows/face.yaml --rate 4 --explain
    """
    from dataflower.cli.planning import settled, solve, stock
    from dataflower.cli.settings import composed
    from dataflower.planner import Infeasible
    from dataflower.planner.promises import PromisesBroken

    asked = Asked(files, rate, objectives, arrivals, facts, reckoning, profile)
    cases, options = stock(asked, composed({"code_path": code_path}, config).config)
    for note in dict.fromkeys(note for case in cases for note in case.inventory.notes):
        terminal().note(f"note: {note}")
    ready = settled(cases)
    if isinstance(ready, PromisesBroken):
        _refuse(ready, cases, output)
    cases = ready
    found = solve(cases, options)
    if isinstance(found, Infeasible):
        _refuse(found, cases, output)
    _print(found, cases, options, output, explain=explain, compare=compare)
    if out is not None:
        _write(out, found, options, cases)


def _print(
    found: Together, cases: list[Case], options: Options, output: Format, *, explain: bool, compare: bool
) -> None:
    from dataflower.cli.planning_tables import comparison, plan_data, plan_tables, reason_tables

    data = plan_data(found, cases, options, explain=explain, compare=compare)
    if output is Format.TABLE:
        for table in plan_tables(found, cases, options):
            show(table)
        if explain:
            for table in reason_tables(found, cases):
                show(table)
        if compare:
            show(comparison(found, data[0]["compared"], options))
    else:
        emit(data if len(data) > 1 else data[0], output, None)


def _write(out: Path, found: Together, options: Options, cases: list[Case]) -> None:
    from dataflower.cli.files import write_yaml
    from dataflower.planner import document_of

    head = "Written by `dataflower plan`; `dataflower apply --plan` takes it."
    for one, case in zip(found.plans, cases, strict=True):
        target = out if len(cases) == 1 else out / f"{case.workflow.name}.yaml"
        write_yaml(target, document_of(one, options, question=case.question, weights=case.weights).as_data(), head)
        terminal().note(f"written: {target}")


def _refuse(found: Infeasible | PromisesBroken, cases: list[Case], output: Format) -> NoReturn:
    """Say what binds and what would be feasible; ends with 4."""
    from dataflower.cli.planning_tables import infeasible_data, infeasible_text
    from dataflower.cli.token_tables import broken_data, broken_text
    from dataflower.planner.promises import PromisesBroken

    case = next(case for case in cases if case.workflow.name == found.application)
    text: str
    data: dict[str, Any]
    if isinstance(found, PromisesBroken):
        text, data = broken_text(found, case), broken_data(found)
    else:
        text, data = infeasible_text(found, case), infeasible_data(found, case)
    if output is Format.TABLE:
        terminal().error(text)
    else:
        emit(data, output, None)
    raise typer.Exit(ExitCode.INFEASIBLE)
