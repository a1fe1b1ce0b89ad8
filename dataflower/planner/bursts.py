"""Requests that come at once: how a stage sees the fan-out of an invocation, and how long its requests may wait.

Stages promise to be done with an invocation at a time, so all that one invocation asks of the next stage may come at
that time: f requests on the average, as evenly spread over the invocations as whole requests can be. Where fan-outs lie
within each other, or a profile has seen how many requests one invocation makes at most, more of them may come at once:
`lag` is by how many the requests of the first i invocations may fall short of f i, rounding aside.

With R invocations a second the k-th request comes with invocation ceil((k + lag)/f) at the latest and ceil(k/f) at the
earliest. Batches of b are served in order by n machines, d seconds each, so a batch begins when it is full, or j d
after the one that was j n before it was full. The first of a batch waits for at most

    max over j >= 0 of ceil((b - 1 + lag - j n b)/f)/R + j d,

where what comes before a request, or is it, never comes later (the ceiling is at most 0 for b - 1 <= j n b). As n b/d
is at least the rate f R, what is beyond `TERMS` is below the line through the terms without the ceiling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflower.planner.application import Application, Module
from dataflower.planner.profile import Configuration

Floats = NDArray[np.floating[Any]]

SAME = 1e-3
"""Factors this close, relatively, are one."""
TERMS = 32


@dataclass(frozen=True, slots=True)
class Steps:
    """How requests come to a stage: `each` with every invocation, of which there are `rate` a second; and `lag`."""

    rate: float
    each: float
    lag: float = 0.0

    @property
    def late_s(self) -> float:
        """How much earlier than evenly a request may come, and wait for it."""
        return (1 + self.lag / self.each) / self.rate

    @property
    def burst(self) -> float:
        """Requests that may come at once."""
        return math.ceil(self.each - SAME) + self.lag

    def wait_s(self, c: Configuration, machines: int) -> float:
        """How long a request waits at most before its batch begins on so many machines, which keep up."""
        slack = (
            machines * c.batch / self.each - self.rate * c.duration_s
        )  # invocations that a turn of all of them gains
        spread = 1 + self.lag / self.each
        needed = TERMS if slack * TERMS <= spread else math.ceil(spread / slack) + 1
        turns = np.arange(needed)
        later = c.batch - 1 - turns * machines * c.batch  # the request that must have come, counted from the first
        ahead = np.ceil((later + self.lag) / self.each - 1e-9)
        ahead = np.where(later > 0, ahead, np.minimum(ahead, 0.0))
        worst = float(np.max(ahead / self.rate + turns * c.duration_s))
        if needed == TERMS:
            worst = max(worst, ((c.batch - 1) / self.each + spread - TERMS * max(slack, 0.0)) / self.rate)
        return worst


def bursts_of(application: Application) -> dict[str, Steps]:
    """How requests come to each module at one invocation a second; those that get one request for each are left out."""
    short: dict[str, float] = {}
    found = {}
    for name in application.order:
        module = application.module(name)
        main = max(application.parents[name], key=lambda parent: application.module(parent).factor, default="")
        ratio = module.factor / application.module(main).factor if main else module.factor
        short[name] = _short(module, ratio, short.get(main, 0.0))
        if short[name] or not _same(module.factor, 1.0):
            found[name] = Steps(1.0, module.factor, max(0.0, short[name] - 1))
    return found


def _short(module: Module, ratio: float, before: float) -> float:
    """By less than how many the requests so far may fall short of the average; 0 if never.

    `ratio`: requests for one of the stage before, which may be short by `before`.
    """
    if module.most > math.ceil(module.factor * (1 - SAME)):
        return float(module.most)  # the most, or none at all
    if _same(ratio, 1.0):
        return before
    if _same(module.factor, 1.0) and ratio < 1:
        return 0.0  # brought together again
    return ratio * before + (0.0 if not before and _same(ratio, max(1, round(ratio))) else 1.0)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * other
