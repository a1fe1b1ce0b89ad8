"""Stages whose work comes in tokens: prompts cost one thing, answers another, and each has an objective of its own.

A batch of a language model has no duration that could be measured once. What can be is a *step*: it decodes one token
of each of b sequences and computes n tokens of prompts besides, in about `step(b) + n prompt_s`. A replica with
continuous batching (iteration-level scheduling, Orca, OSDI 2022; chunked prefill, Sarathi-Serve, OSDI 2024) that gets r
requests a second of p prompt tokens and o answer tokens

* spends the share u = r p prompt_s of its time on prompts, so a further token takes t = step(b) / (1 - u), and an
  answer besides what came while its own prompt was computed, u times its time to the first token,
* has b = r o t sequences running (Little's law): a fixed point, the smallest of which is where it settles. Their
  number scatters more than Poisson, since prompts hold answers up in clumps: it is taken as normal with the variance
  2 b. Where the percentile of that is more than may run, newcomers would wait for a place: such a load is too much,
* computes one prompt after the other, oldest first, in chunks beside those that decode: p prompt_s + chunks step(b).
  The wait is that of an M/G/1 queue; its tail is taken as exponential with the mean of Pollaczek and Khinchine.

Times in seconds. `plan_tokens` finds the fewest replicas that keep both objectives.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from statistics import NormalDist

from dataflower.errors import InvalidArgument

_ROUNDS = 200
_SAME = 1e-9
SCATTER = 2.0
"""Variance of the number of sequences that run, over its mean: what replays of the scheduler show."""
MOST_REPLICAS = 100_000


@dataclass(frozen=True, slots=True)
class TokenCost:
    """How long steps take on a device.

    Attributes:
        steps: (sequences that decode, seconds of a step with those alone), both rising.
        prompt_s: a token of a prompt, besides.
        step_tokens: tokens that one step computes at most.
        kv_tokens: tokens for whose keys and values there is room; None = that is no limit.
    """

    steps: tuple[tuple[int, float], ...]
    prompt_s: float
    step_tokens: int = 512
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.steps or self.prompt_s <= 0 or self.step_tokens <= self.steps[-1][0]:
            raise InvalidArgument(
                "a token cost needs measured steps, a prompt token above 0 s, and room beside decoding"
            )
        for (b, one), (c, other) in zip(self.steps, self.steps[1:], strict=False):
            if c <= b or other < one:
                raise InvalidArgument(f"steps must rise: {b} sequences take {one} s, {c} take {other} s")

    @property
    def most(self) -> int:
        """Sequences that run at a time, at most: nothing is known beyond."""
        return self.steps[-1][0]

    def step(self, sequences: float) -> float:
        """Seconds of a step that decodes so many (an average, so it need not be whole), straight between points."""
        sizes = [b for b, _ in self.steps]
        if sequences <= sizes[0]:
            return self.steps[0][1]
        right = min(bisect_left(sizes, sequences), len(sizes) - 1)
        (b, one), (c, other) = self.steps[right - 1], self.steps[right]
        return one + (other - one) * min(1.0, (sequences - b) / (c - b))


@dataclass(frozen=True, slots=True)
class TokenLoad:
    """Requests a second, and (mean, high) of the tokens of a prompt and of an answer; high: at the percentile."""

    rate: float
    prompt: tuple[float, float]
    output: tuple[float, float]

    def __post_init__(self) -> None:
        for mean, high in (self.prompt, self.output):
            if not 0 < mean <= high:
                raise InvalidArgument(f"tokens: a mean of {mean:g} and {high:g} at the percentile are not possible")
        if self.rate <= 0:
            raise InvalidArgument("the rate must be above 0")


@dataclass(frozen=True, slots=True)
class TokenSlo:
    """Objectives; None = none. `percentile` of requests for the first token; further ones are averages of an answer."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not 50 <= self.percentile < 100:
            raise InvalidArgument(f"the percentile must be from 50 to below 100, not {self.percentile:g}")


@dataclass(frozen=True, slots=True)
class Steady:
    """A replica at rest in its load.

    Attributes:
        sequences: that run, on the average.
        tpot_s: of a further token, on the average of all tokens.
        ttft_s: to the first token, at the percentile.
        busy: share of its time for prompts.
    """

    sequences: float
    tpot_s: float
    ttft_s: float
    busy: float


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """So many replicas, each with `sequences` at most (`max_ongoing_requests`), and what each is like at rest."""

    replicas: int
    sequences: int
    steady: Steady


@dataclass(frozen=True, slots=True)
class TokensInfeasible:
    """No number of replicas keeps the objectives: the reason, and the least that could be promised with one request."""

    reason: str
    ttft_s: float
    tpot_s: float


