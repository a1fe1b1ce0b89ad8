"""What comes out of the runner."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from dataflower.llm.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithm of the probability of `token`, by the bare model; `top`: the likeliest in its place, with
    theirs.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt, of the answer (an end-of-sequence token too), and those of the prompt from the cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class TokenOutput(msgspec.Struct, frozen=True, gc=False):
    """One step of a generation.

    Attributes:
        token: The token chosen; None in an output that only ends a sequence, or scores its prompt.
        text: What is certain to be part of the answer now.
        logprob: If asked for.
        scores: Log-probabilities of the prompt's tokens, if asked for, in the first output; None = of the first token.
        finish: Set in the last output.
        stop_reason: Text or token of the request that ended the answer.
        usage: Set in the last output.
    """

    token: int | None
    text: str = ""
    logprob: Logprob | None = None
    scores: tuple[Logprob, ...] = ()
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
