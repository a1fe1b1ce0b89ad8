"""How many requests of a function go together, and how long the first of them may wait for the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST = 16
"""Requests in a batch, where nothing else limits them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time to the first token of a batch of b, with the device to itself: `first_s` + `more_s` (b - 1)."""

    first_s: float
    more_s: float

    def of(self, batch: int) -> float:
        """Seconds."""
        return self.first_s + self.more_s * (batch - 1)


@dataclass(frozen=True, slots=True)
class Window:
    """A batch closes with `size` requests, or when its oldest one has waited for `wait_s`."""

    size: int
    wait_s: float


def window(slo_s: float, latency: Latency, *, most: int = MOST, fitting: int = MOST) -> Window:
    """The window of a function, from its objective for the time to the first token.

    After ServerlessLoRA (EuroSys'26), section 4.2: the largest batch that alone keeps the objective, and what is left
    of the time then. As that batch is the largest, what is left is always less than one more request would take; so it
    is a cap on the size that makes room for waiting.

    Args:
        slo_s: objective.
        latency: measured.
        most: cap on the size.
        fitting: how many have room in memory at a time.
    """
    spare_s = slo_s - latency.first_s
    size = most if latency.more_s <= 0 else math.floor(max(-1.0, min(spare_s / latency.more_s, most)) + 1e-9) + 1
    size = max(1, min(size, most, fitting))
    return Window(size, max(0.0, slo_s - latency.of(size)))
