"""From the command line to a question to the planner: files read, options checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataflower.cli.exits import WrongUsage
from dataflower.cli.workflows import beside, load_file, read_file
from dataflower.config.text import read_text
from dataflower.errors import NotFound, Problem
from dataflower.planner import Arrivals, Billing, Infeasible, Options, Question, Tenant, Together, Trace, plan_together
from dataflower.planner.inventory import Inventory, Source, Wishes, take_stock
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import parse
from dataflower.spec.units import parse_duration
from dataflower.spec.workflow import Workflow

if TYPE_CHECKING:
    from dataflower.config.settings import Config

WORDS = {"poisson": Arrivals.POISSON, "paced": Arrivals.PACED}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the verb, as they were given."""

    files: Sequence[Path]
    rates: Sequence[str]
    slo: str | None
    percentile: float | None
    arrivals: str
    profiles: Sequence[Path]
    prices: Path | None
    models: Sequence[str]
    items: Sequence[str]
    shares: Sequence[str]
    devices: Sequence[str]
    by_use: bool
    high: bool
    alone: bool
    margin: float
    mend: bool
    batching: bool
    tighten: bool
    profile: str | None


@dataclass(frozen=True, slots=True)
class Case:
    """One workflow to plan. `place`: where its SLO stands, for messages."""

    workflow: Workflow
    inventory: Inventory
    rate: float
    slo_s: float
    place: Problem
    question: Question

    @property
    def tenant(self) -> Tenant:
        """The same as the planner calls it."""
        return Tenant(self.question, self.rate, self.slo_s)


def stock(request: Request, config: Config) -> tuple[list[Case], Options]:
    """Read everything; the workflows with what they may run on, and the method.

    Raises:
        WrongUsage: options that contradict each other or the workflows.
        DataflowerError: files that can't be read or don't hold together.
    """
    settings = beside(config, request.files)
    workflows = [load_file(file, settings, request.profile)[0] for file in request.files]
    names = [workflow.name for workflow in workflows]
    if len(set(names)) < len(names):
        raise WrongUsage("two of the files are workflows of one name")
    rates = _rates(request.rates, names)
    arrivals, trace = _arrivals(request.arrivals)
    if request.by_use and arrivals is not Arrivals.PACED:
        raise WrongUsage("--billing use needs --arrivals paced: random arrivals need whole machines that stand by")
    prices = None if request.prices is None else Source(read_text(request.prices), str(request.prices))
    percentiles = {request.percentile or (w.slo.percentile if w.slo else 99.0) for w in workflows}
    if arrivals is not Arrivals.PACED and (len(percentiles) > 1 or max(percentiles) >= 100):
        raise WrongUsage("--percentile: one percentile below 100 for all workflows")
    options = Options(
        arrivals=arrivals,
        billing=Billing.USE if request.by_use else Billing.INTEGER,
        percentile=min(99.999, max(percentiles)),
        batching=request.batching,
        tighten=request.tighten,
        margin=request.margin,
    )
    cases = []
    for file, workflow in zip(request.files, workflows, strict=True):
        sources = [Source(read_text(path), str(path)) for path in _profiles(request.profiles, file, workflow)]
        inventory = take_stock(workflow, sources, prices, _wishes(request, workflow, len(workflows) > 1))
        slo_s, place = _slo(request.slo, file, workflow)
        question = Question(inventory.application, inventory.profiles, options, trace=trace)
        cases.append(Case(workflow, inventory, rates[workflow.name], slo_s, place, question))
    return cases, options


def solve(cases: Sequence[Case], options: Options) -> Together | Infeasible:
    """The plans of all of them."""
    return plan_together([case.tenant for case in cases], options)


def paced(case: Case, options: Options) -> Question:
    """The same question for evenly spaced arrivals and another method."""
    return dataclasses.replace(case.question, options=options, trace=None)


