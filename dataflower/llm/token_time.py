"""How long each further token takes, by how many answers are written side by side, and how many that leaves. Pure.

A step gives every answer one token, so the step's time is what each of them waits for it. Steps with prompts in them
take longer; what that adds is shared out over all steps.
"""

from __future__ import annotations

SURE = 4
"""Steps of a size before it counts as measured: one hiccup must not say what a size costs."""
WEIGHT = 0.2
"""How much one more step counts in the moving average of its size."""
PROMPTS = 0.05
"""The same in the average of what prompts add to a step."""
WILD = 4.0
"""Steps that take so many times what was measured are hiccups of the machine: they count as this."""


class TokenTime:
    """What steps took lately, by the number of answers in them.

    A machine that is slower now than it was is so at all sizes: what one size tells of that holds for the others, too.
    So a size that was slow while the machine was is tried again when smaller ones are quick.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._steps: dict[int, int] = {}
        self._prompts_s = 0.0
        """What prompts add to a step, on the average."""

    def note(self, answers: int, prompt_tokens: int, seconds: float) -> None:
        """A step gave so many answers a further token, computed so many tokens of prompts, and took so long in all."""
        if answers < 1 or seconds <= 0:
            return
        known = self._measured()
        if prompt_tokens:
            if known:
                self._prompts_s += PROMPTS * (max(0.0, seconds - _at(known, answers)) - self._prompts_s)
            return
        self._prompts_s -= PROMPTS * self._prompts_s
        count = self._steps.get(answers, 0) + 1
        self._steps[answers] = min(count, SURE)
        before = self._seconds.setdefault(answers, seconds)
        if count <= SURE:
            self._seconds[answers] = before + (seconds - before) / count
            return
        change = 1 + WEIGHT * (min(seconds / before, WILD) - 1)
        for size in self._seconds:
            self._seconds[size] *= change

    def of(self, answers: int) -> float:
        """Seconds for a further token of each of so many answers; 0 if nobody knows."""
        known = self._measured()
        return _at(known, answers) + self._prompts_s if known else 0.0

    def most(self, limit_s: float, cap: int) -> int:
        """How many answers may be written at a time so that a further token takes no longer; at least 1, at most `cap`.

        Beyond what was measured by one at most: what a step takes then is seen before the next one joins. Until
        anything was measured, `cap`.
        """
        known = self._measured()
        if not known:
            return cap
        tried = known[-1][0]
        most = 1
        while most < cap and most <= tried and _at(known, most + 1) + self._prompts_s <= limit_s:
            most += 1
        return most

    def _measured(self) -> list[tuple[int, float]]:
        """Sizes and seconds, rising: more answers never take less."""
        found: list[tuple[int, float]] = []
        high = 0.0
        for size in sorted(self._seconds):
            if self._steps[size] >= SURE:
                high = max(high, self._seconds[size])
                found.append((size, high))
        return found


def _at(known: list[tuple[int, float]], answers: int) -> float:
    """On the line through the two measured sizes next to it; with fewer below it, as long as the smallest takes."""
    below = [each for each in known if each[0] <= answers]
    if not below:
        return known[0][1]
    size, seconds = below[-1]
    if size == answers:
        return seconds
    above = known[len(below) : len(below) + 1]
    (left, low), (right, high) = (below[-1], above[0]) if above else (known[-2:] if len(known) > 1 else known * 2)
    return low if right == left else low + (high - low) * (answers - left) / (right - left)
