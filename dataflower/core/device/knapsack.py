"""Which artifacts to have ready: a knapsack with precedence for each place, filled by the density of closed sets.

After ServerlessLoRA (EuroSys'26), section 4.1, "pre-loading as a precedence-constrained knapsack"; the formulation is a
reconstruction. An artifact's value is the delay that it saves times the requests of all functions that share it. The
paper takes artifacts by density one by one, which misses what is valuable behind a prerequisite that is not; here what
is compared are *closed sets*: an artifact with all that it still needs, and as many of those behind it as raise the
density. Against a bad first step the greedy pass is repeated from each artifact of a small problem.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dataflower.core.device.artifact import Candidate, Key, is_closed

STICKY = 0.2
"""By how much more what is there counts: it is not let go for what is only a little better."""
RESTARTS = 12
"""Up to so many candidates the pass is repeated with each of them first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to have ready, in an order in which it can be loaded. `value`: seconds of waiting saved in a second."""

    keys: tuple[Key, ...]
    value: float


def choose(
    candidates: Sequence[Candidate],
    rates: Mapping[str, float],
    caps: Mapping[str, int],
    held: Collection[Key] = (),
    least: float = 0.0,
) -> Choice:
    """The artifacts that are worth most.

    Args:
        candidates: with unique keys; needs name other candidates, and never in a circle.
        rates: requests a second of each function.
        caps: bytes that may be used in each place; a place that is not named has none.
        held: what is there now.
        least: value up to which an artifact is not worth the trouble for its own sake.
    """
    problem = _Problem({c.key: c for c in candidates}, rates, caps, frozenset(held), least)
    best = problem.everything() or problem.fill(())
    if len(candidates) <= RESTARTS:
        for first in problem.candidates:
            start = problem.closure(first, frozenset())
            if start is not None and problem.fits(frozenset(), start):
                best = max(best, problem.fill(start), key=problem.worth)
    keys = problem.in_order(best)
    return Choice(keys, sum(problem.candidates[key].value(rates) for key in keys))


def changes(
    held: Collection[Key], wanted: Sequence[Key], candidates: Mapping[Key, Candidate], rates: Mapping[str, float]
) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """From `held` to `wanted`: what to let go, least dense first and nothing before what needs it, and what to load."""
    keep = set(wanted)
    leave = sorted((k for k in held if k not in keep), key=lambda k: _density(candidates.get(k), rates))
    ordered: list[Key] = []
    while leave:
        for key in leave:
            known = candidates.get(key)
            needed = known is not None and any(
                key in options
                for other in leave
                if other != key and other in candidates
                for options in candidates[other].needs
            )
            if not needed:
                break
        leave.remove(key)
        ordered.append(key)
    there = set(held)
    return tuple(ordered), tuple(key for key in wanted if key not in there)


def _density(candidate: Candidate | None, rates: Mapping[str, float]) -> float:
    return 0.0 if candidate is None else candidate.density(rates)


@dataclass(slots=True)
class _Room:
    """Free bytes of each place, and the artifacts that have one."""

    free: dict[str, int]
    artifacts: set[str]

    def takes(self, candidates: Mapping[Key, Candidate], more: Iterable[Key]) -> bool:
        """Whether these fit in as well."""
        needed: dict[str, int] = {}
        names: set[str] = set()
        for key in more:
            if key[0] in self.artifacts or key[0] in names:
                return False
            names.add(key[0])
            needed[key[1]] = needed.get(key[1], 0) + candidates[key].nbytes
        return all(nbytes <= self.free.get(place, 0) for place, nbytes in needed.items())


class _Problem:
    """One question. Sets of keys are closed: what a member needs is a member."""

    def __init__(
        self,
        candidates: Mapping[Key, Candidate],
        rates: Mapping[str, float],
        caps: Mapping[str, int],
        held: frozenset[Key],
        least: float,
    ) -> None:
        self.candidates = candidates
        self._caps = caps
        self._value = {}
        for key, candidate in candidates.items():
            value = candidate.value(rates)
            self._value[key] = 0.0 if value <= least else value * (1 + STICKY * (key in held))
        self._behind: dict[Key, list[Key]] = {key: [] for key in candidates}
        for key, candidate in candidates.items():
            for need in {option for options in candidate.needs for option in options}:
                if need in self._behind:
                    self._behind[need].append(key)
        for behind in self._behind.values():
            behind.sort(key=lambda k: (-self._density((k,)), k))

    def worth(self, keys: Iterable[Key]) -> float:
        """Value of a set."""
        return sum(self._value[key] for key in keys)

    def closure(self, key: Key, chosen: frozenset[Key]) -> tuple[Key, ...] | None:
        """`key` and what it still needs, in order of loading; None if something that it needs can't be had."""
        found: dict[Key, None] = {}
        for options in self.candidates[key].needs:
            if any(option in chosen or option in found for option in options):
                continue
            ways = [self.closure(o, chosen | frozenset(found)) for o in options if o in self.candidates]
            able = [way for way in ways if way is not None]
            if not able:
                return None
            found.update(dict.fromkeys(max(able, key=self._density)))
        found[key] = None
        return tuple(found)

    def fits(self, chosen: frozenset[Key], more: Iterable[Key]) -> bool:
        """Whether both together keep the caps, and no artifact is in two places."""
        return self._room(chosen).takes(self.candidates, (key for key in more if key not in chosen))

    def _room(self, chosen: Iterable[Key]) -> _Room:
        room = _Room(dict(self._caps), set())
        for key in chosen:
            room.free[key[1]] = room.free.get(key[1], 0) - self.candidates[key].nbytes
            room.artifacts.add(key[0])
        return room

    def everything(self) -> frozenset[Key]:
        """All that is worth anything, if there is room for it and it stands by itself; else nothing."""
        worthy = frozenset(key for key, value in self._value.items() if value > 0)
        return worthy if is_closed(worthy, self.candidates) and self.fits(frozenset(), worthy) else frozenset()

    def fill(self, start: Iterable[Key]) -> frozenset[Key]:
        """Take the densest closed set that fits, again and again."""
        chosen = frozenset(start)
        left = [key for key in self.candidates if self._value[key] > 0]
        while True:
            room = self._room(chosen)
            best: tuple[Key, ...] = ()
            density = 0.0
            # What can't fit now never will: there is only less room later.
            left = [k for k in left if k not in chosen and room.takes(self.candidates, (k,))]
            for key in left:
                found = self._extended(key, chosen, room)
                if found and (its := self._density(found)) > density:
                    best, density = found, its
            if not best:
                return chosen
            chosen |= frozenset(best)

    def _extended(self, key: Key, chosen: frozenset[Key], room: _Room) -> tuple[Key, ...]:
        """The closure of `key`, and those behind it that raise the density; empty if it does not fit."""
        closure = self.closure(key, chosen)
        if closure is None or not room.takes(self.candidates, closure):
            return ()
        found = dict.fromkeys(closure)
        value = self.worth(closure)
        nbytes = sum(self.candidates[member].nbytes for member in closure)
        pending = list(closure)
        for member in pending:  # grows meanwhile
            for behind in self._behind[member]:
                if self._value[behind] * max(1, nbytes) <= value * self.candidates[behind].nbytes:
                    break  # nor would those after it raise the density by themselves
                if behind in found or behind in chosen:
                    continue
                more = self.closure(behind, chosen.union(found))
                if more is None or self._density((*found, *more)) * max(1, nbytes) <= value:
                    continue
                if room.takes(self.candidates, (*found, *more)):
                    found.update(dict.fromkeys(more))
                    pending += more
                    value += self.worth(more)
                    nbytes += sum(self.candidates[one].nbytes for one in more)
        return tuple(found)

    def _density(self, keys: Iterable[Key]) -> float:
        members = tuple(keys)
        return self.worth(members) / max(1, sum(self.candidates[key].nbytes for key in members))

    def in_order(self, keys: frozenset[Key]) -> tuple[Key, ...]:
        """Prerequisites first, the densest of what is possible next."""
        ordered: dict[Key, None] = {}
        left = sorted(keys, key=lambda k: (-self._density((k,)), k))
        while left:
            for key in left:
                if all(any(o in ordered for o in options) for options in self.candidates[key].needs):
                    break
            left.remove(key)
            ordered[key] = None
        return tuple(ordered)
