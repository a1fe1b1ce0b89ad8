"""Weights that a stage has to wait for when one more container starts: what that means for a plan.

How long a load takes is measured elsewhere and comes in as data (q + n/b, ServerlessLLM, OSDI'24, section 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dataflower.planner.result import StagePlan
from dataflower.spec.document import Document


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a stage.

    Attributes:
        model: as the workflow names it.
        tier: the nearest one on the machine that has them: `remote`, `disk`, `memory`.
        nbytes: None = not known.
        load_s: until they can be used; None = the way has not been measured.
    """

    model: str
    tier: str
    nbytes: int | None = None
    load_s: float | None = None


class WeightsDocument(Document):
    """What a container of the stage waits for if it is the first on its machine."""

    model: str
    tier: str = Field(description="Where the weights were when this was planned: remote, disk or memory")
    nbytes: int | None = Field(default=None, ge=0)
    load_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Until they can be used; not there: the way has not been measured"
    )
    prewarm: bool = Field(
        default=False, description="A task that waits for them misses the stage's budget: they are to be loaded before"
    )


def is_late(stage: StagePlan, weights: Weights) -> bool:
    """Whether a task that has to wait for the weights misses the stage's budget; so does one of unknown length."""
    return weights.load_s is None or stage.worst_s + weights.load_s > stage.budget_s


def weights_document(stage: StagePlan, weights: Weights) -> WeightsDocument:
    """For the plan file."""
    return WeightsDocument(
        model=weights.model,
        tier=weights.tier,
        nbytes=weights.nbytes,
        load_ms=None if weights.load_s is None else float(f"{weights.load_s * 1000:.9g}"),
        prewarm=is_late(stage, weights),
    )
