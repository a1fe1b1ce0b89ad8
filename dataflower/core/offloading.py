"""Stages with weights under a cap on memory: who has to leave for whom. The choice itself is `device.offload`.

What is counted is in `residents`: fork servers, containers, what they have grown by, and weights. When a stage needs a
container and there is no room, what is idle leaves, the least dense first, weights and libraries only with everybody
who uses them; a container that runs a task is never touched. Where everybody is busy, who has been kept out for long
enough gets the place of a container that takes no more tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dataflower import wire
from dataflower.core import commands
from dataflower.core.commands import Command
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.device.arrivals import Rates
from dataflower.core.device.artifact import HOST, Key
from dataflower.core.device.catalog import container_name, library_name, weights_name
from dataflower.core.device.offload import Leaving, offload
from dataflower.core.device.preloader import Prepared
from dataflower.core.failures import stage_too_large
from dataflower.core.fleet import TURN_S, Fleet
from dataflower.core.pool import Pool
from dataflower.core.preload import Library
from dataflower.core.residents import GOING, Residents, cache_name
from dataflower.core.timers import Timer, Timers
from dataflower.errors import Failure

AGAIN_S = 1.0
"""Between two measurements of a container's memory at least."""
STARTS = 2.0
"""Who has been kept out for so many starts of a container may have others leave for it: else they only drive each
other out."""

UNLOAD_S = 10.0
"""A fork server that runs on for so long after it was told to end is needed by others: it is not counted on."""


