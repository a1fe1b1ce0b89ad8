"""From measured prompts and steps to `TokenCost`: a line and what attention adds, never below what was seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataflower.planner.measured import TokenPoint, TokensProfile
from dataflower.planner.tokens import TokenCost

LEAST_S = 1e-9
"""A token of a prompt takes at least this: nothing is free."""


def cost_of(profile: TokensProfile, *, high: bool = False, busy: bool = False) -> TokenCost:
    """The cost of a stage's tokens on one replica.

    Args:
        profile: measured prompts and steps.
        high: take the 90th percentiles instead of the medians.
        busy: take what was measured while the other cores were busy, where that is known.

    Returns:
        A cost that no measured point exceeds: where the fit would be below a point, it is raised.

    Raises:
        InvalidArgument: a step has no room for a piece of a prompt beside its sequences.
    """
    decode = [(p.batch, p.context, _seconds(p, high=high, busy=busy)) for p in profile.decode]
    context_s = _context_s(decode)
    by_batch: dict[int, float] = {}
    for batch, context, seconds in decode:
        own = max(LEAST_S, seconds - batch * context * context_s)
        by_batch[batch] = max(by_batch.get(batch, 0.0), own)
    steps, longest = [], 0.0
    for batch in sorted(by_batch):
        longest = max(longest, by_batch[batch])
        steps.append((batch, longest))
    prefill = [(p.tokens, _seconds(p, high=high, busy=busy)) for p in profile.prefill]
    prompt_s, attend_s = _prompts(prefill, steps[0][1], profile.step_tokens)
    return TokenCost(
        tuple(steps),
        prompt_s,
        profile.step_tokens,
        profile.kv_tokens,
        context_s,
        attend_s,
        resizable="step_tokens" in profile.takes,
    )


def _seconds(point: TokenPoint, *, high: bool, busy: bool) -> float:
    alone = point.high_ms if high and point.high_ms else point.duration_ms
    if busy and point.busy_ms is not None:
        alone = max(alone, point.busy_high_ms if high and point.busy_high_ms else point.busy_ms)
    return alone / 1000


def _context_s(decode: Sequence[tuple[int, int, float]]) -> float:
    """What a token that is looked back on adds to a step: the largest slope between contexts of one batch."""
    slopes = [0.0]
    for batch, context, seconds in decode:
        slopes += [
            (more - seconds) / (batch * (longer - context))
            for other, longer, more in decode
            if other == batch and longer > context
        ]
    return max(slopes)


def _prompts(prefill: Sequence[tuple[int, float]], step_s: float, step_tokens: int) -> tuple[float, float]:
    """Seconds for a token of a prompt, and for a pair of them.

    A prompt pays for its steps as those that decode do (`step_s` each); what is left is a line and a square, fitted to
    relative errors, neither below 0, and raised until no point lies above.
    """
    sizes = np.array([n for n, _ in prefill], dtype=float)
    seconds = np.array([s for _, s in prefill])
    rest = np.maximum(seconds - np.ceil(sizes / step_tokens) * step_s, LEAST_S * sizes)
    weights = 1 / seconds
    both = np.stack([sizes, sizes**2 / 2], axis=1) * weights[:, None]
    fitted, *_ = np.linalg.lstsq(both, rest * weights, rcond=None)
    line, square = float(fitted[0]), float(fitted[1])
    if square < 0:
        square = 0.0
        line = float((both[:, 0] * rest * weights).sum() / (both[:, 0] ** 2).sum())
    if line < LEAST_S:
        line = LEAST_S
        square = max(0.0, float((both[:, 1] * rest * weights).sum() / (both[:, 1] ** 2).sum()))
    short = float(np.max(rest / (line * sizes + square * sizes**2 / 2)))
    raised = max(1.0, short)
    return line * raised, square * raised
