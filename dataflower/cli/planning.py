"""From the command line to a question to the planner: files read, options checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dataflower.cli.exits import WrongUsage
from dataflower.cli.plan_options import Asked, Charge, Objectives
from dataflower.cli.weights_table import weights_of
from dataflower.cli.workflows import beside, load_file, read_file
from dataflower.config.text import read_text
from dataflower.errors import NotFound, Problem
from dataflower.planner import Arrivals, Billing, Infeasible, Options, Question, Tenant, Together, Trace, plan_together
from dataflower.planner.inventory import Inventory, Source, Wishes, take_stock
from dataflower.planner.loading import Weights
from dataflower.planner.promises import Promises, PromisesBroken, beyond, implied_s, settle
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.tree import parse
from dataflower.spec.units import parse_duration
from dataflower.spec.workflow import Workflow

if TYPE_CHECKING:
    from dataflower.config.settings import Config

WORDS = {"poisson": Arrivals.POISSON, "paced": Arrivals.PACED}


@dataclass(frozen=True, slots=True)
class Case:
    """One workflow to plan. `place`: where its SLO stands, for messages."""

    workflow: Workflow
    inventory: Inventory
    rate: float
    slo_s: float
    place: Problem
    question: Question
    promises: Promises = field(default_factory=Promises)
    weights: Mapping[str, Weights] = field(default_factory=dict)

    @property
    def tenant(self) -> Tenant:
        """The same as the planner calls it."""
        return Tenant(self.question, self.rate, self.slo_s)


def stock(asked: Asked, config: Config) -> tuple[list[Case], Options]:
    """Read everything; the workflows with what they may run on, and the method.

    Raises:
        WrongUsage: options that contradict each other or the workflows.
        DataflowerError: files that can't be read or don't hold together.
    """
    objectives, facts, reckoning = asked.objectives, asked.facts, asked.reckoning
    settings = beside(config, asked.files)
    workflows = [load_file(file, settings, asked.profile)[0] for file in asked.files]
    names = [workflow.name for workflow in workflows]
    if len(set(names)) < len(names):
        raise WrongUsage("two of the files are workflows of one name")
    rates = _rates(asked.rates, names)
    arrivals, trace = _arrivals(asked.arrivals)
    by_use = reckoning.billing is Charge.USE
    if by_use and arrivals is not Arrivals.PACED:
        raise WrongUsage("--billing use needs --arrivals paced: random arrivals need whole machines that stand by")
    prices = None if facts.prices is None else Source(read_text(facts.prices), str(facts.prices))
    percentiles = {objectives.percentile or (w.slo.percentile if w.slo else 99.0) for w in workflows}
    if arrivals is not Arrivals.PACED and (len(percentiles) > 1 or max(percentiles) >= 100):
        raise WrongUsage("--percentile: one percentile below 100 for all workflows")
    options = Options(
        arrivals=arrivals,
        billing=Billing.USE if by_use else Billing.INTEGER,
        percentile=min(99.999, max(percentiles)),
        batching=not reckoning.single,
        tighten=reckoning.tight,
        margin=reckoning.margin,
    )
    cases = []
    for file, workflow in zip(asked.files, workflows, strict=True):
        sources = [Source(read_text(path), str(path)) for path in _profiles(facts.profiles, file, workflow)]
        inventory = take_stock(workflow, sources, prices, _wishes(asked, workflow, len(workflows) > 1))
        promises = _promises(objectives, file, workflow, inventory)
        slo_s, place = _slo(objectives.slo, file, workflow, inventory, promises)
        question = Question(inventory.application, inventory.profiles, options, trace=trace, tokens=inventory.tokens)
        cases.append(
            Case(
                workflow,
                inventory,
                rates[workflow.name],
                slo_s,
                place,
                question,
                promises,
                weights_of(workflow, config),
            )
        )
    return cases, options


def settled(cases: Sequence[Case]) -> list[Case] | PromisesBroken:
    """The cases with what objectives for tokens leave each of their stages."""
    found = []
    for case in cases:
        question = settle(case.question, case.rate, case.promises, case.inventory.streams)
        if isinstance(question, PromisesBroken):
            return question
        found.append(dataclasses.replace(case, question=question))
    return found


def solve(cases: Sequence[Case], options: Options) -> Together | Infeasible:
    """The plans of all of them."""
    return plan_together([case.tenant for case in cases], options)


def paced(case: Case, options: Options) -> Question:
    """The same question for evenly spaced arrivals and another method."""
    return dataclasses.replace(case.question, options=options, trace=None, tokens={}, caps={})


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


def _wishes(asked: Asked, workflow: Workflow, several: bool) -> Wishes:
    """The wishes for one workflow; of several, those whose names it has (a name that none has is refused there)."""
    objectives, facts, reckoning = asked.objectives, asked.facts, asked.reckoning
    models = pairs(facts.model, "--model", "STAGE=MODEL")
    items = {name: number(n, "--items") for name, n in pairs(facts.items, "--items", "STAGE=N").items()}
    shares = {
        name: number(n, "--share", most=1.0) for name, n in pairs(facts.share, "--share", "SWITCH.CASE=S").items()
    }
    if several:
        stages = workflow.stages
        models = {name: m for name, m in models.items() if name in stages}
        items = {name: n for name, n in items.items() if name.partition("/keyed")[0] in stages or name == "inputs"}
        shares = {name: s for name, s in shares.items() if name.rpartition(".")[0] in stages}
    return Wishes(
        models,
        items,
        shares,
        not reckoning.median,
        not reckoning.alone,
        prompts=_lengths(objectives.prompt_tokens, "--prompt-tokens", list(workflow.stages)),
        answers=_lengths(objectives.output_tokens, "--output-tokens", list(workflow.stages)),
        mend=reckoning.mend,
        only=frozenset(facts.device),
    )


def _promises(objectives: Objectives, file: Path, workflow: Workflow, inventory: Inventory) -> Promises:
    """The objectives for tokens: of the command line, else of the workflow."""
    own = workflow.slo
    given = {"ttft": objectives.ttft, "tpot": objectives.tpot, "itl": objectives.itl}
    stated = {name: None if own is None else getattr(own, f"{name}_ms") for name in given}
    seconds = {
        name: _duration(text, f"--{name}") if text is not None else None if (ms := stated[name]) is None else ms / 1000
        for name, text in given.items()
    }
    promises = Promises(seconds["ttft"], seconds["tpot"], seconds["itl"])
    if not promises.any or inventory.streams:
        return promises
    wanted = [f"--{name}" for name, text in given.items() if text is not None]
    if wanted or ((own is None or own.e2e_ms is None) and objectives.slo is None):
        name = wanted[0] if wanted else f"slo.{next(name for name, ms in stated.items() if ms is not None)}_ms"
        raise WrongUsage(
            f"{file}: {name} needs a language model whose answers leave the workflow as a stream, and the profile has "
            "none: profile again if there is one, or state slo.e2e_ms"
        )
    return Promises()  # of a workflow that is planned by its end-to-end objective, as it streams no answers


def _duration(text: str, option: str) -> float:
    """Seconds; a bare number is milliseconds."""
    try:
        value = parse_duration(float(text) / 1000 if text.replace(".", "", 1).isdigit() else text)
    except ValueError as error:
        raise WrongUsage(f"{option}: {error}") from None
    if value <= 0:
        raise WrongUsage(f"{option}: {text} must be greater than 0")
    return value


def _slo(
    given: str | None, file: Path, workflow: Workflow, inventory: Inventory, promises: Promises
) -> tuple[float, Problem]:
    """The end-to-end objective: given, stated, or what objectives for tokens come to; and where it stands."""
    if given is not None:
        return _duration(given, "--slo"), Problem("--slo", 0, 0, "")
    if workflow.slo is not None and workflow.slo.e2e_ms is not None:
        return workflow.slo.e2e_ms / 1000, _place(file, "e2e_ms")
    if not promises.any:
        raise WrongUsage(f"{file} states no `slo.e2e_ms`: write it there, or give --slo")
    held = beyond(inventory.application, inventory.streams)
    if held:
        raise WrongUsage(
            f"{file}: stage {held[0]!r} is not on the way to the first token, so `slo.ttft_ms` does not say how long "
            "it may take: state `slo.e2e_ms`, too, or give --slo"
        )
    whole = implied_s(promises, inventory.tokens, inventory.streams)
    if whole is None:
        raise WrongUsage(
            f"{file}: objectives for the first token and for further ones belong together where there is no "
            "`slo.e2e_ms`: state `slo.ttft_ms` and `slo.tpot_ms`"
        )
    return whole, _place(file, "ttft_ms")


def _place(file: Path, key: str) -> Problem:
    tree = parse(read_file(file), str(file)) if str(file) != "-" else None
    return Problem(str(file), 1, 1, "") if tree is None else tree.problem(("slo", key), "")


def _lengths(given: Sequence[str], option: str, stages: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`[STAGE=]MEAN[:HIGH]`; without a stage it is for all that work in tokens (named `*` until these are known)."""
    found: dict[str, tuple[float, float]] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        mean, colon, high = value.partition(":")
        length = number(mean, option), number(high, option) if colon else 0.0
        if length[1] and length[1] < length[0]:
            raise WrongUsage(f"{option}: {text}: the tokens at the percentile can't be fewer than the mean")
        if (name if equals else "*") in found:
            raise WrongUsage(f"{option}: {name or 'every stage'} is given twice")
        if equals and name not in stages:
            raise WrongUsage(f"{option}: no stage {name!r} ({did_you_mean(name, stages)})")
        found[name if equals else "*"] = length
    return found
