"""How many tasks a container may be given beyond those that it can run now.

A function that takes microseconds is over before the host has heard of it and answered: its container would sleep and
be woken for every single task, which costs more than the task. So a container of a brief function gets more tasks than
it has places, about a millisecond's worth, and takes the next one from its own inbox. Only what would wait anyhow is
given out ahead: a task goes to a free place first. A task ahead still counts as waiting, and can be taken back.
"""

from __future__ import annotations

MOST = 16
"""Tasks ahead per container."""
WITHIN_S = 0.001
"""Work ahead per container: what a more urgent task that comes later may have to wait longer than without this."""
SLACK = 1.5
"""Run times may grow by this before fewer tasks are given ahead, so that the number does not flutter."""
PATIENCE_S = 0.02
"""A container that has not ended a task for so long gets none ahead, and loses those that others could run now."""


def depth(present: int, run_s: float) -> int:
    """Tasks ahead from now on. `present`: until now; `run_s`: how long the function takes, 0 if nobody knows."""
    if present == MOST and 0 < run_s * MOST <= WITHIN_S:
        return MOST  # as a rule
    if run_s <= 0:
        return 0
    more = min(MOST, int(WITHIN_S / run_s))
    if more > present:
        return more
    return min(present, int(SLACK * WITHIN_S / run_s))