def steady(cost: TokenCost, load: TokenLoad, percentile: float = 99.0) -> Steady | None:
    """How one replica fares under a load; None if it can't keep up."""
    busy = load.rate * load.prompt[0] * cost.prompt_s
    if busy >= 1:
        return None
    sequences = 0.0
    for _ in range(_ROUNDS):
        found = load.rate * load.output[0] * cost.step(max(1.0, sequences)) / (1 - busy)
        if found > cost.most:
            return None
        if found - sequences < _SAME:
            break
        sequences = found
    if cost.kv_tokens is not None and sequences * (load.prompt[0] + load.output[0]) > cost.kv_tokens:
        return None
    most = sequences + NormalDist().inv_cdf(percentile / 100) * math.sqrt(SCATTER * sequences)
    if most > cost.most:
        return None
    step = cost.step(sequences + 1)  # a newcomer finds the average, and is one more
    mean, high = (_prompt_s(cost, tokens, most, cost.step(most)) for tokens in load.prompt)
    used = load.rate * mean
    if used >= 1:
        return None
    missed = (100 - percentile) / 100
    # Variation of the time for a prompt: none if the percentile is the mean, 1 if both are as of an exponential law.
    spread = min(1.0, (high / mean - 1) / max(_SAME, -math.log(missed) - 1))
    waited = mean * (1 + spread**2) / 2 / (1 - used)
    tail = 0.0 if used <= missed else waited * math.log(used / missed)
    tpot = step / (1 - busy) + busy * (used * waited + mean) / load.output[0]
    return Steady(sequences, tpot, tail + high + step, busy)


def _prompt_s(cost: TokenCost, tokens: float, sequences: float, step_s: float) -> float:
    """Seconds from the begin of a prompt to its first token, beside those that decode."""
    room = max(1.0, cost.step_tokens - sequences)
    return tokens * cost.prompt_s + (math.ceil(tokens / room) - 1) * step_s


def plan_tokens(cost: TokenCost, load: TokenLoad, slo: TokenSlo) -> TokenPlan | TokensInfeasible:
    """The fewest replicas that share the load evenly and keep both objectives.

    More replicas never make either worse, so the number is found by bisection.
    """
    alone = steady(cost, TokenLoad(load.rate / MOST_REPLICAS, load.prompt, load.output), slo.percentile)
    if alone is None or not _keeps(alone, slo):
        return _infeasible(cost, load, slo, alone)
    low, high = 0, 1
    while not _suffices(cost, load, slo, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _suffices(cost, load, slo, middle) else (middle, high)
    found = steady(cost, _shared(load, high), slo.percentile)
    assert found is not None
    return TokenPlan(high, _sequences(cost, slo, found), found)


def _sequences(cost: TokenCost, slo: TokenSlo, found: Steady) -> int:
    """How many a replica may run at a time: as many as keep the pace of answers, prompts beside them included."""
    if slo.tpot_s is None:
        return cost.most
    able = [b for b in range(1, cost.most + 1) if cost.step(b) / (1 - found.busy) <= slo.tpot_s]
    return max(able, default=1)


def _shared(load: TokenLoad, replicas: int) -> TokenLoad:
    return TokenLoad(load.rate / replicas, load.prompt, load.output)


def _suffices(cost: TokenCost, load: TokenLoad, slo: TokenSlo, replicas: int) -> bool:
    found = steady(cost, _shared(load, replicas), slo.percentile)
    return found is not None and _keeps(found, slo)


def _keeps(found: Steady, slo: TokenSlo) -> bool:
    first = slo.ttft_s is None or found.ttft_s <= slo.ttft_s
    return first and (slo.tpot_s is None or found.tpot_s <= slo.tpot_s)


def _infeasible(cost: TokenCost, load: TokenLoad, slo: TokenSlo, alone: Steady | None) -> TokensInfeasible:
    if alone is None:
        return TokensInfeasible("one request does not fit into the room for keys and values", math.inf, math.inf)
    reasons = []
    if slo.ttft_s is not None and alone.ttft_s > slo.ttft_s:
        reasons.append(f"a prompt of {load.prompt[1]:g} tokens alone takes {alone.ttft_s:.3f} s, not {slo.ttft_s:g}")
    if slo.tpot_s is not None and alone.tpot_s > slo.tpot_s:
        reasons.append(f"a further token takes {alone.tpot_s * 1000:.1f} ms alone, not {slo.tpot_s * 1000:g}")
    return TokensInfeasible("; ".join(reasons), alone.ttft_s, cost.step(1))
