"""Whether and when a failed task is tried again, and what stands in for it when it isn't."""

from __future__ import annotations

from collections.abc import Callable

from dataflower.errors import Failure
from dataflower.spec.workflow import Catch, Retry


def matches(errors: tuple[str, ...], kind: str) -> bool:
    """Whether a list of error kinds names this one (`*` names all)."""
    return "*" in errors or kind in errors


def next_delay_s(retry: Retry | None, failure: Failure, uniform: Callable[[], float]) -> float | None:
    """Seconds until the next attempt, None if there is none. `failure.attempt` counts from 1.

    Exponential back-off with full jitter by default (Amazon States Language's Retry fields).
    `uniform` gives a number in [0, 1).
    """
    if retry is None or failure.attempt >= retry.max_attempts or not matches(retry.errors, failure.kind):
        return None
    delay = min(retry.interval_s * retry.backoff_rate ** (failure.attempt - 1), retry.max_delay_s)
    return delay * uniform() if retry.jitter == "full" else delay


def caught_by(catches: tuple[Catch, ...], failure: Failure) -> Catch | None:
    """The first clause that applies."""
    return next((clause for clause in catches if matches(clause.errors, failure.kind)), None)


class Jitter:
    """A reproducible source of numbers in [0, 1) (SplitMix64): the core has no other randomness."""

    def __init__(self, seed: int) -> None:
        self._state = seed & 0xFFFFFFFFFFFFFFFF

    def __call__(self) -> float:
        """The next number."""
        mask = 0xFFFFFFFFFFFFFFFF
        self._state = (self._state + 0x9E3779B97F4A7C15) & mask
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 11) / (1 << 53)
