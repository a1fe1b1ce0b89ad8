"""Objectives for tokens in a workflow: what they leave for each stage, and what is nearest where they do not hold.

`settle` turns objectives for the first token and for further ones into limits of single stages; planning goes on from
there as for any other workflow. Where there are no such limits it says what is nearest: every value has been planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dataflower.planner.answers import TokenStage, curve, percentile_of
from dataflower.planner.application import Application
from dataflower.planner.assemble import Draft
from dataflower.planner.nearest import short
from dataflower.planner.options import Arrivals
from dataflower.planner.question import Question
from dataflower.planner.tokens import TokensInfeasible, plan_tokens

FAR = 1e7
"""Seconds: as good as no limit."""


@dataclass(frozen=True, slots=True)
class Promises:
    """Objectives of a workflow for its tokens, in seconds; None = none. `gap_s`: between two tokens."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    gap_s: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return not (self.ttft_s is None and self.tpot_s is None and self.gap_s is None)


@dataclass(frozen=True, slots=True)
class PromisesBroken:
    """No plan keeps the objectives: why, and what there is instead.

    Attributes:
        application: its name.
        rate: invocations a second.
        promises: what was asked for.
        stage: the model that binds.
        reason: in words.
        nearest: objectives that can be kept together; those that can stay are as they were. None if there are none.
        prompt_tokens: the longest prompt with which what was asked for can be kept; None if there is none.
    """

    application: str
    rate: float
    promises: Promises
    stage: str
    reason: str
    nearest: Promises | None
    prompt_tokens: int | None


def settle(
    question: Question, rate: float, promises: Promises, streams: Sequence[str], *, explain: bool = True
) -> Question | PromisesBroken:
    """The question with a limit for each stage that the objectives bind.

    Args:
        question: with its stages that work in tokens.
        rate: invocations a second.
        promises: objectives; the margin of the question's options is left unused of each.
        streams: the stages that work in tokens and whose answers leave the workflow token by token.
        explain: False leaves the nearest objectives out; they take many plans to find.
    """
    if not promises.any or not streams:
        return question
    found = _settled(question, rate, promises, streams)
    if isinstance(found, Question):
        return found
    nearest = _nearest(question, rate, promises, streams) if explain else None
    longest = _longest(question, rate, promises, streams, found) if explain else None
    reason = _reason(question, rate, promises, found)
    return PromisesBroken(question.application.name, rate, promises, found, reason, nearest, longest)


def _settled(question: Question, rate: float, promises: Promises, streams: Sequence[str]) -> Question | str:
    """The limits; the name of the stage for which there are none."""
    left = 1.0 - question.options.margin
    tpot_s, gap_s = (None if value is None else value * left for value in (promises.tpot_s, promises.gap_s))
    tokens = {
        name: replace(stage, tpot_s=tpot_s, gap_s=gap_s) if name in streams else stage
        for name, stage in question.tokens.items()
    }
    percentile = percentile_of(question.options, len(question.application.modules))
    for name in streams:
        if not curve(tokens[name], rate * question.application.module(name).factor, percentile):
            return name
    caps: dict[str, float] = dict(question.caps)
    for name in streams if promises.ttft_s is not None else ():
        assert promises.ttft_s is not None
        budgets = _first_token(replace(question, tokens=tokens), rate, promises.ttft_s, name)
        if budgets is None:
            return name
        tokens[name] = replace(tokens[name], ttft_s=budgets[name])
        before = {other: budget for other, budget in budgets.items() if other != name}
        caps.update({other: min(budget, caps.get(other, math.inf)) for other, budget in before.items()})
    return replace(question, tokens=tokens, caps=caps)


def _first_token(question: Question, rate: float, ttft_s: float, name: str) -> Mapping[str, float] | None:
    """What each stage up to the first token of `name` may take; None if that is too little for them."""
    whole = question.application
    part = _up_to(whole, name)
    tokens = {other: replace(stage, first=other == name) for other, stage in question.tokens.items()}
    tokens = {other: stage for other, stage in tokens.items() if other in part.order}
    options = question.options
    if options.arrivals is not Arrivals.PACED:  # each stage may be late as often as in the whole
        late = (100 - options.percentile) * len(part.modules) / len(whole.modules)
        options = replace(options, percentile=100 - late)
    asked = replace(question, application=part, tokens=tokens, options=options)
    problem = asked.problem(rate, ttft_s)
    found = asked.solve(problem)
    if found is None:
        return None
    return dict(Draft(problem, rate, found).budgets)


