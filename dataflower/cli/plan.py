"""`dataflower plan`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import CodePath, ConfigFile, Output, Profile
from dataflower.cli.terminal import Format, emit, show, terminal

if TYPE_CHECKING:
    from dataflower.cli.planning import Case
    from dataflower.planner import Infeasible, Options, Together
    from dataflower.planner.promises import PromisesBroken


class Charge(enum.StrEnum):
    """How machines are billed."""

    USE = "use"
    INTEGER = "integer"


def plan(
    files: Annotated[list[Path], typer.Argument(metavar="WORKFLOW...", help="Workflow files.", show_default=False)],
    *,
    rate: Annotated[
        list[str],
        typer.Option(
            "--rate", metavar="R", help="Invocations a second; WORKFLOW=R for one of several.", show_default=False
        ),
    ],
    slo: Annotated[
        str | None, typer.Option("--slo", metavar="TIME", help="Instead of the workflow's `slo.e2e_ms` (400ms, 2s).")
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option("--percentile", min=1, max=99.999, help="Instead of the workflow's `slo.percentile`."),
    ] = None,
    ttft: Annotated[
        str | None,
        typer.Option("--ttft", metavar="TIME", help="To the first token, instead of the workflow's `slo.ttft_ms`."),
    ] = None,
    tpot: Annotated[
        str | None,
        typer.Option("--tpot", metavar="TIME", help="For a further token, instead of the workflow's `slo.tpot_ms`."),
    ] = None,
    itl: Annotated[
        str | None,
        typer.Option("--itl", metavar="TIME", help="Between two tokens, instead of the workflow's `slo.itl_ms`."),
    ] = None,
    prompt_tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt-tokens", metavar="[STAGE=]MEAN[:HIGH]", help="Tokens of prompts: the mean, and at the percentile."
        ),
    ] = None,
    output_tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--output-tokens", metavar="[STAGE=]MEAN[:HIGH]", help="Tokens of answers: the mean, and at the percentile."
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option("--arrivals", metavar="HOW", help="poisson, paced, or a recording (CSV or JSONL).")
    ] = "poisson",
    profiles: Annotated[
        list[Path] | None,
        typer.Option(
            "--profiles",
            metavar="FILE",
            help="Profiles: YAML of `profile`, or CSV tables.",
            show_default="profiles/WORKFLOW.yaml",
        ),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="CSV: hardware, price of an hour, memory_bytes.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="STAGE=MODEL", help="Model of a stage in the CSV tables.")
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option("--items", metavar="STAGE=N", help="Items that a stage fans out."),
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option("--share", metavar="SWITCH.CASE=S", help="How often a case is taken (0 to 1).")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", metavar="NAME", help="Plan with this device alone (repeatable).")
    ] = None,
    billing: Annotated[
        Charge, typer.Option("--billing", help="Whole machines, or by use (paced only).")
    ] = Charge.INTEGER,
    median: Annotated[
        bool, typer.Option("--median", help="Reckon with median durations instead of their 90th percentile.")
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Reckon with an idle machine instead of one whose cores are all busy.")
    ] = False,
    margin: Annotated[
        float,
        typer.Option("--margin", min=0, max=0.9, help="Share of the SLO for the front door, hops and the unforeseen."),
    ] = 0.1,
    mend: Annotated[bool, typer.Option("--mend", help="Accept tables whose times fall as batches grow.")] = False,
    tight: Annotated[
        bool, typer.Option("--tight", help="Cheaper: rehearsed on random arrivals instead of bounded; see the manual.")
    ] = False,
    single: Annotated[bool, typer.Option("--batch-1", help="Plan without batches.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Add what other methods would pay (paced).")] = False,
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
    from dataflower.cli.planning import Request, settled, solve, stock
    from dataflower.cli.planning_tables import comparison, plan_data, plan_tables, reason_tables
    from dataflower.config.compose import compose
    from dataflower.planner import Infeasible
    from dataflower.planner.promises import PromisesBroken

    request = Request(
        files=files,
        rates=rate,
        slo=slo,
        percentile=percentile,
        arrivals=arrivals,
        profiles=profiles or [],
        prices=prices,
        models=model or [],
        items=items or [],
        shares=share or [],
        devices=device or [],
        by_use=billing is Charge.USE,
        high=not median,
        alone=alone,
        margin=margin,
        mend=mend,
        batching=not single,
        tighten=tight,
        profile=profile,
        ttft=ttft,
        tpot=tpot,
        itl=itl,
        prompts=prompt_tokens or [],
        answers=output_tokens or [],
    )
    cases, options = stock(request, compose({"code_path": code_path}, file=config).config)
    for note in dict.fromkeys(note for case in cases for note in case.inventory.notes):
        terminal().note(f"note: {note}")
    ready = settled(cases)
    if isinstance(ready, PromisesBroken):
        _refuse(ready, cases, output)
    cases = ready
    found = solve(cases, options)
    if isinstance(found, Infeasible):
        _refuse(found, cases, output)
    data = plan_data(found, cases, options, explain=explain, compare=compare)
    if output is Format.TABLE:
        for table in plan_tables(found, cases, options):
            show(table)
        if explain:
            for table in reason_tables(found, cases):
                show(table)
        if compare:
            show(comparison(cases))
    else:
        emit(data if len(data) > 1 else data[0], output, None)
    if out is not None:
        _write(out, found, options, cases)


def _write(out: Path, found: Together, options: Options, cases: list[Case]) -> None:
    from dataflower.cli.files import write_yaml
    from dataflower.planner import document_of

    head = "Written by `dataflower plan`; `dataflower apply --plan` takes it."
    for one, case in zip(found.plans, cases, strict=True):
        target = out if len(cases) == 1 else out / f"{case.workflow.name}.yaml"
        write_yaml(target, document_of(one, options, question=case.question).as_data(), head)
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
