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

from dataflower.core.device.artifact import Candidate, Key

STICKY = 0.2
"""By how much more what is there counts: it is not let go for what is only a little better."""
RESTARTS = 40
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
        least: value below which an artifact is not worth the trouble of loading it.
    """
    problem = _Problem({c.key: c for c in candidates}, rates, caps, frozenset(held), least)
    best = problem.fill(())
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
        self._value = {k: c.value(rates) * (1 + STICKY * (k in held)) for k, c in candidates.items()}
        self._least = least
        self._places: dict[str, tuple[Key, ...]] = {}
        for key in candidates:
            self._places[key[0]] = (*self._places.get(key[0], ()), key)
        self._behind: dict[Key, list[Key]] = {key: [] for key in candidates}
        for key, candidate in candidates.items():
            for need in {option for options in candidate.needs for option in options}:
                if need in self._behind:
                    self._behind[need].append(key)

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
        together = chosen.union(more)
        used: dict[str, int] = {}
        for _, place in (keys := tuple(together)):
            used[place] = used.get(place, 0)
        for key in keys:
            used[key[1]] += self.candidates[key].nbytes
        if any(nbytes > self._caps.get(place, 0) for place, nbytes in used.items()):
            return False
        return len({artifact for artifact, _ in keys}) == len(keys)

    def fill(self, start: Iterable[Key]) -> frozenset[Key]:
        """Take the densest closed set that fits, again and again."""
        chosen = frozenset(start)
        while True:
            best: tuple[Key, ...] = ()
            for key in self.candidates:
                if key in chosen or self._value[key] <= 0:
                    continue
                found = self._extended(key, chosen)
                if found and (not best or self._density(found) > self._density(best)):
                    best = found
            if not best:
                return chosen
            chosen |= frozenset(best)

    def _extended(self, key: Key, chosen: frozenset[Key]) -> tuple[Key, ...]:
        """The closure of `key`, and those behind it that raise the density; empty if it does not fit."""
        closure = self.closure(key, chosen)
        if closure is None or not self.fits(chosen, closure):
            return ()
        found = list(closure)
        for member in found:  # grows meanwhile
            for behind in sorted(self._behind[member], key=lambda k: -self._density((k,))):
                if behind in found or behind in chosen:
                    continue
                more = self.closure(behind, chosen.union(found))
                if more is None or self._density((*found, *more)) <= self._density(found):
                    continue
                if self.fits(chosen, (*found, *more)):
                    found += more
        return tuple(found) if self.worth(found) > self._least else ()

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
