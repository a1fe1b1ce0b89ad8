"""What a runner has done, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dataflower.llm.blocks import BlockStatistics
from dataflower.llm.output import Usage


@dataclass(frozen=True, slots=True)
class RunnerStatistics:
    """Counts since the start. `busy_s`: time of all steps, with all that is done for them; `model_s`: in the model."""

    running: int
    waiting: int
    steps: int
    computed_tokens: int
    generated_tokens: int
    preemptions: int
    busy_s: float
    model_s: float
    blocks: BlockStatistics


class Watcher(Protocol):
    """Told of what a runner does, on the runner's thread: to be quick."""

    def stepped(self, decoding: int, prompt_tokens: int) -> None:
        """A step is over: so many sequences got a further token, and so many tokens of prompts were computed."""
        ...

    def finished(self, usage: Usage) -> None:
        """An answer is complete."""
        ...
