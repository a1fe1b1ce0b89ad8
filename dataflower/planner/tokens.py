"""Stages whose work comes in tokens: prompts cost one thing, answers another, and each has an objective of its own.

A batch of a language model has no duration that could be measured once. What can be is a *step*: it decodes one token
of each of b sequences and computes n tokens of prompts besides, in about `step(b) + prompt(n)`. A replica with
continuous batching (iteration-level scheduling, Orca, OSDI 2022; chunked prefill, Sarathi-Serve, OSDI 2024) that gets r
requests a second of p prompt tokens and o answer tokens

* spends the share u = r prompt(p) of its time on prompts, so a further token takes t = step(b) / (1 - u), and an
  answer besides what came while its own prompt was computed, u times its time to the first token,
* has b = r o t sequences running (Little's law): a fixed point, the smallest of which is where it settles. Their
  number scatters more than Poisson, since prompts hold answers up in clumps: it is taken as normal with the variance
  2 b. Where the percentile of that is more than may run, newcomers would wait for a place: such a load is too much,
* computes one prompt after the other, oldest first, in chunks beside those that decode: prompt(p) + chunks step(b).
  The wait is that of an M/G/1 queue; its tail is taken as exponential with the mean of Pollaczek and Khinchine.

Attention looks back: a step takes `context_s` longer for each token that its sequences hold, and a prompt of n tokens
`attend_s` for each of its n^2/2 pairs of tokens. Times in seconds. `plan_tokens` finds the fewest replicas that keep
the objectives, and the chunk of prompts with which that many do.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from statistics import NormalDist

from dataflower.errors import InvalidArgument

_ROUNDS = 200
_SAME = 1e-9
SCATTER = 2.0
"""Variance of the number of sequences that run, over its mean: what replays of the scheduler show."""
MOST_REPLICAS = 1024
LEAST_CHUNK = 32
"""Tokens of a prompt in one step: fewer cost more steps than they smooth."""


@dataclass(frozen=True, slots=True)
class TokenCost:
    """How long steps take on a device.

    Attributes:
        steps: (sequences that decode, seconds of a step with those alone), both rising; without what they hold.
        prompt_s: a token of a prompt, besides.
        step_tokens: tokens that one step computes at most.
        kv_tokens: tokens for whose keys and values there is room; None = that is no limit.
        context_s: for each token that the sequences of a step hold.
        attend_s: for each pair of tokens of a prompt.
        resizable: whether steps can be made smaller than `step_tokens`.
    """

    steps: tuple[tuple[int, float], ...]
    prompt_s: float
    step_tokens: int = 512
    kv_tokens: int | None = None
    context_s: float = 0.0
    attend_s: float = 0.0
    resizable: bool = True

    def __post_init__(self) -> None:
        if not self.steps or self.prompt_s <= 0 or self.step_tokens <= self.steps[-1][0]:
            raise InvalidArgument(
                "a token cost needs measured steps, a prompt token above 0 s, and room beside decoding"
            )
        if self.context_s < 0 or self.attend_s < 0:
            raise InvalidArgument("what attention costs can't be below 0 s")
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
        if sequences >= sizes[-1]:
            return self.steps[-1][1]
        right = bisect_left(sizes, sequences)
        (b, one), (c, other) = self.steps[right - 1], self.steps[right]
        return one + (other - one) * (sequences - b) / (c - b)

    def prompt(self, tokens: float, spread: float = 0.0) -> float:
        """Seconds for a prompt of so many tokens, besides what its steps take.

        `spread`: standard deviation of the lengths over their mean `tokens`; long ones weigh more.
        """
        return tokens * self.prompt_s + self.attend_s * tokens**2 * (1 + spread**2) / 2

    def holding(self, tokens: float) -> TokenCost:
        """The same where each sequence holds so many tokens."""
        if not self.context_s:
            return self
        steps = tuple((b, seconds + b * tokens * self.context_s) for b, seconds in self.steps)
        return replace(self, steps=steps, context_s=0.0)

    def limited(self, sequences: int) -> TokenCost:
        """The same with so many sequences at most."""
        if sequences >= self.most:
            return self
        kept = tuple(point for point in self.steps if point[0] < sequences)
        return replace(self, steps=(*kept, (sequences, self.step(sequences))))


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

    @property
    def held(self) -> float:
        """Tokens that a sequence holds while it is answered, on the average."""
        return self.prompt[0] + self.output[0] / 2


@dataclass(frozen=True, slots=True)
class TokenSlo:
    """Objectives; None = none. `percentile` of requests for the first token; further ones are averages of an answer.

    `gap_s`: between two tokens, the longest step that there may be.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float = 99.0
    gap_s: float | None = None

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
        mean_s: to the first token, on the average.
    """

    sequences: float
    tpot_s: float
    ttft_s: float
    busy: float
    mean_s: float = 0.0

    def answer_s(self, tokens: float) -> float:
        """Until the end of an answer of so many tokens whose first came at the percentile."""
        return self.ttft_s + max(0.0, tokens - 1) * self.tpot_s


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """So many replicas, and what each is like at rest.

    Attributes:
        replicas: that share the requests evenly.
        sequences: that run in one of them at most (`max_ongoing_requests`).
        steady: each of them at rest.
        step_tokens: tokens that a step computes at most, prompts and answers together.
        gap_s: the longest step that there may be, and so the longest gap between two tokens.
    """

    replicas: int
    sequences: int
    steady: Steady
    step_tokens: int = 512
    gap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokensInfeasible:
    """No number of replicas keeps the objectives: the reason, and the least that could be promised with one request."""

    reason: str
    ttft_s: float
    tpot_s: float


def steady(cost: TokenCost, load: TokenLoad, percentile: float = 99.0) -> Steady | None:
    """How one replica fares under a load; None if it can't keep up."""
    cost = cost.holding(load.held)
    missed = (100 - percentile) / 100
    # Variation of the lengths of prompts: none if the percentile is the mean, 1 if both are as of an exponential law.
    spread = min(1.0, (load.prompt[1] / load.prompt[0] - 1) / max(_SAME, -math.log(missed) - 1))
    busy = load.rate * cost.prompt(load.prompt[0], spread)
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
    mean = max(mean, mean + cost.prompt(load.prompt[0], spread) - cost.prompt(load.prompt[0]))
    used = load.rate * mean
    if used >= 1:
        return None
    waited = mean * (1 + spread**2) / 2 / (1 - used)
    tail = 0.0 if used <= missed else waited * math.log(used / missed)
    tpot = step / (1 - busy) + busy * (used * waited + mean) / load.output[0]
    return Steady(sequences, tpot, tail + max(high, mean) + step, busy, used * waited + mean + step)