def pairs(given: Sequence[str], option: str, what: str) -> dict[str, str]:
    """`name=value` of a repeated option.

    Raises:
        WrongUsage: not of this form, or a name twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise WrongUsage(f"{option}: {text!r} is not of the form {what}")
        if name in found:
            raise WrongUsage(f"{option}: {name!r} is given twice")
        found[name] = value
    return found


def number(text: str, option: str, *, most: float | None = None, zero: bool = False) -> float:
    """A number above 0 from the command line.

    Raises:
        WrongUsage: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        raise WrongUsage(f"{option}: {text!r} is not a number") from None
    if not (value > 0 or (zero and value == 0)) or value == float("inf") or (most is not None and value > most):
        bound = "greater than 0" if most is None else f"from 0 to {most:g}" if zero else f"above 0, at most {most:g}"
        raise WrongUsage(f"{option}: {text} must be {bound}")
    return value


def _rates(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    named = pairs([text for text in given if "=" in text], "--rate", "WORKFLOW=R")
    plain = [text for text in given if "=" not in text]
    if len(plain) > 1:
        raise WrongUsage("--rate: give one number, or WORKFLOW=R for each workflow")
    for name in named:
        if name not in names:
            raise WrongUsage(f"--rate: no workflow {name!r} ({did_you_mean(name, names)})")
    rates = {name: number(named.get(name, plain[0] if plain else "0"), "--rate", zero=True) for name in names}
    for name, rate in rates.items():
        if rate == 0:
            raise WrongUsage(f"--rate: {name} needs a rate greater than 0")
    return rates


def _arrivals(text: str) -> tuple[Arrivals, Trace | None]:
    if text in WORDS:
        return WORDS[text], None
    if not Path(text).exists():
        hint = did_you_mean(text, WORDS, "poisson, paced, or a file with recorded arrivals")
        raise WrongUsage(f"--arrivals: {text!r} is neither a way of arriving nor a file ({hint})")
    from dataflower.loadgen.replay import Replay, read_trace

    return Arrivals.TRACED, Trace.of(read_trace(read_text(text), text, Replay()).times.tolist())


def _profiles(given: Sequence[Path], file: Path, workflow: Workflow) -> list[Path]:
    """What was named, else the profile of the workflow where `dataflower profile` puts it."""
    if given:
        return list(given)
    places = [Path("profiles"), file.parent / "profiles", file.parent.parent / "profiles"]
    found = next((p for place in places if (p := place / f"{workflow.name}.yaml").is_file()), None)
    if found is None:
        raise NotFound(
            f"no profile of {workflow.name}: measure it with `dataflower profile {file}`, or name one with --profiles"
        )
    return [found]


def _wishes(request: Request, workflow: Workflow, several: bool) -> Wishes:
    """The wishes for one workflow; of several, those whose names it has (a name that none has is refused there)."""
    models = pairs(request.models, "--model", "STAGE=MODEL")
    items = {name: number(n, "--items") for name, n in pairs(request.items, "--items", "STAGE=N").items()}
    shares = {
        name: number(n, "--share", most=1.0) for name, n in pairs(request.shares, "--share", "SWITCH.CASE=S").items()
    }
    if several:
        stages = workflow.stages
        models = {name: m for name, m in models.items() if name in stages}
        items = {name: n for name, n in items.items() if name.partition("/keyed")[0] in stages or name == "inputs"}
        shares = {name: s for name, s in shares.items() if name.rpartition(".")[0] in stages}
    return Wishes(
        models, items, shares, request.high, not request.alone, mend=request.mend, only=frozenset(request.devices)
    )


def _slo(given: str | None, file: Path, workflow: Workflow) -> tuple[float, Problem]:
    if given is not None:
        try:
            value = parse_duration(float(given) / 1000 if given.replace(".", "", 1).isdigit() else given)
        except ValueError as error:
            raise WrongUsage(f"--slo: {error}") from None
        if value <= 0:
            raise WrongUsage(f"--slo: {given} must be greater than 0")
        return value, Problem("--slo", 0, 0, "")
    if workflow.slo is None or workflow.slo.e2e_ms is None:
        raise WrongUsage(f"{file} states no `slo.e2e_ms`: write it there, or give --slo")
    tree = parse(read_file(file), str(file)) if str(file) != "-" else None
    place = Problem(str(file), 1, 1, "") if tree is None else tree.problem(("slo", "e2e_ms"), "")
    return workflow.slo.e2e_ms / 1000, place
