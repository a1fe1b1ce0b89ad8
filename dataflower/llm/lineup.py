"""Who decodes side by side, as long as nobody comes or goes: what a step needs of them, looked up once for many steps.

Between two steps the processor's caches hold the model's weights, so what is touched there costs more than what is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from dataflower.llm.fused import Decoded
from dataflower.llm.generation import Generation
from dataflower.llm.lora import LoraBatch
from dataflower.llm.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class Lineup:
    """Generations in the order of the scheduler, their rows in the store, and their adapters.

    `is_bare`: the likeliest token is all that anybody wants; its text is made by who reads it.
    """

    generations: tuple[Generation, ...]
    rows: list[int]
    lora: LoraBatch | None
    is_bare: bool

    def fits(self, chunks: Listing[Chunk]) -> bool:
        """Whether a step in which everybody decodes is one for the same generations, in the same order."""
        if len(chunks) != len(self.generations):
            return False
        for generation, chunk in zip(self.generations, chunks, strict=True):
            if generation.sequence is not chunk.sequence:
                return False
        return True

    def takes(self, decoded: Decoded) -> bool:
        """Whether the likeliest tokens are the answer as they are; not if they come of numbers that are not finite."""
        return self.is_bare and math.isfinite(math.fsum(decoded.best))


def line_up(generations: Listing[Generation], rows: list[int], lora: LoraBatch | None) -> Lineup:
    """Of those who are past their first token."""
    bare = all(each.spoke and each.text is None and each.chooser.bare for each in generations)
    return Lineup(tuple(generations), rows, lora, bare)
