"""Preloading on a host: what its core tells the policy (`device.preloader`), and what becomes of the answers.

Either for all that is called (the server's setting `preload`), or for no more than what plans count on: the stages
whose tasks would miss the plan if they had to wait for weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.commands import Command
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.device.artifact import Kind, placed
from dataflower.core.device.catalog import weights_name
from dataflower.core.device.preloader import Preloader, Prepared, Step
from dataflower.core.fleet import Fleet
from dataflower.core.plan import StageDispatch
from dataflower.core.pool import Pool
from dataflower.core.preload import Library, zygote_kinds
from dataflower.core.timers import Timer, Timers
from dataflower.spec.workflow import Stage

KEPT = 1
"""Containers of a function that are kept ready: the next ones start while it works."""


def families(pools: Iterable[Pool]) -> dict[Library, list[Pool]]:
    """The zygotes that the stages of a workflow need, and whose stages they are for."""
    found: dict[Library, list[Pool]] = {}
    listed = list(pools)
    for isolation in dict.fromkeys(pool.stage.isolation for pool in listed):
        alike = [pool for pool in listed if pool.stage.isolation is isolation]
        kinds = zygote_kinds(pool.stage.preload for pool in alike)
        for pool in alike:
            own = min((k for k in kinds if set(pool.stage.preload).issubset(k)), key=len)
            found.setdefault((own, isolation), []).append(pool)
    return found


def weights_of(stage: Stage) -> str:
    """What the weights that a stage names are called where it wants them: `params: {device: cuda:0}`; empty: none."""
    device = stage.params.get("device")
    if not stage.model or not isinstance(device, str) or device == "cpu":
        return stage.model or ""
    return placed(stage.model, "cuda:0" if device == "cuda" else device)


class Preloading:
    """The policy and its hands. Calls `say` with commands; everything else it does by the fleet."""

    def __init__(
        self,
        memory_bytes: int,
        fleet: Fleet,
        timers: Timers,
        say: Callable[[Command], None],
        *,
        follows: bool,
        device_bytes: int = 0,
    ) -> None:
        """`follows`: it goes by arrivals, of all workflows; else by plans alone, and has no say in libraries.

        `memory_bytes`, `device_bytes`: caps on what is held in main memory, and on each device.
        """
        self.follows = follows
        self._policy = Preloader(memory_bytes, device_bytes=device_bytes)
        self._fleet = fleet
        self._timers = timers
        self._say = say
        self._pools: dict[str, Pool] = {}
        """By function: `workflow/stage`."""
        self._functions: dict[str, tuple[str, ...]] = {}
        """By key of a deployed workflow."""
        self._holds: dict[str, float] = {}
        self._ready: set[str] = set()
        """Names of libraries' modules and weights that are there."""
        self._timer: Timer | None = None

    # --- what happens --------------------------------------------------------------------------------------------

    def deployed(self, key: str, pools: Iterable[Pool], now: float) -> None:
        """A workflow can be called. A newer version takes over what is known of the one before."""
        workflow = _workflow(key)
        names = []
        for library, members in families(pools).items():
            for pool in members:
                name = self._name(pool)
                names.append(name)
                old = self._pools.get(name)
                if old is not None and old is not pool:
                    warm = old.warm
                    self._fleet.keep(old, 0, now)
                    self._fleet.keep(pool, warm, now)
                self._pools[name] = pool
                model = weights_of(pool.stage)
                self._policy.catalog.add(name, library, (model,) if model else (), pool.stage.resources.memory_bytes)
                if model:
                    self._say(commands.SizeWeights(model))
        before = [self._functions[other] for other in self._functions if _workflow(other) == workflow]
        self._functions[key] = tuple(names)
        needed = self._needed(but=workflow).union(names)
        for name in {name for known in before for name in known}.difference(needed):
            self._pools.pop(name, None)
            self._policy.catalog.remove(name)
        self._policy.deployed(workflow, tuple(names), now)
        self.settle(now)

    def planned(
        self, key: str, pools: Mapping[str, Pool], stages: Mapping[str, StageDispatch], rate: float, now: float
    ) -> None:
        """A workflow runs by a plan for `rate` invocations a second (no stages: by none)."""
        rates = {name: stage.factor * rate for name, stage in stages.items() if stage.prewarm and name in pools}
        if not self.follows:
            if not rates and key not in self._functions:
                return
            self._by_plan(key, [pools[name] for name in rates])
        for pool in pools.values():
            if (name := self._name(pool)) in self._pools:
                self._policy.counted_on(name, rates.get(pool.stage.name, 0.0))
        self.settle(now)

    def _by_plan(self, key: str, pools: Iterable[Pool]) -> None:
        """Look after these and no others of a workflow. What they need is learned from their starts: the plan keeps
        containers of them, so there is one sooner than weights could be held that it may turn out not to open.
        """
        former = self._functions.pop(key, ())
        names: dict[str, Pool] = {self._name(pool): pool for pool in pools}
        for name in former:
            if name not in names:
                self._forget(name)
        for library, members in families(names.values()).items():
            for pool in members:
                self._pools[self._name(pool)] = pool
                self._policy.catalog.add(self._name(pool), library, (), pool.stage.resources.memory_bytes)
        if names:
            self._functions[key] = tuple(names)

    def _forget(self, name: str) -> None:
        """Of a function that plans counted on."""
        if not any(name in names for names in self._functions.values()):
            self._pools.pop(name, None)
            self._policy.counted_on(name, 0.0)
            self._policy.catalog.remove(name)

    def removed(self, key: str, now: float) -> None:
        """A version of a workflow takes no more calls."""
        if not self.follows:
            for name in self._functions.pop(key, ()):
                self._forget(name)
            self.settle(now)
            return
        names = self._functions.pop(key, ())
        if any(_workflow(other) == _workflow(key) for other in self._functions):
            return
        needed = self._needed()
        for name in names:
            pool = None if name in needed else self._pools.pop(name, None)
            if pool is not None:
                self._fleet.keep(pool, 0, now)
        self._policy.withdrawn(_workflow(key))
        self.settle(now)

    def called(self, key: str, now: float) -> None:
        """An invocation was let in."""
        if self._policy.called(_workflow(key), now):
            self.settle(now)

    def started(self, container: Container, hello: wire.Hello, now: float) -> None:
        """A container is ready."""
        if not self._functions:
            return
        opened = [(p.what, p.nbytes, p.seconds, p.was_there) for p in hello.phases if p.kind is wire.StartKind.WEIGHTS]
        name = self._name(container.pool)
        self._policy.catalog.container_started(name, hello.import_s + hello.setup_s, opened)
        self._policy.learned()
        self.settle(now)

    def ended(self, container: Container, now: float) -> None:
        """A container is gone."""
        if self._functions and container.pool.warm > container.pool.size:
            self._policy.learned()
            self.settle(now)

    def zygote_started(self, event: events.ZygoteStarted, now: float) -> None:
        """Libraries are imported."""
        self._ready.add(",".join(event.modules))
        self._policy.catalog.library_started(event.modules, event.seconds, event.nbytes)
        self._policy.learned()
        self.settle(now)

    def zygote_ended(self, event: events.ZygoteEnded) -> None:
        """Libraries are gone: nobody needed them, they made room, or the process died."""
        self._ready.discard(",".join(event.modules))
        self._policy.lost(event.modules)

    def container_sized(self, container: Container, nbytes: int, now: float) -> None:
        """How much memory a container takes for itself."""
        self._policy.catalog.container_sized(self._name(container.pool), nbytes)
        self._policy.learned()
        self.settle(now)

    def weights_sized(self, event: events.WeightsSized, now: float) -> None:
        """Weights were found, or are held now, or can't be had."""
        self._policy.catalog.weights_sized(event.model, event.nbytes, event.seconds)
        (self._ready.add if event.held else self._ready.discard)(event.model)
        self._policy.learned()
        self.settle(now)

    def _needed(self, but: str = "") -> set[str]:
        """Functions of all workflows but one: stages of several may share one."""
        return {name for key, names in self._functions.items() if _workflow(key) != but for name in names}

    def _name(self, pool: Pool) -> str:
        return f"{_workflow(pool.key)}/{pool.stage.name}"

    # --- what to do ----------------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Choose anew if it is time, and wake when it will be."""
        if self._policy.wake(now) <= now:
            for step in self._policy.steps(now):
                self._take(step, now)
            for pool in self._pools.values():
                if pool.warm > pool.size:
                    self._fleet.keep(pool, pool.warm, now)
        at = self._policy.wake(now)
        if self._timer is not None and self._timer.at > at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and at < math.inf:  # one that goes off too early looks again
            self._timer = self._timers.at(at, self._woke)

    def _woke(self, now: float) -> None:
        self._timer = None
        self.settle(now)

    def _take(self, step: Step, now: float) -> None:
        if step.library is not None:
            if not self.follows:
                return  # a fork server stays as long as a workflow needs it
            modules, isolation = step.library
            if not step.begin:
                self._ready.discard(",".join(modules))
            self._say(commands.Preload(modules, isolation) if step.begin else commands.Unload(modules, isolation))
        elif step.model is not None:
            if step.begin:
                self._holds[step.model] = step.density
            else:
                self._holds.pop(step.model, None)
                self._ready.discard(step.model)
            self._say(commands.HoldWeights(tuple(self._holds.items())))
        elif step.function is not None:
            pool = self._pools.get(step.function)
            if pool is not None:
                self._fleet.keep(pool, KEPT if step.begin else 0, now)

    def prepared(self, now: float) -> tuple[tuple[Prepared, bool], ...]:
        """All that could be held, the densest first, and whether each is ready."""
        found = ((one, self._is_ready(one)) for one in self._policy.prepared(now))
        return tuple(row for row in found if self.follows or row[0].kind is not Kind.LIBRARY)

    def _is_ready(self, one: Prepared) -> bool:
        if one.kind is Kind.LIBRARY:
            return any(f"libraries {name or 'plain'}" == one.name.partition(" (")[0] for name in self._ready)
        if one.kind is Kind.BACKBONE:
            return any(weights_name(name) == one.name for name in self._ready)
        pool = self._pools.get(one.users[0])
        return pool is not None and any(c.phase is ContainerPhase.READY for c in pool.containers.values())


def _workflow(key: str) -> str:
    return key.rpartition("@")[0]
