"""What a plan for a stage with a language model was made from, in its file: step costs, lengths, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from dataflower.errors import InvalidArgument
from dataflower.planner.answers import TokenKind, TokenStage
from dataflower.planner.tokens import TokenCost
from dataflower.spec.document import Document

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LengthsDocument(Document):
    """Tokens that a plan counts on."""

    mean: Positive
    high: Positive = Field(description="At the percentile of the plan")


class StepBasis(Document):
    """How long a step takes that decodes for so many sequences."""

    sequences: int = Field(ge=1)
    duration_ms: Positive


class TokenKindBasis(Document):
    """What steps and prompts take on a kind of device."""

    price: Positive = Field(description="Of an hour")
    steps: list[StepBasis] = Field(min_length=1)
    prompt_token_ms: Positive = Field(description="A token of a prompt, besides")
    step_tokens: int = Field(ge=2, description="Tokens that one step computes at most")
    kv_tokens: int | None = Field(None, ge=1, description="Tokens for whose keys and values there is room")
    context_ms: NotNegative = Field(default=0.0, description="For each token that the sequences of a step hold")
    attend_ms: NotNegative = Field(default=0.0, description="For each pair of tokens of a prompt")
    resizable: bool = Field(default=True, description="Whether steps can be made smaller")


class TokensBasis(Document):
    """A stage that works in tokens, and what the objectives leave it (at the rate of the first plan)."""

    kinds: dict[str, TokenKindBasis] = Field(min_length=1, description="By kind of device")
    prompt_tokens: LengthsDocument
    output_tokens: LengthsDocument
    generations: Positive = Field(default=1.0, description="Answers for one task")
    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    itl_ms: Positive | None = None
    first: bool = Field(default=False, description="Whether the stage's latency ends with the first token")
    takes: list[str] = Field(default_factory=list, description="Settings that its function can be given")


class StartedDocument(Document):
    """What the containers of a stage are started for, whatever was planned again since."""

    concurrency: int = Field(ge=1, description="Tasks at a time")
    sequences: int = Field(ge=1)
    step_tokens: int = Field(ge=2)


def tokens_basis(stage: TokenStage) -> TokensBasis:
    """A stage for the file."""
    return TokensBasis(
        kinds={kind.hardware: _kind(kind) for kind in stage.kinds},
        prompt_tokens=LengthsDocument(mean=stage.prompt[0], high=stage.prompt[1]),
        output_tokens=LengthsDocument(mean=stage.output[0], high=stage.output[1]),
        generations=stage.generations,
        ttft_ms=_ms(stage.ttft_s),
        tpot_ms=_ms(stage.tpot_s),
        itl_ms=_ms(stage.gap_s),
        first=stage.first,
        takes=list(stage.takes),
    )


def token_stage(name: str, basis: TokensBasis, slowdown: float, allows: Callable[[str, str], bool]) -> TokenStage:
    """The stage again, with all durations `slowdown` times what was measured, on the devices that it may run on.

    Raises:
        InvalidArgument: no device is left, or the costs or lengths make no sense.
    """
    kinds = tuple(
        TokenKind(device, kind.price, _cost(kind, slowdown))
        for device, kind in basis.kinds.items()
        if allows(name, device)
    )
    if not kinds:
        raise InvalidArgument(f"stage {name!r} has token costs on {', '.join(basis.kinds)} only, which is not here")
    for what, lengths in (("prompt_tokens", basis.prompt_tokens), ("output_tokens", basis.output_tokens)):
        if lengths.high < lengths.mean:
            message = f"the mean of {lengths.mean:g} is above {lengths.high:g} at the percentile"
            raise InvalidArgument(f"stage {name!r}: {what}: {message}")
    return TokenStage(
        kinds,
        (basis.prompt_tokens.mean, basis.prompt_tokens.high),
        (basis.output_tokens.mean, basis.output_tokens.high),
        basis.generations,
        _s(basis.ttft_ms),
        _s(basis.tpot_ms),
        _s(basis.itl_ms),
        basis.first,
        tuple(basis.takes),
    )


def as_started(stage: TokenStage, started: StartedDocument) -> TokenStage:
    """The stage with no other sizes of steps, and no more sequences, than its containers are started for."""
    kinds = tuple(
        replace(
            kind, cost=replace(kind.cost.limited(started.sequences), step_tokens=started.step_tokens, resizable=False)
        )
        for kind in stage.kinds
        if started.step_tokens > min(started.sequences, kind.cost.most)
    )
    return replace(stage, kinds=kinds)


def _kind(kind: TokenKind) -> TokenKindBasis:
    cost = kind.cost
    return TokenKindBasis(
        price=kind.price,
        steps=[StepBasis(sequences=b, duration_ms=_exact(seconds)) for b, seconds in cost.steps],
        prompt_token_ms=_exact(cost.prompt_s),
        step_tokens=cost.step_tokens,
        kv_tokens=cost.kv_tokens,
        context_ms=_exact(cost.context_s),
        attend_ms=_exact(cost.attend_s),
        resizable=cost.resizable,
    )


def _cost(kind: TokenKindBasis, slowdown: float) -> TokenCost:
    by = slowdown / 1000
    return TokenCost(
        tuple((step.sequences, step.duration_ms * by) for step in kind.steps),
        kind.prompt_token_ms * by,
        kind.step_tokens,
        kind.kv_tokens,
        kind.context_ms * by,
        kind.attend_ms * by,
        kind.resizable,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _exact(seconds)


def _s(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _exact(seconds: float) -> float:
    """Milliseconds to nine significant digits."""
    return float(f"{seconds * 1000:.9g}")
