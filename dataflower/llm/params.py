"""How the tokens of one sequence are chosen, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataflower.errors import InvalidArgument

MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_TEMPERATURE = 2
"""Beyond it answers are noise; OpenAI's API draws the same line."""


def within(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raises InvalidArgument, which names the parameter, unless the value is from `low` to `high` (None: no limit)."""
    if not (value >= low and (high is None or value <= high)):  # a NaN is not within anything
        limit = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise InvalidArgument(f"{name} is {value!r}; it must be {limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What a caller wants of one sequence. Checked when made.

    Attributes:
        max_tokens: Tokens to generate at most; None = until the context is full; 0 = none (fills the cache, scores).
        min_tokens: The end-of-sequence token and `stop_tokens` can't be chosen before so many.
        temperature: 0 = greedy: the likeliest token, whatever the other settings of chance are.
        top_p: Only the likeliest tokens that together have this probability.
        top_k: Only so many of the likeliest; 0 = all.
        seed: Makes chance repeatable; None = another outcome each time.
        stop: Texts that end the answer; they are not part of it.
        stop_tokens: Tokens that end the answer, besides the model's own end-of-sequence tokens.
        ignore_eos: Go on after an end-of-sequence token (for load tests).
        logprobs: None = none; n = log-probability of each token and of the n likeliest in its place.
        score_from: Give the log-probabilities of the prompt's tokens from this index on (at least 1); None = of none.
        presence_penalty, frequency_penalty: Subtracted from the logits of tokens that were generated before: once, and
            as often as they were.
        logit_bias: Added to the logits of tokens.
        schema: JSON Schema as text that the answer follows; "" = anything goes.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    score_from: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    schema: str = ""

    def __post_init__(self) -> None:
        within("max_tokens", self.max_tokens or 0, 0)
        within("min_tokens", self.min_tokens, 0, self.max_tokens)
        within("temperature", self.temperature, 0, MAX_TEMPERATURE)
        within("top_p", self.top_p, 0, 1)
        within("top_k", self.top_k, 0)
        within("logprobs", self.logprobs or 0, 0, MAX_TOP_LOGPROBS)
        within("score_from", 1 if self.score_from is None else self.score_from, 1)
        within("presence_penalty", self.presence_penalty, -2, 2)
        within("frequency_penalty", self.frequency_penalty, -2, 2)
        for bias in self.logit_bias.values():
            within("logit_bias", bias, -100, 100)
        if not all(self.stop) or len(self.stop) > MAX_STOPS:
            raise InvalidArgument(f"stop: at most {MAX_STOPS} texts, none of them empty")

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0.0 or self.top_k == 1 or self.top_p == 0.0

    @property
    def plain(self) -> bool:
        """Whether the likeliest token by the bare logits is what is wanted."""
        penalties = self.presence_penalty or self.frequency_penalty or self.logit_bias
        return self.greedy and not (penalties or self.schema or self.min_tokens)
