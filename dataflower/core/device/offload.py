"""What makes room on a device: the least valuable of what is there, with all that is of no use without it.

After ServerlessLoRA (EuroSys'26), section 4.3, reconstructed: groups by ascending density, never anything that a batch
uses, into main memory where there is room, and nothing that turns out not to be needed after all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dataflower.core.device.artifact import Candidate, Key, Kind


@dataclass(frozen=True, slots=True)
class Leaving:
    """An artifact leaves a device: into main memory (`to_host`) or altogether."""

    key: Key
    to_host: bool


def offload(
    loaded: Mapping[Key, Candidate],
    rates: Mapping[str, float],
    place: str,
    need: int,
    *,
    pinned: Collection[Key] = (),
    host_free: int = 0,
) -> tuple[Leaving, ...] | None:
    """What has to leave `place` so that `need` bytes become free, in order; None if that can't be had.

    Args:
        loaded: everything that is there, in all places.
        rates: requests a second of each function.
        place: where room is needed.
        need: bytes beyond those that are free.
        pinned: what running or dispatched batches use; whatever those need is pinned by them.
        host_free: bytes of main memory that may be used for what leaves. Kernels can't go there.
    """
    there = {key: candidate for key, candidate in loaded.items() if key[1] == place}
    fixed = _with_prerequisites(pinned, there)
    gone: list[Key] = []
    freed = 0
    while freed < need:
        left = {key: c for key, c in there.items() if key not in gone}
        groups = [_group(key, left) for key in left if key not in fixed]
        free = [group for group in groups if not fixed.intersection(group)]
        if not free:
            return None
        cheapest = min(free, key=lambda g: (_cost(g, there, rates) / max(1, _size(g, there)), _size(g, there), g[-1]))
        gone += cheapest
        freed += _size(cheapest, there)
    gone = _spared(gone, there, rates, freed - need)
    leaving = []
    for key in gone:
        candidate = there[key]
        stays = candidate.kind < Kind.KERNELS and candidate.nbytes <= host_free
        if stays:
            host_free -= candidate.nbytes
        leaving.append(Leaving(key, stays))
    return tuple(leaving)


def _with_prerequisites(keys: Collection[Key], there: Mapping[Key, Candidate]) -> set[Key]:
    found: set[Key] = set()
    pending = [key for key in keys if key in there]
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending += [option for options in there[key].needs for option in options if option in there]
    return found


def _group(key: Key, left: Mapping[Key, Candidate]) -> list[Key]:
    """`key` and all that can't do without it, leaves first."""
    found = [key]
    for member in found:  # grows meanwhile
        for other, candidate in left.items():
            if other not in found and any(
                member in options and all(o in found or o not in left for o in options) for options in candidate.needs
            ):
                found.append(other)
    return found[::-1]


def _spared(gone: list[Key], there: Mapping[Key, Candidate], rates: Mapping[str, float], over: int) -> list[Key]:
    """Without what may stay after all, the most valuable first: enough leaves even so."""
    left = list(gone)
    while True:
        able = [
            key
            for key in left
            if there[key].nbytes <= over and not any(o in left for options in there[key].needs for o in options)
        ]
        if not able:
            return left
        stays = max(able, key=lambda k: (there[k].value(rates), k))
        left.remove(stays)
        over -= there[stays].nbytes


def _cost(keys: Collection[Key], there: Mapping[Key, Candidate], rates: Mapping[str, float]) -> float:
    return sum(there[key].value(rates) for key in keys)


def _size(keys: Collection[Key], there: Mapping[Key, Candidate]) -> int:
    return sum(there[key].nbytes for key in keys)
