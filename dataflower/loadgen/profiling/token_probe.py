"""A user's function whose language model is given prompts of chosen lengths, to see what tokens cost.

`dataflower profile` puts this in the place of the function, in a container like its own; the model is the one that the
function's `setup` made.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dataflower.clock import SystemClock
from dataflower.container import target
from dataflower.container.recorder import find_runner
from dataflower.errors import FailedPrecondition

if TYPE_CHECKING:
    from dataflower.llm.output import Usage
    from dataflower.llm.params import SamplingParams
    from dataflower.llm.runner import Runner

LIMITS = ("max_sequences", "step_tokens", "ttft_ms", "tpot_ms")
"""Parameters of `setup` by which a plan's limits reach a runner."""
WARM = 2
"""Steps of a series before its times count."""


class TokenProbe:
    """Measures on order: `{}` asks for the limits, `{prefill: n}` for a prompt, `{decode: b, context: c}` for steps."""

    _target: target.Target
    _runner: Runner

    def setup(self, function: str, params: Mapping[str, Any], seed: int = 0) -> None:
        """Load the user's function. Raises whatever that raises, and FailedPrecondition if it has no runner."""
        self._target = target.build(target.find(function), params)
        runner = find_runner(self._target.instance)
        if runner is None:
            raise FailedPrecondition(f"{function} keeps no language model runner among its attributes")
        self._runner = runner
        self._random = random.Random(seed)
        self._now = SystemClock().monotonic

    def __call__(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Carry an order out; `seconds` of each prompt, or of each step."""
        if "prefill" in order:
            return {"seconds": [self._prefill(int(order["prefill"])) for _ in range(int(order.get("times", 1)))]}
        if "decode" in order:
            return {"seconds": self._decode(int(order["decode"]), int(order["context"]), int(order["steps"]))}
        limits, blocks = self._runner.limits, self._runner.scheduler.blocks
        hook = getattr(self._target.instance, "setup", None)
        taken = inspect.signature(hook).parameters if callable(hook) else {}
        return {
            "sequences": limits.sequences,
            "step_tokens": limits.step_tokens,
            "context": limits.context,
            "kv_tokens": blocks.count * blocks.size,
            "takes": [name for name in LIMITS if name in taken],
        }

    def _tokens(self, count: int) -> list[int]:
        """A prompt that begins like no other, so that nothing of it is cached."""
        return [self._random.randrange(self._runner.model.vocabulary) for _ in range(count)]

    def _prefill(self, tokens: int) -> float:
        prompt, params = self._tokens(tokens), _params(1)
        begun = self._now()
        outputs = self._runner.stream(prompt, params)
        next(outputs)
        spent = self._now() - begun
        for _ in outputs:
            pass
        return spent

    def _decode(self, batch: int, context: int, steps: int) -> list[float]:
        """Steps in which all of `batch` sequences decode, and nothing else; they hold `context` tokens on the average.

        Those that get their prompts computed first go on meanwhile, so prompts are shorter, and answers long enough.
        """
        seen = _Steps(self._now)
        room = self._runner.limits.step_tokens - batch
        ahead = -(-context * batch // max(1, room)) + WARM + 1
        prompt = max(1, context - steps // 2)
        self._runner.watch(seen)
        try:
            streams = [self._runner.stream(self._tokens(prompt), _params(steps + ahead + batch)) for _ in range(batch)]
            for outputs in streams:
                for _ in outputs:
                    pass
        finally:
            self._runner.watch(None)
        return list(seen.times(batch))[WARM : WARM + steps]

    def close(self) -> None:
        """Let the user's function put itself away."""
        self._target.close()


class _Steps:
    """When steps were over, and what was in them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._seen: list[tuple[float, int, int]] = []

    def stepped(self, decoding: int, prompt_tokens: int) -> None:
        """See `Watcher`."""
        self._seen.append((self._now(), decoding, prompt_tokens))

    def finished(self, usage: Usage) -> None:
        """See `Watcher`."""

    def times(self, batch: int) -> Iterator[float]:
        """Seconds from step to step, of those that decoded `batch` sequences."""
        for (before, _, _), (after, decoding, prompts) in zip(self._seen, self._seen[1:], strict=False):
            if decoding == batch and not prompts:
                yield after - before


def _params(tokens: int) -> SamplingParams:
    from dataflower.llm.params import SamplingParams

    return SamplingParams(max_tokens=tokens, ignore_eos=True)
