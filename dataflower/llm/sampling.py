"""From logits to tokens."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field

import msgspec
import torch

from dataflower.llm.grammar import Matcher
from dataflower.llm.output import Logprob
from dataflower.llm.params import SamplingParams

CANDIDATES = 1024
"""Likeliest tokens among which top-p looks first; sorting a whole vocabulary costs more than a layer of the model."""


@dataclass(slots=True)
class Chooser:
    """The state of one sequence's choices. `ends`: its end-of-sequence tokens."""

    params: SamplingParams
    ends: frozenset[int] = frozenset()
    matcher: Matcher | None = None
    seen: Counter[int] = field(default_factory=Counter)
    chosen: int = 0
    chance: random.Random = field(init=False)
    bare: bool = field(init=False)
    """Nothing but the likeliest token is wanted, and nothing needs to be remembered of it."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.params.seed)
        self.bare = self.params.plain and self.params.logprobs is None and self.matcher is None

    def take(self, token: int) -> None:
        """A token was chosen."""
        self.chosen += 1
        params = self.params
        if params.presence_penalty or params.frequency_penalty:
            self.seen[token] += 1
        if self.matcher is not None and token not in self.ends:
            self.matcher.take(token)


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A token and, if asked for, its log-probability; token None: the logits are not finite."""

    token: int | None
    logprob: Logprob | None = None


def choose(
    logits: torch.Tensor, choosers: Listing[Chooser], likeliest: tuple[list[float], list[int]] | None = None
) -> list[Choice]:
    """One token for each row of logits (rows, vocabulary). The choosers take note of nothing: see `Chooser.take`.

    `likeliest`: the largest of each row and where it is, if that is known already.
    """
    best, tokens = likeliest or _likeliest(logits)
    finite = [math.isfinite(value) for value in best]
    choices = []
    for row, token in enumerate(tokens):
        chooser = choosers[row]
        if not finite[row]:
            choices.append(Choice(None))
            continue
        if chooser.bare:
            choices.append(Choice(token))
            continue
        chosen = token if chooser.params.plain else _choose(logits[row].to(torch.float32, copy=True), chooser)
        wanted = chooser.params.logprobs
        choices.append(Choice(chosen, None if wanted is None else logprob(logits[row], chosen, wanted)))
    return choices


def logprob(logits: torch.Tensor, token: int, top: int) -> Logprob:
    """Of a token, and of the `top` likeliest, by bare logits (vocabulary,)."""
    likely = logits.float().log_softmax(-1)
    if not top:
        return Logprob(token, float(likely[token]))
    values, tokens = likely.topk(min(top, likely.shape[0]))
    return Logprob(token, float(likely[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def _likeliest(logits: torch.Tensor) -> tuple[list[float], list[int]]:
    """The largest of each row (NaN if there is one), and where it is."""
    if logits.device.type != "cpu" or logits.dtype is not torch.float32:
        best, places = logits.max(-1)
        return best.tolist(), places.tolist()
    values = logits.numpy()  # a few times as fast as torch, and wakes no team of threads that would spin afterwards
    tokens: list[int] = values.argmax(-1).tolist()
    return [float(values[row, token]) for row, token in enumerate(tokens)], tokens


def _choose(logits: torch.Tensor, chooser: Chooser) -> int:
    params = chooser.params
    _adjust(logits, chooser)
    if params.greedy:
        return int(logits.argmax())
    logits = logits / params.temperature
    uniform = chooser.chance.random()
    if params.top_k:
        values, tokens = logits.topk(min(params.top_k, logits.shape[0]))
        return int(tokens[_draw(values.double().softmax(-1), params.top_p, uniform)])
    if params.top_p >= 1.0:
        return _draw(logits.double().softmax(-1), 1.0, uniform)
    values, tokens = logits.topk(min(CANDIDATES, logits.shape[0]))
    probabilities = (values.double() - logits.double().logsumexp(-1)).exp()
    if float(probabilities.sum()) < params.top_p:
        values, tokens = logits.sort(descending=True)
        probabilities = values.double().softmax(-1)
    return int(tokens[_draw(probabilities, params.top_p, uniform)])


def _draw(probabilities: torch.Tensor, top_p: float, uniform: float) -> int:
    """Index drawn by the inverse of the distribution; below `top_p` = 1 the probabilities fall."""
    sums = probabilities.cumsum(-1)
    if top_p < 1.0:  # the first token that reaches top_p is the last that may be drawn
        keep = int(torch.searchsorted(sums, torch.tensor(top_p, dtype=sums.dtype, device=sums.device))) + 1
        sums = sums[:keep]
    at = torch.searchsorted(sums, uniform * sums[-1:], right=True)
    return min(int(at), sums.shape[0] - 1)


def _adjust(logits: torch.Tensor, chooser: Chooser) -> None:
    """Everything that favours or rules out tokens, in place."""
    params, device = chooser.params, logits.device
    size = logits.shape[0]
    for token, bias in params.logit_bias.items():
        if 0 <= token < size:
            logits[token] += bias
    if chooser.seen:
        tokens = torch.tensor(list(chooser.seen), device=device)
        counts = torch.tensor(list(chooser.seen.values()), dtype=logits.dtype, device=device)
        logits[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    if chooser.matcher is not None:
        logits.masked_fill_(~chooser.matcher.allowed().to(device), float("-inf"))
    elif chooser.chosen < params.min_tokens:
        early = [token for token in {*chooser.ends, *params.stop_tokens} if 0 <= token < size]
        logits[torch.tensor(early, dtype=torch.long, device=device)] = float("-inf")
