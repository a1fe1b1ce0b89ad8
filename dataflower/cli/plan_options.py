"""Options of `dataflower plan`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer


class Charge(enum.StrEnum):
    """How machines are billed."""

    USE = "use"
    INTEGER = "integer"


@dataclass(frozen=True, slots=True)
class Objectives:
    """What is to be kept, for requests of which length."""

    slo: Annotated[
        str | None, typer.Option("--slo", metavar="TIME", help="Instead of the workflow's `slo.e2e_ms` (400ms, 2s).")
    ] = None
    percentile: Annotated[
        float | None,
        typer.Option("--percentile", min=1, max=99.999, help="Instead of the workflow's `slo.percentile`."),
    ] = None
    ttft: Annotated[
        str | None,
        typer.Option("--ttft", metavar="TIME", help="To the first token, instead of the workflow's `slo.ttft_ms`."),
    ] = None
    tpot: Annotated[
        str | None,
        typer.Option("--tpot", metavar="TIME", help="For a further token, instead of the workflow's `slo.tpot_ms`."),
    ] = None
    itl: Annotated[
        str | None,
        typer.Option("--itl", metavar="TIME", help="Between two tokens, instead of the workflow's `slo.itl_ms`."),
    ] = None
    prompt_tokens: Annotated[
        list[str],
        typer.Option(
            "--prompt-tokens", metavar="[STAGE=]MEAN[:HIGH]", help="Tokens of prompts: the mean, and at the percentile."
        ),
    ] = field(default_factory=list)
    output_tokens: Annotated[
        list[str],
        typer.Option(
            "--output-tokens", metavar="[STAGE=]MEAN[:HIGH]", help="Tokens of answers: the mean, and at the percentile."
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the stages and of the machines."""

    profiles: Annotated[
        list[Path],
        typer.Option(
            "--profiles",
            metavar="FILE",
            help="Profiles: YAML of `profile`, or CSV tables.",
            show_default="profiles/WORKFLOW.yaml",
        ),
    ] = field(default_factory=list)
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="CSV: hardware, price of an hour, memory_bytes.")
    ] = None
    model: Annotated[
        list[str], typer.Option("--model", metavar="STAGE=MODEL", help="Model of a stage in the CSV tables.")
    ] = field(default_factory=list)
    items: Annotated[
        list[str],
        typer.Option("--items", metavar="STAGE=N", help="Items that a stage fans out."),
    ] = field(default_factory=list)
    share: Annotated[
        list[str], typer.Option("--share", metavar="SWITCH.CASE=S", help="How often a case is taken (0 to 1).")
    ] = field(default_factory=list)
    device: Annotated[
        list[str], typer.Option("--device", metavar="NAME", help="Plan with this device alone (repeatable).")
    ] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reckoning:
    """How it is reckoned."""

    billing: Annotated[Charge, typer.Option("--billing", help="Whole machines, or by use (paced only).")] = (
        Charge.INTEGER
    )
    median: Annotated[
        bool, typer.Option("--median", help="Reckon with median durations instead of their 90th percentile.")
    ] = False
    alone: Annotated[
        bool, typer.Option("--alone", help="Reckon with an idle machine instead of one whose cores are all busy.")
    ] = False
    margin: Annotated[
        float,
        typer.Option("--margin", min=0, max=0.9, help="Share of the SLO for the front door, hops and the unforeseen."),
    ] = 0.1
    mend: Annotated[bool, typer.Option("--mend", help="Accept tables whose times fall as batches grow.")] = False
    tight: Annotated[
        bool, typer.Option("--tight", help="Cheaper: rehearsed on random arrivals instead of bounded; see the manual.")
    ] = False
    single: Annotated[bool, typer.Option("--batch-1", help="Plan without batches.")] = False


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, but for what is to be done with the plan. `profile`: of the workflow files."""

    files: list[Path]
    rates: list[str]
    objectives: Objectives
    arrivals: str
    facts: Facts
    reckoning: Reckoning
    profile: str | None = None
