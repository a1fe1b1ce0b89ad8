"""How fast a simulated machine is over time: what its runs take, as a multiple of what the profile says."""

from __future__ import annotations

from collections.abc import Callable

Tempo = Callable[[float], float]
"""Seconds since the first arrival could come -> measured over profiled run time of a run that begins then."""


def steady(factor: float) -> Tempo:
    """All the time the same."""
    return lambda time: factor


def step(factor: float, at_s: float, until_s: float = float("inf")) -> Tempo:
    """As profiled, but for a time in between in which something else wants the machine."""
    return lambda time: factor if at_s <= time < until_s else 1.0


def drift(factor: float, from_s: float, to_s: float) -> Tempo:
    """As profiled, then evenly slower (or faster), and `factor` from then on."""

    def tempo(time: float) -> float:
        share = min(max((time - from_s) / (to_s - from_s), 0.0), 1.0)
        return 1.0 + (factor - 1.0) * share

    return tempo
