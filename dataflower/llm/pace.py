"""How fast a runner computes, and so when a newcomer's first token would come. Pure."""

from __future__ import annotations

from dataflower.llm.token_time import TokenTime

WEIGHT = 0.2
"""How much one more step counts in the moving average."""
FEW = 16
"""Tokens: steps of fewer say how long a step takes, not how fast prompts are computed."""


class Pace:
    """What was measured lately: prompts, steps that only decode, and how long answers get."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        """Of prompts, in steps with such; what decodes beside them is part of it. 0 before anything was measured."""
        self.step_s = 0.0
        """A step in which everybody decodes; 0 before there was one."""
        self.further = TokenTime()
        """Each further token of an answer."""
        self.used: float | None = None
        """Share of the tokens that an answer may have which it has; None before one has ended."""

    def note(self, prompt_tokens: int, seconds: float, answers: int = 0) -> None:
        """A step computed so many tokens of prompts and a further one of so many answers, and took so long in all."""
        if seconds <= 0:
            return
        self.further.note(answers, prompt_tokens, seconds)
        if not prompt_tokens:
            self.step_s += WEIGHT * (seconds - self.step_s) if self.step_s else seconds
        elif prompt_tokens >= FEW:
            rate = prompt_tokens / seconds
            self.tokens_per_s += WEIGHT * (rate - self.tokens_per_s) if self.tokens_per_s else rate

    def ended(self, tokens: int, limit: int) -> None:
        """An answer that might have had `limit` tokens came to its end with so many."""
        if limit < 1:
            return
        share = min(1.0, tokens / limit)
        self.used = share if self.used is None else self.used + WEIGHT * (share - self.used)

    def seconds(self, tokens: int) -> float:
        """Until so many tokens of prompts are computed; 0 if nobody knows."""
        return tokens / self.tokens_per_s if self.tokens_per_s else 0.0

    def writing_s(self, tokens: float) -> float:
        """Until an answer that may have so many more tokens has ended, about; 0 if nobody knows."""
        return tokens * self.step_s * (self.used or 0.0)
