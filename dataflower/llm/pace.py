"""How fast a runner computes prompts, and so when a newcomer's first token would come. Pure."""

from __future__ import annotations

WEIGHT = 0.2
"""How much one more step counts in the moving average."""
FEW = 16
"""Tokens: steps of fewer say how long a step takes, not how fast prompts are computed."""


class Pace:
    """Tokens a second in steps with prompts, as measured lately; what decodes beside them is part of it."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        """0 before anything was measured."""

    def note(self, prompt_tokens: int, seconds: float) -> None:
        """A step computed so many tokens of prompts, and took so long in all."""
        if prompt_tokens < FEW or seconds <= 0:
            return
        rate = prompt_tokens / seconds
        self.tokens_per_s += WEIGHT * (rate - self.tokens_per_s) if self.tokens_per_s else rate

    def seconds(self, tokens: int) -> float:
        """Until so many tokens of prompts are computed; 0 if nobody knows."""
        return tokens / self.tokens_per_s if self.tokens_per_s else 0.0