class Offloading:
    """The policy of one host and its hands. Calls `say` with commands; containers leave by the fleet."""

    def __init__(
        self,
        cap_bytes: int,
        fleet: Fleet,
        timers: Timers,
        say: Callable[[Command], None],
        *,
        first_s: Callable[[Pool], float],
        refuse: Callable[[Pool, Failure, float], None],
    ) -> None:
        """`first_s`: how long a request of a function takes to its first token without what was kept of others.

        `refuse`: a pool can't have a container, now or later.
        """
        self.cap_bytes = cap_bytes
        self.moved = 0
        """Artifacts that had to leave so far."""
        self._fleet = fleet
        self._timers = timers
        self._say = say
        self._first_s = first_s
        self._refuse = refuse
        self._refused: set[Pool] = set()
        """Pools that are about to be told."""
        self._there = Residents()
        self._rates: Rates[str] = Rates()
        self._asking: dict[int, Timer] = {}
        """Containers that will be measured again soon if they are idle then."""
        self._first: Pool | None = None
        """For whom room is being made: what becomes free is not for others."""
        self._timer: Timer | None = None

    # --- what happens --------------------------------------------------------------------------------------------

    def deployed(self, pool: Pool, library: Library) -> None:
        """A stage with weights can be called; its containers are forked where these libraries are."""
        if pool in self._there.pools:
            return
        name = f"{pool.key.rpartition('@')[0]}/{pool.stage.name}"
        self._there.pools[pool] = name
        self._there.catalog.add(name, library, (pool.stage.model,), pool.stage.resources.memory_bytes)
        if self.too_large(pool) is not None:
            self._there.sizes.pop(name, None)  # of the version before; this one may be another
        self._say(commands.SizeWeights(pool.stage.model))

    def uses(self, pool: Pool, library: Library) -> None:
        """A stage that does not count here has its containers from there: they don't make room."""
        users = self._there.outside.setdefault(library, {})
        for gone in [user for user in users if user.closing and not user.containers]:
            del users[gone]
        users[pool] = None

    def removed(self, pool: Pool) -> None:
        """It can't any more; its last containers are still counted."""
        if pool.containers:
            return
        name = self._there.pools.pop(pool, "")
        if self._first is pool:
            self._first = None
        if name and name not in self._there.pools.values():
            self._there.catalog.remove(name)
            self._rates.forget(name)
            self._there.sizes.pop(name, None)

    def called(self, pools: Iterable[Pool], now: float) -> None:
        """An invocation of the workflow of these pools was let in."""
        for pool in pools:
            if pool in self._there.pools:
                self._rates.note(self._there.pools[pool], now)

    def started(self, container: Container, hello: wire.Hello) -> None:
        """A container is ready, and has opened weights."""
        name = self._there.pools.get(container.pool)
        if name is None:
            return
        opened = [(p.what, p.nbytes, p.seconds, p.was_there) for p in hello.phases if p.kind is wire.StartKind.WEIGHTS]
        self._there.catalog.container_started(name, hello.import_s + hello.setup_s, opened)
        for model, nbytes, *_ in opened:
            self._there.weights[model] = nbytes
            self._there.dropping.discard(model)

    def zygote_started(self, modules: tuple[str, ...], seconds: float, nbytes: int) -> None:
        """A fork server has imported these in so many seconds, and has so much memory of its own."""
        self._there.catalog.library_started(modules, seconds, nbytes)
        for library in self._there.catalog.libraries:
            if library[0] == modules and nbytes:
                self._there.libraries[library] = self._there.imported[library] = nbytes

    def zygote_ended(self, modules: tuple[str, ...]) -> None:
        """It is gone."""
        for library in [library for library in self._there.libraries if library[0] == modules]:
            del self._there.libraries[library]
            self._there.unloading.discard(library)
            self._there.kept.discard(library)

    def starting(self, pool: Pool) -> None:
        """A container is being started: where it is forked stays from now on, until it has to make room again."""
        library = self._there.library(pool)
        if library is not None and (library not in self._there.libraries or library in self._there.unloading):
            self._there.unloading.discard(library)
            self._say(commands.Preload(*library))

    def idle(self, container: Container, now: float) -> None:
        """A container has ended its last task: its memory may have grown."""
        if container.pool not in self._there.pools or container.number in self._asking:
            return
        asked, nbytes = self._there.measured.get(container.number, (-AGAIN_S, 0))
        if now >= asked + AGAIN_S:
            self._there.measured[container.number] = now, nbytes
            self._say(commands.SizeContainer(container.number))
        else:
            self._asking[container.number] = self._timers.at(asked + AGAIN_S, lambda at: self._ask(container, at))

    def _ask(self, container: Container, now: float) -> None:
        del self._asking[container.number]
        if container.is_idle and container.phase is ContainerPhase.READY:
            self.idle(container, now)

    def container_sized(self, container: Container, nbytes: int, now: float) -> None:
        """So much memory a container has for itself. If that is more than there is, somebody leaves."""
        name = self._there.pools.get(container.pool)
        trimmed = container.number in self._there.trimming
        self._there.trimming.discard(container.number)
        if name is None or nbytes <= 0:
            return
        self._there.measured[container.number] = now, nbytes
        if trimmed or container.number not in self._there.bases:
            self._there.bases[container.number] = nbytes
            self._there.sizes[name] = max(nbytes, self._there.sizes.get(name, 0))
            if (why := self.too_large(container.pool)) is not None:
                self._fleet.kill(container, f"was stopped: {why.message}")
                return
        lacking = self._there.used() - self._there.soon() - self.cap_bytes
        if lacking > 0:
            self._offload(lacking, now, None)

    def trimmed(self, container: Container) -> None:
        """It has given back what it could."""
        if container.number in self._there.trimming:
            self._say(commands.SizeContainer(container.number))

    def weights_sized(self, model: str, nbytes: int, seconds: float, held: bool) -> None:
        """Weights were found to be so large; `held`: they are in memory, ahead of calls. 0: nothing is known."""
        if nbytes:
            self._there.catalog.weights_sized(model, nbytes, seconds)
        if held:
            self._there.weights[model] = nbytes
            self._there.dropping.discard(model)

    def weights_dropped(self, model: str, gone: bool) -> None:
        """They are out of memory, or can't be: others use them."""
        self._there.dropping.discard(model)
        if gone:
            self._there.weights.pop(model, None)
        else:
            self._there.fixed.add(model)

    def ended(self, container: Container) -> None:
        """A container is gone, and whatever it used may be free."""
        self._there.measured.pop(container.number, None)
        self._there.bases.pop(container.number, None)
        self._there.trimming.discard(container.number)
        if (timer := self._asking.pop(container.number, None)) is not None:
            timer.cancel()
        self._there.fixed.clear()
        self._there.kept.clear()
        if container.pool.closing:
            self.removed(container.pool)

    # --- what there is -------------------------------------------------------------------------------------------

    def too_large(self, pool: Pool) -> Failure | None:
        """Why it could have no container even if everybody else left; None: it can, or that is not known."""
        name = self._there.pools.get(pool)
        if name is None:
            return None
        weights = {
            model: self._there.catalog.models[model].nbytes for model in self._there.catalog.functions[name].models
        }
        own = self._there.sizes.get(name, 0)
        if sum(weights.values()) + own <= self.cap_bytes:
            return None
        known = {model: nbytes for model, nbytes in weights.items() if nbytes}
        return stage_too_large(pool.stage.name, known, own, self.cap_bytes)

    def _turn_away(self, pool: Pool, why: Failure, now: float) -> None:
        """Its waiting tasks fail, once this event is over."""
        if pool not in self._refused:
            self._refused.add(pool)

            def tell(at: float) -> None:
                self._refused.discard(pool)
                self._refuse(pool, why, at)

            self._timers.at(now, tell)

    def _pinned(self, wanting: Pool | None, *, impatient: bool) -> set[Key]:
        """What must not leave: what runs or starts, what is wanted now, and what somebody has asked to be kept."""
        pinned: set[Key] = set()
        for pool, name in self._there.pools.items():
            kept = pool.min_replicas and not pool.closing
            if pool is wanting or self._is_busy(pool) or kept or (pool.queued and not impatient):
                pinned.update(((container_name(name), HOST), (cache_name(name), HOST)))
                function = self._there.catalog.functions[name]
                pinned.update((weights_name(model), HOST) for model in function.models)
                pinned.add((library_name(function.library), HOST))
        return pinned

    @staticmethod
    def _is_busy(pool: Pool) -> bool:
        return pool.starting > 0 or any(not c.is_idle for c in pool.containers.values())

    # --- what to do ----------------------------------------------------------------------------------------------

    def fits(self, pool: Pool) -> bool:
        """Whether there is room for one more container of it as things are."""
        there = self._there
        return pool not in there.pools or there.used() + there.need(pool) + self._reserved(pool) <= self.cap_bytes

    def used(self) -> int:
        """Bytes that count, as `Residents.used`."""
        return self._there.used()

    def _reserved(self, pool: Pool) -> int:
        first = self._first
        if first is not None and first not in self._fleet.starved:
            first = self._first = None
        return 0 if first is None or first is pool else self._there.need(first)

    def admit(self, pool: Pool, now: float) -> bool:
        """Whether a container of it may start now; if not, room is being made, or will be: ask again when something
        has happened.

        A stage that is too large for the cap all by itself is refused, as far as is known; one that is only thought to
        be may start when nobody else is left.
        """
        if (why := self.too_large(pool)) is not None:
            self._turn_away(pool, why, now)
            return False
        if self.fits(pool):
            if self._first is pool:
                self._first = None
            return True
        if self._first is not None and self._first is not pool:
            return False
        lacking = self._there.used() + self._there.need(pool) - self.cap_bytes - self._there.soon()
        if lacking <= 0 or self._offload(lacking, now, pool):
            self._first = pool
            return False
        return self._give_way(pool, lacking, now)

    def _offload(self, lacking: int, now: float, pool: Pool | None, *, impatient: bool = False) -> bool:
        """Have what is worth least leave; False if so much can't."""
        pinned = self._pinned(pool, impatient=impatient)
        steps = offload(self._there.loaded(self._first_s), self._rates.all(now), HOST, lacking, pinned=pinned)
        if steps is None:
            return False
        whole = {step.key for step in steps}
        steps = tuple(step for step in steps if not self._goes_with_another(step.key, whole))
        self.moved += len(steps)
        for step in steps:
            self._leave(step, now)
        return True

    def _goes_with_another(self, key: Key, leaving: set[Key]) -> bool:
        """Whether it is what a container has kept that leaves itself."""
        return any(
            key == (cache_name(name), HOST) and (container_name(name), HOST) in leaving
            for name in self._there.pools.values()
        )

    def _leave(self, step: Leaving, now: float) -> None:
        for model in self._there.weights:
            if (weights_name(model), HOST) == step.key:
                self._there.dropping.add(model)
                self._say(commands.DropWeights(model))
        for library in self._there.libraries:
            if (library_name(library), HOST) == step.key:
                self._unload(library, now)
        for pool, name in self._there.pools.items():
            if (container_name(name), HOST) == step.key:
                for container in pool.idle:
                    self._fleet.stop(container)
            if (cache_name(name), HOST) == step.key:
                for container in pool.idle:
                    if self._there.grown(container) and container.number not in self._there.trimming:
                        self._there.trimming.add(container.number)
                        self._say(commands.Tell(container.number, wire.Trim()))

    def _unload(self, library: Library, now: float) -> None:
        """A fork server is to end with the last of its containers, if those are all of stages that count here."""
        self._there.unloading.add(library)
        self._say(commands.Unload(*library))

        def look(_: float) -> None:
            if library in self._there.unloading:
                self._there.unloading.discard(library)
                self._there.kept.add(library)

        self._timers.at(now + UNLOAD_S, look)

    def prepared(self, now: float) -> tuple[tuple[Prepared, bool], ...]:
        """All that counts and is there, the densest first."""
        rates = self._rates.all(now)
        found = sorted(self._there.loaded(self._first_s).values(), key=lambda c: (-c.density(rates), c.key))
        return tuple(
            (Prepared(c.artifact, c.kind, c.nbytes, c.saved_s, c.value(rates), True, c.users), True) for c in found
        )

    def _give_way(self, pool: Pool, lacking: int, now: float) -> bool:
        """Nothing idle would be enough. Whoever has no container at all does not wait for ever."""
        if pool.size:
            return False
        others = [other for other in self._there.pools if other is not pool and other.containers]
        if not others:
            return not self._there.dropping  # everything has left that could
        start_s = self._there.catalog.functions[self._there.pools[pool]].container.seconds
        at = self._fleet.starved.get(pool, now) + max(TURN_S, STARTS * start_s)
        if now < at and any(self._is_busy(other) or other.queued for other in others):
            if self._timer is None or self._timer.at > at or self._timer.at <= now:
                self._timer = self._timers.at(at, lambda _: None)  # to be asked again then
            return False
        self._first = pool
        if self._offload(lacking, now, pool, impatient=True):
            return False
        able = [
            c
            for other in others
            if other.dispensable() > 0
            for c in other.containers.values()
            if c.phase is ContainerPhase.READY
        ]
        if able:
            self._fleet.drain(min(able, key=lambda c: (self._density(c, now), c.ready_at)))
            return False
        if any(c.phase in GOING for other in others for c in other.containers.values()):
            return False  # it asks again when they are gone
        return not any(self._is_busy(other) for other in others)  # they are to be kept, whatever that means for memory

    def _density(self, container: Container, now: float) -> float:
        name = self._there.pools[container.pool]
        value = self._there.catalog.functions[name].container.seconds * self._rates.rate(name, now)
        return value / max(1, self._there.size(container))
