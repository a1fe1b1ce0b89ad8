"""How long it takes until weights are usable: q + n/b. Pure.

Source: ServerlessLLM (OSDI'24), section 6: q is what the tier has to load before, n the bytes, b the bandwidth of the
slowest tier on the way, since the tiers work on chunks at the same time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Tier(enum.IntEnum):
    """Where weights can be, farthest first."""

    REMOTE = 0
    DISK = 1
    MEMORY = 2
    DEVICE = 3


@dataclass(frozen=True, slots=True)
class Lane:
    """The way out of a tier into the next nearer one: measured bytes a second, and bytes that wait to take it."""

    bandwidth: float
    queued_bytes: int = 0


def load_time(
    nbytes: int, at: Tier, lanes: Mapping[Tier, Lane], to: Tier = Tier.MEMORY, attach_s: float = 0.0
) -> float:
    """Seconds until `nbytes` that are in tier `at` can be used in tier `to`.

    Args:
        nbytes: bytes of all files.
        at: the nearest tier that has them.
        lanes: of every tier from `at` up to before `to`.
        to: MEMORY for a CPU, DEVICE for an accelerator.
        attach_s: what it takes to map and bind weights that are where they are needed.

    Raises:
        KeyError: a lane on the way has not been measured.
    """
    way = [lanes[tier] for tier in Tier if at <= tier < to]
    if not way:
        return attach_s
    slowest = min(lane.bandwidth for lane in way)
    if slowest <= 0:
        raise KeyError("a tier on the way has no bandwidth")
    waiting = max(lane.queued_bytes / lane.bandwidth for lane in way)
    return attach_s + waiting + nbytes / slowest


def average(old: float, measured: float, weight: float = 0.3) -> float:
    """Moving average of a bandwidth; the first measurement is taken as it is (`old` 0)."""
    return measured if old <= 0 else old + weight * (measured - old)
