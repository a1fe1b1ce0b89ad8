"""When a container that still sends gets its next task: a function that goes on regardless only fills memory.

A function is over long before its outputs are on another host. Its container could begin the next task at once, and
as long as sending keeps up with computing it should; where it does not, another container, which may send at a rate
of its own, is of more use than a longer queue of bytes. So a place is *held* for a while after a task, and a task that
finds all places held makes its stage grow.

Two formulas. DataFlower's (ASPLOS 2023, pressure-aware scaling) takes what the task itself handed over at the rate that
its container is entitled to. Ours takes the bytes that are really on their way and the rate at which others of this
container have arrived, frees the place just early enough that the next outputs find the way free, and starts no
container where that would bring no byte there sooner.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dataflower.spec.workflow import Resources

ALPHA = 1.25
"""DataFlower: a rate that is promised is had to 0.8 on the average."""
ENTITLED_BYTES_PER_S = 50 * (1 << 20)
"""DataFlower: what a container may send for each core that it has, where its stage doesn't say."""
SHORTEST_S = 0.005
"""A place is not held for less."""
OWN_SHARE = 0.7
"""A container that gets less than this of the rate that it may send at shares a line that others fill."""


class Pressure(enum.StrEnum):
    """Which formula. MEASURED: ours. PAPER: DataFlower's. OFF: the place is free as soon as the function is over."""

    MEASURED = "measured"
    PAPER = "paper"
    OFF = "off"


STANDSTILL_BYTES_PER_S = 1.0
"""A rate below this is none."""


@dataclass(frozen=True, slots=True)
class Outflow:
    """What a container's data unit has to do.

    Attributes:
        fresh: bytes handed over since this was told last.
        waiting: bytes for other hosts that have not left, those included.
        bytes_per_s: at which its bytes have arrived lately; 0 if nobody knows.
    """

    fresh: int
    waiting: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """How long to hold a place, from now, in seconds. `shared`: another container would send no faster."""

    seconds: float = 0.0
    shared: bool = False


FREE = Hold()


def hold(rule: Pressure, flow: Outflow, resources: Resources, run_s: float) -> Hold:
    """How long a container that `flow` is said of takes no further task. `run_s`: how long one takes; 0: unknown."""
    if rule is Pressure.OFF:
        return FREE
    if rule is Pressure.PAPER:
        entitled = resources.bandwidth or ENTITLED_BYTES_PER_S * resources.cpu
        return _lasting(ALPHA * flow.fresh / entitled - run_s, False)
    limit = resources.bandwidth
    rate = flow.bytes_per_s
    if limit is not None and (rate < STANDSTILL_BYTES_PER_S or rate > limit):
        rate = limit
    if rate < STANDSTILL_BYTES_PER_S:
        return FREE  # nobody can say
    return _lasting(flow.waiting / rate - run_s, limit is None or rate < OWN_SHARE * limit)


def _lasting(seconds: float, shared: bool) -> Hold:
    return Hold(seconds, shared) if seconds >= SHORTEST_S else FREE


def lacking(backlog: int, soon: list[float], start_s: float, *, shared: bool, unproven: int = 0) -> int:
    """How many of the tasks that wait call for more containers.

    `soon`: when each place that is held will be free, in seconds from now; `start_s`: how long a container takes to
    start; `shared`: the line to other hosts is full, so that computing more in the same time is of no use; `unproven`:
    containers of which nobody knows how fast they can send: the second has to show that before there is a third.
    """
    if shared or unproven > 1:
        return 0
    return max(0, backlog - sum(1 for seconds in soon if seconds <= start_s))
