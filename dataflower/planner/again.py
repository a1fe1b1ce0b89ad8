"""Planning again: the plan of the same file for another rate or other run times, as large as there is room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dataflower.planner.basis import question_of, slowdown_of, slowed
from dataflower.planner.document import PlanDocument, StageDocument, as_it_starts, document_of
from dataflower.planner.plan import Plan, answer
from dataflower.planner.token_basis import StartedDocument, as_started

TRIES = 6
"""Plans that are tried between the present rate and one that there is no plan or no room for."""
LEAST = 1 / 8
"""Of the present rate: what is tried at least if runs take longer and there is no plan for it any more."""


@dataclass(frozen=True, slots=True)
class Again:
    """What planning again came to. `document`: None if the present plan is to be kept; `note`: why, for people."""

    document: PlanDocument | None
    note: str = ""


def plan_again(
    document: PlanDocument,
    rate: float,
    refusal: Callable[[PlanDocument], str],
    allows: Callable[[str, str], bool] = lambda stage, device: True,
    slowdown: Mapping[str, float] | None = None,
) -> Again:
    """The plan of the same workflow, SLO and method for `rate` invocations a second.

    If there is none, or no room for it, and the rate is above the present one, the largest rate in between for which
    there is one (to within a 64th of the way). If run times are longer than the present plan has them, the rate may be
    smaller than the present one: what admission lets in by such a plan is at least in time.

    Containers of language models stay what they were started as: their number changes, not what each is given.
    Objectives for tokens keep the split over the stages that the first plan had.

    Args:
        document: the present plan, with its basis.
        rate: that is wanted.
        refusal: why a plan can't be carried out; empty if it can.
        allows: whether a stage may run on a kind of device.
        slowdown: what run times are counted as, over the profile, by stage; None: as the present plan has them.

    Raises:
        InvalidArgument: the basis does not hold together.
    """
    assert document.basis is not None, "a plan without its basis can't be planned again"
    known = slowdown_of(document.basis)
    basis = document.basis if slowdown is None else slowed(document.basis, slowdown)
    longer = any(factor > known.get(name, 1.0) for name, factor in slowdown_of(basis).items())
    started = {name: as_it_starts(stage) for name, stage in document.stages.items() if stage.tokens is not None}
    question = question_of(basis, document.workflow, allows)
    tokens = {name: as_started(stage, started[name]) for name, stage in question.tokens.items() if name in started}
    question = replace(question, tokens=tokens)

    def attempt(wanted: float) -> Again:
        found = answer(question, wanted, document.slo_ms / 1000, explain=False)
        if not isinstance(found, Plan):
            path = " -> ".join(found.path)
            return Again(
                None, f"no plan keeps {document.slo_ms:g} ms at {wanted:.4g}/s: stage {found.stage!r} on {path}"
            )
        made = document_of(found, question.options, document.method, question)
        stages = {
            name: _as_started(stage, started.get(name), document.stages[name]) for name, stage in made.stages.items()
        }
        made = made.model_copy(update={"basis": basis, "replan": document.replan, "stages": stages})
        why = refusal(made)
        return Again(None, why) if why else Again(made)

    first = attempt(rate)
    low, high, best = document.rate_per_s, rate, first
    if first.document is None and longer:
        low = min(low, rate) * LEAST
        least = attempt(low)
        best = first if least.document is None else Again(least.document, first.note)
        high = rate if least.document is not None else low
    for _ in range(TRIES if first.document is None and high > low else 0):
        middle = math.sqrt(low * high)
        found = attempt(middle)
        if found.document is None:
            high = middle
        else:
            low, best = middle, Again(found.document, first.note)
    return best


def _as_started(stage: StageDocument, started: StartedDocument | None, before: StageDocument) -> StageDocument:
    """A stage planned again, with what its containers were given, and what they load, before."""
    if before.weights is not None:
        stage = stage.model_copy(update={"weights": before.weights})
    if started is None or stage.tokens is None or before.tokens is None:
        return stage
    given = {"started": started, "params": before.tokens.params}
    return stage.model_copy(update={"tokens": stage.tokens.model_copy(update=given)})