def _up_to(application: Application, name: str) -> Application:
    """The modules that a module waits for, and itself."""
    wanted, waiting = set[str](), [name]
    while waiting:
        one = waiting.pop()
        if one not in wanted:
            wanted.add(one)
            waiting += application.parents[one]
    modules = tuple(m for m in application.modules if m.name in wanted)
    edges = tuple((a, b) for a, b in application.edges if a in wanted and b in wanted)
    return Application(application.name, modules, edges)


def _reason(question: Question, rate: float, promises: Promises, name: str) -> str:
    ttft_s, tpot_s, gap_s = (
        None if value is None else value * (1.0 - question.options.margin)
        for value in (promises.ttft_s, promises.tpot_s, promises.gap_s)
    )
    stage = replace(question.tokens[name], ttft_s=ttft_s, tpot_s=tpot_s, gap_s=gap_s)
    percentile = percentile_of(question.options, len(question.application.modules))
    load = stage.load(rate * question.application.module(name).factor)
    found = [plan_tokens(kind.cost, load, stage.slo(percentile)) for kind in stage.kinds]
    reasons = [one.reason for one in found if isinstance(one, TokensInfeasible)]
    if len(reasons) == len(found):
        return reasons[0]
    before = ", ".join(n for n in _up_to(question.application, name).order if n != name)
    return f"{before} before it leave too little of the time for its first token"


def _nearest(question: Question, rate: float, promises: Promises, streams: Sequence[str]) -> Promises | None:
    """Objectives that can be kept together: one after the other is made as long as it has to be."""

    def works(one: Promises) -> bool:
        return isinstance(_settled(question, rate, one, streams), Question)

    known = Promises(
        None if promises.ttft_s is None else FAR,
        None if promises.tpot_s is None else FAR,
        None if promises.gap_s is None else FAR,
    )
    if not works(known):
        return None
    for name in ("gap_s", "tpot_s", "ttft_s"):
        wanted: float | None = getattr(promises, name)
        if wanted is None:
            continue
        value = _least(wanted, lambda s, name=name, known=known: works(replace(known, **{name: s})))  # type: ignore[misc]
        known = replace(known, **{name: value})
    return known


def _least(wanted: float, works: Callable[[float], bool]) -> float:
    """The least value from `wanted` on that works, to within 0.2 %, in few digits of a millisecond."""
    if works(wanted):
        return wanted
    low, high = wanted, 2 * wanted
    while high < FAR and not works(high):
        low, high = high, 2 * high
    high = min(high, FAR)
    while high > low * 1.001:
        middle = (low + high) / 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return short(high * 1000, +1, lambda ms: works(ms / 1000)) / 1000


def _longest(question: Question, rate: float, promises: Promises, streams: Sequence[str], name: str) -> int | None:
    """The longest prompts of a stage with which everything holds, the mean in proportion; None if none are."""
    mean, high = question.tokens[name].prompt

    def works(tokens: int) -> bool:
        prompt = (mean * tokens / high, float(tokens))
        shorter = replace(question.tokens[name], prompt=prompt)
        asked = replace(question, tokens={**question.tokens, name: shorter})
        return isinstance(_settled(asked, rate, promises, streams), Question)

    low, most = 0, max(1, math.ceil(high) - 1)
    if not works(1):
        return None
    while most > low + 1:
        middle = (low + most) // 2
        low, most = (middle, most) if works(middle) else (low, middle)
    return most if works(most) else max(1, low)


def implied_s(promises: Promises, tokens: Mapping[str, TokenStage], streams: Sequence[str]) -> float | None:
    """How long an invocation takes at most if its tokens keep their objectives; None if they don't say."""
    if promises.ttft_s is None or (promises.tpot_s is None and promises.gap_s is None):
        return None
    each = promises.tpot_s if promises.tpot_s is not None else promises.gap_s
    assert each is not None
    return promises.ttft_s + max(max(0.0, tokens[name].output[1] - 1) for name in streams) * each


def beyond(application: Application, streams: Sequence[str]) -> tuple[str, ...]:
    """The stages that are not on the way to the first token: only an objective for the whole holds them to anything."""
    before = {module.name for name in streams for module in _up_to(application, name).modules}
    return tuple(module.name for module in application.modules if module.name not in before)
