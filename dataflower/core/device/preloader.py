"""What a host gets ready before it is asked for: follows arrivals, and says what to hold and what to let go.

The choice is `knapsack.choose` over `catalog.Catalog` under a cap on memory; rates are averages over ten minutes. It
is made again when something was learned, or a rate has doubled or halved since; an idle host comes to rest when nothing
that it holds is worth holding any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dataflower.core.device.arrivals import Rates
from dataflower.core.device.artifact import HOST, Candidate, Key, Kind
from dataflower.core.device.catalog import Catalog, library_name
from dataflower.core.device.knapsack import changes, choose
from dataflower.core.preload import Library

WINDOW_S = 600.0
LEAST_VALUE = 1e-5
"""Seconds of waiting saved in a second, below which nothing is held: a second saved once in a day or so."""
PAUSE_S = 1.0
"""Between two choices at least."""
CHANGE = 2.0
"""By what factor a rate has to change to matter."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to get ready (`begin`) or to let go. Exactly one of the three is set."""

    begin: bool
    library: Library | None = None
    model: str | None = None
    function: str | None = None
    density: float = 0.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """An artifact as people see it. `held`: the policy wants it ready; `value`: seconds saved in a second."""

    name: str
    kind: Kind
    nbytes: int
    saved_s: float
    value: float
    held: bool
    users: tuple[str, ...]


class Preloader:
    """The policy of one host. `steps` is to be asked when `wake` says."""

    def __init__(self, memory_bytes: int, window_s: float = WINDOW_S, *, device_bytes: int = 0) -> None:
        """`memory_bytes`: cap on all that is held in main memory; `device_bytes`: on each device."""
        self._device_bytes = device_bytes
        self.catalog = Catalog()
        self._memory_bytes = memory_bytes
        self._rates: Rates[str] = Rates(window_s)
        self._workflows: dict[str, tuple[str, ...]] = {}
        self._floors: dict[str, float] = {}
        """By function: tasks a second that a plan counts on, be they seen or not."""
        self._planned: dict[str, float] = {}
        """Rates of workflows when the last choice was made."""
        self._held: tuple[Key, ...] = ()
        self._known: dict[Key, Candidate] = {}
        """Candidates at the last choice."""
        self._names: dict[str, Library | str] = {}
        self._dirty = False
        self._not_before = -math.inf

    # --- what happens --------------------------------------------------------------------------------------------

    def deployed(self, workflow: str, functions: tuple[str, ...], now: float) -> None:
        """A workflow can be called; its functions are in the catalogue. It counts as called once: somebody wants it."""
        self._workflows[workflow] = functions
        self._rates.note(workflow, now)
        self._dirty = True

    def withdrawn(self, workflow: str) -> None:
        """It can't be called any more."""
        gone = self._workflows.pop(workflow, ())
        needed = {function for functions in self._workflows.values() for function in functions}
        for function in set(gone) - needed:
            self.catalog.remove(function)
        self._rates.forget(workflow)
        self._dirty = True

    def counted_on(self, function: str, rate: float) -> None:
        """A plan promises to serve so many tasks of a function a second, and none of them may wait; 0: none."""
        self._floors.pop(function, None)
        if rate > 0:
            self._floors[function] = rate
        self._dirty = True

    def called(self, workflow: str, now: float) -> bool:
        """An invocation of it has come. Gives whether that may change the choice."""
        self._rates.note(workflow, now)
        if self._rates.rate(workflow, now) > CHANGE * self._planned.get(workflow, 0.0):
            self._dirty = True
        return self._dirty

    def learned(self) -> None:
        """The catalogue has changed, or something that was held is gone."""
        self._dirty = True

    def lost(self, modules: tuple[str, ...]) -> None:
        """A fork server with these is gone: if it is worth it, the next choice will be to have it again."""
        gone = {(library_name(library), HOST) for library in self.catalog.libraries if library[0] == modules}
        self._held = tuple(key for key in self._held if key not in gone)

    # --- what to do ----------------------------------------------------------------------------------------------

    def wake(self, now: float) -> float:
        """When to ask for `steps` next unless something happens before; inf: never. At most `now`: at once."""
        if self._dirty:
            return max(now, self._not_before)
        times = (
            self._rates.falls_below(workflow, rate / CHANGE, now)
            for workflow, rate in self._planned.items()
            if self._matters(workflow)
        )
        return max(min(times, default=math.inf), self._not_before)

    def _matters(self, workflow: str) -> bool:
        functions = self._workflows.get(workflow, ())
        return any(name in self._known[key].users for key in self._held for name in functions)

    def steps(self, now: float) -> tuple[Step, ...]:
        """What to let go, least dense first, then what to get ready, in order."""
        self._dirty = False
        self._not_before = now + PAUSE_S
        self._planned = self._rates.all(now)
        rates = self._by_function(now)
        candidates = self.catalog.candidates()
        caps = {place: self._memory_bytes if place == HOST else self._device_bytes for _, place in candidates}
        chosen = choose(list(candidates.values()), rates, caps, self._held, LEAST_VALUE).keys
        before = {**self._known, **candidates}
        leave, load = changes(self._held, chosen, before, rates)
        self._names = {**self._names, **self.catalog.names()}
        self._held, self._known = chosen, candidates
        gone = [self._step(False, key, before[key], rates) for key in leave]
        return (*gone, *(self._step(True, key, candidates[key], rates) for key in load))

    def _step(self, begin: bool, key: Key, candidate: Candidate, rates: dict[str, float]) -> Step:
        thing, density = self._names[key[0]], candidate.density(rates)
        if isinstance(thing, tuple):
            return Step(begin, library=thing, density=density)
        if candidate.kind is Kind.BACKBONE:
            return Step(begin, model=thing, density=density)
        return Step(begin, function=thing, density=density)

    def _by_function(self, now: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for workflow, functions in self._workflows.items():
            for function in functions:  # one that several workflows share has the calls of all of them
                found[function] = found.get(function, 0.0) + self._rates.rate(workflow, now)
        for function, rate in self._floors.items():
            found[function] = max(rate, found.get(function, 0.0))
        return found

    def prepared(self, now: float) -> tuple[Prepared, ...]:
        """All candidates, the densest first."""
        rates = self._by_function(now)
        candidates = sorted(self.catalog.candidates().values(), key=lambda c: (-c.density(rates), c.key))
        return tuple(
            Prepared(c.artifact, c.kind, c.nbytes, c.saved_s, c.value(rates), c.key in self._held, c.users)
            for c in candidates
        )
