"""One generation: its tokens, how far they are computed, and when it ends."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from dataflower.llm.blocks import Table
from dataflower.llm.params import SamplingParams


class Phase(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was generated after it.

    Attributes:
        number: In order of arrival; the smaller one goes first.
        root: Which model and adapter compute it: sequences of different roots never share a block.
        tokens: The prompt's and the generated ones.
        prompt: How many of them are the prompt's.
        open: The prompt may still grow (its producer streams it).
        limit: Tokens in all that it may reach.
        ends: Tokens that end it.
        computed: Tokens whose keys and values exist.
        cached: Of the prompt, tokens that the prefix cache had.
        parked: It lost its place while nothing more of its open prompt came: how many tokens there were.
        stop_token: The token of `params.stop_tokens` that ended it.
    """

    number: int
    root: Hashable
    tokens: list[int]
    params: SamplingParams
    limit: int
    ends: frozenset[int] = frozenset()
    open: bool = False
    prompt: int = field(init=False)
    phase: Phase = Phase.WAITING
    finish: FinishReason | None = None
    computed: int = 0
    cached: int = 0
    preemptions: int = 0
    parked: int = 0
    stop_token: int | None = None
    table: Table | None = None
    enders: frozenset[int] = field(init=False)
    """Tokens that end it, those that the request names among them."""

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)
        params = self.params
        self.enders = frozenset(params.stop_tokens) if params.ignore_eos else self.ends | frozenset(params.stop_tokens)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt

    @property
    def ready(self) -> int:
        """Tokens that could be computed now; the last of an open prompt waits, since its logits may be wanted."""
        return len(self.tokens) - self.computed - (1 if self.open else 0)

    @property
    def eager(self) -> bool:
        """Whether it would use a place among those that run."""
        return self.ready > 0 and not (self.open and len(self.tokens) <= self.parked)

    @property
    def decoding(self) -> bool:
        """Whether only its newest generated token has to be computed."""
        return self.generated > 0 and self.ready == 1

    def extend(self, tokens: Iterable[int]) -> None:
        """More of an open prompt."""
        assert self.open, "the prompt is closed"
        self.tokens.extend(tokens)
        self.prompt = len(self.tokens)

    def accept(self, token: int) -> FinishReason | None:
        """Take a token that was chosen; gives why the sequence is over, if it is."""
        tokens = self.tokens
        tokens.append(token)
        if token in self.enders and len(tokens) - self.prompt >= self.params.min_tokens:
            if token in self.params.stop_tokens:
                self.stop_token = token
            return FinishReason.STOP
        if len(tokens) >= self.limit:
            return FinishReason.LENGTH
        return None