def _prompt_s(cost: TokenCost, tokens: float, sequences: float, step_s: float) -> float:
    """Seconds from the begin of a prompt to its first token, beside those that decode."""
    room = max(1.0, cost.step_tokens - sequences)
    return cost.prompt(tokens) + (math.ceil(tokens / room) - 1) * step_s


def chunks(cost: TokenCost) -> tuple[int, ...]:
    """Tokens of a step that are worth a look: `step_tokens`, and halves of it as long as a piece of a prompt fits."""
    found = [cost.step_tokens]
    while cost.resizable and found[-1] // 2 >= max(LEAST_CHUNK, 2 * cost.most):
        found.append(found[-1] // 2)
    return tuple(found)


def plan_tokens(cost: TokenCost, load: TokenLoad, slo: TokenSlo) -> TokenPlan | TokensInfeasible:
    """The fewest replicas that share the load evenly and keep the objectives.

    More replicas never make any of them worse, so the number is found by bisection, for each size of a step; of those
    with the fewest replicas the one with the shortest gaps is taken.
    """
    tried = [_plan(replace(cost, step_tokens=size), load, slo) for size in chunks(cost)]
    usable = [found for found in tried if isinstance(found, TokenPlan)]
    if usable:
        return min(usable, key=lambda found: (found.replicas, found.gap_s))
    refused = [found for found in tried if isinstance(found, TokensInfeasible)]
    return min(refused, key=lambda found: found.ttft_s)


def with_replicas(cost: TokenCost, load: TokenLoad, slo: TokenSlo, replicas: int) -> TokenPlan | None:
    """So many replicas, with the size of a step that keeps the objectives with the shortest first token; None: none."""
    found = []
    for size in chunks(cost):
        fitted = _fitted(replace(cost, step_tokens=size), load, slo, replicas)
        if fitted is not None:
            found.append(fitted)
    return min(found, key=lambda one: (one.steady.ttft_s, one.gap_s), default=None)


def _plan(cost: TokenCost, load: TokenLoad, slo: TokenSlo) -> TokenPlan | TokensInfeasible:
    if _fitted(cost, load, slo, MOST_REPLICAS) is None:
        return _infeasible(cost, load, slo)
    low, high = 0, 1
    while _fitted(cost, load, slo, high) is None:
        low, high = high, min(2 * high, MOST_REPLICAS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fitted(cost, load, slo, middle) is None else (low, middle)
    found = _fitted(cost, load, slo, high)
    assert found is not None
    return found


def _fitted(cost: TokenCost, load: TokenLoad, slo: TokenSlo, replicas: int) -> TokenPlan | None:
    """So many replicas, if they keep the objectives; each runs as many sequences as those leave room for.

    More sequences than the pace of answers allows would all be too slow; fewer than the load needs would make
    newcomers wait.
    """
    shared = TokenLoad(load.rate / replicas, load.prompt, load.output)
    held = cost.holding(load.held)
    able = [b for b in range(1, cost.most + 1) if slo.gap_s is None or _gap_s(held, load, b) <= slo.gap_s]
    if not able:
        return None
    found = steady(cost.limited(able[-1]), shared, slo.percentile)
    if found is None or not _keeps(found, slo):
        return None
    if slo.tpot_s is not None:
        able = [b for b in able if held.step(b) / (1 - found.busy) <= slo.tpot_s] or able[:1]
    fewest = found.sequences + NormalDist().inv_cdf(slo.percentile / 100) * math.sqrt(SCATTER * found.sequences)
    sequences = max(able[-1], math.ceil(fewest - _SAME), 1)
    return TokenPlan(replicas, sequences, found, cost.step_tokens, _gap_s(held, load, sequences))


def _gap_s(cost: TokenCost, load: TokenLoad, sequences: int) -> float:
    """The longest step beside so many that decode; `cost`: with what they hold."""
    return cost.step(sequences) + _piece_s(cost, load.prompt[1], sequences)


def _piece_s(cost: TokenCost, prompt: float, sequences: float) -> float:
    """Seconds that the longest piece of a prompt takes in a step beside so many that decode."""
    piece = min(prompt, cost.step_tokens - sequences)
    return piece * cost.prompt_s + cost.attend_s * piece * max(0.0, prompt - piece / 2)


def _keeps(found: Steady, slo: TokenSlo) -> bool:
    first = slo.ttft_s is None or found.ttft_s <= slo.ttft_s
    return first and (slo.tpot_s is None or found.tpot_s <= slo.tpot_s)


def _infeasible(cost: TokenCost, load: TokenLoad, slo: TokenSlo) -> TokensInfeasible:
    alone = steady(cost, TokenLoad(1e-6, load.prompt, load.output), slo.percentile)
    if alone is None:
        return TokensInfeasible("one request does not fit into the room for keys and values", math.inf, math.inf)
    step = cost.holding(load.held).step(1)
    reasons = []
    if slo.ttft_s is not None and alone.ttft_s > slo.ttft_s:
        reasons.append(f"a prompt of {load.prompt[1]:g} tokens alone takes {alone.ttft_s:.3f} s, not {slo.ttft_s:g}")
    if slo.tpot_s is not None and alone.tpot_s > slo.tpot_s:
        reasons.append(f"a further token takes {alone.tpot_s * 1000:.1f} ms alone, not {slo.tpot_s * 1000:g}")
    gap = _gap_s(cost.holding(load.held), load, 1)
    if slo.gap_s is not None and gap > slo.gap_s:
        reasons.append(f"a step with a piece of a prompt takes {gap * 1000:.1f} ms, not {slo.gap_s * 1000:g}")
    if not reasons:
        reasons.append(f"{MOST_REPLICAS} replicas are too few for {load.rate:g} requests a second")
    return TokensInfeasible("; ".join(reasons), alone.ttft_s, step)
