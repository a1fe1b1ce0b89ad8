"""What is sent when: arrivals, the inputs that go with them, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataflower.loadgen.arrivals import Times
from dataflower.loadgen.messages import Door, Job

PER_GENERATOR = 400.0
"""Requests a second that one generator process is given; it can do several times that on a free core."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """All requests of a run.

    Attributes:
        times: when each starts, seconds since the begin, rising.
        picks: which body each sends.
        bodies: encoded requests without an id.
        warmup_s: requests that start earlier than this don't count.
        end_s: when the run ends, whether or not a request starts just then.
    """

    times: Times
    picks: Sequence[int]
    bodies: Sequence[bytes]
    warmup_s: float
    end_s: float

    @property
    def measured(self) -> int:
        """How many requests count."""
        return int((self.times >= self.warmup_s).sum())

    @property
    def window_s(self) -> float:
        """Length of the part that counts."""
        return self.end_s - self.warmup_s

    def jobs(self, door: Door, run: str, generators: int, *, deadline_s: float | None, drain_s: float) -> list[Job]:
        """The requests dealt out in turn."""
        jobs = []
        for first in range(generators):
            numbers = list(range(first, len(self.times), generators))
            jobs.append(
                Job(
                    door=door,
                    run=run,
                    bodies=list(self.bodies),
                    numbers=numbers,
                    times=[float(self.times[i]) for i in numbers],
                    picks=[self.picks[i] for i in numbers],
                    deadline_s=deadline_s,
                    drain_s=drain_s,
                )
            )
        return jobs


def dealt(requests: int, sets: int, *, seed: int, shuffled: bool) -> list[int]:
    """Which of `sets` input sets each request takes: in turn, or drawn at random."""
    if shuffled:
        return [int(i) for i in np.random.default_rng(seed).integers(0, sets, requests)]
    return [i % sets for i in range(requests)]


def generators_for(peak: float, cores: int) -> int:
    """How many generator processes a peak rate (requests a second) calls for."""
    return max(1, min(cores, -(-int(peak) // int(PER_GENERATOR))))
