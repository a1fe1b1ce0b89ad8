"""All containers of a host: how many there may be, who makes room for whom, and how long an idle one stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from dataflower.core.commands import Command, KillContainer, StartContainer, StopContainer
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.pool import Pool
from dataflower.core.priority import ranked
from dataflower.core.timers import Timer, Timers

TURN_S = 0.5
"""A busy container serves its stage for so long before it may have to give way to a stage that has fewer."""


class Memory(Protocol):
    """Whether there is memory for one more container of a pool."""

    def fits(self, pool: Pool) -> bool:
        """As things are."""
        ...

    def admit(self, pool: Pool, now: float) -> bool:
        """Likewise; if not, others are made to leave, and the pool asks again whenever something has happened."""
        ...

    def starting(self, pool: Pool) -> None:
        """One is being started."""
        ...


class Fleet:
    """The containers of all pools, by number. `say` takes the commands."""

    def __init__(
        self,
        limit: int,
        timers: Timers,
        say: Callable[[Command], None],
        late: Callable[[Container, float, float], None],
        start_timeout_s: float,
        *,
        recall: Callable[[Container], None],
    ) -> None:
        """`late(container, limit in seconds, now)`: it was not ready in time, by default within `start_timeout_s`.

        `recall(container)`: have back what it has not begun.
        """
        self.containers: dict[int, Container] = {}
        self.starved: dict[Pool, float] = {}
        """Pools that wait for the host to have room for another container, and since when."""
        self._recall = recall
        self._making_room: dict[Pool, Container] = {}
        """Containers that give way to starved pools."""
        self._turn: Timer | None = None
        """When the next container may have to."""
        self._limit = limit
        self._timers = timers
        self._say = say
        self._late = late
        self._start_timeout_s = start_timeout_s
        self._last = 0
        self.memory: Memory | None = None
        """Who has a say where memory is short, if it is limited."""

    def fill(self, pool: Pool, now: float) -> None:
        """Start as many containers as the pool wants and the host has room for; others may come first."""
        if not self.starved:
            self._fill(pool, now)
        elif pool.wanted(now):
            self.starved.setdefault(pool, now)  # `place_starved` follows

    def _fill(self, pool: Pool, now: float) -> None:
        since = self.starved.get(pool, now)
        for _ in range(pool.wanted(now)):
            if not self._has_room(pool, now):
                self.starved[pool] = since
                return
            self._start(pool, now)
        self.starved.pop(pool, None)

    def keep(self, pool: Pool, containers: int, now: float) -> None:
        """Have so many containers ready whether or not they are called; nobody makes room for them."""
        pool.warm = 0 if pool.closing else min(containers, pool.max_replicas)
        fits = len(self.containers) < self._limit and (self.memory is None or self.memory.fits(pool))
        if pool.size < pool.warm and now >= pool.blocked_until and fits:
            self._start(pool, now)
        if pool.surplus() > 0:
            for container in pool.idle:
                self.watch_idle(container, now)

    def place_starved(self, now: float) -> None:
        """Something happened: try again for the pools that wait for room, the most urgent first (`priority`).

        Who has had nothing for a whole turn comes before all others, or a stage that never rests would keep it out.
        """
        waiting = ranked(sorted(self.starved, key=self.starved.__getitem__))
        waiting.sort(key=lambda pool: self._kept_out_since(pool, now))
        for pool in waiting:
            if pool.backlog or pool.min_replicas:
                self._fill(pool, now)
            else:
                del self.starved[pool]

    def _kept_out_since(self, pool: Pool, now: float) -> float:
        """When a pool without a container began to wait, if that was a turn ago or more; else inf."""
        since = self.starved[pool]
        return math.inf if pool.size or now < since + TURN_S else since

    @property
    def is_full(self) -> bool:
        """Whether the host has no room for another container, unless one leaves."""
        return len(self.containers) >= self._limit

    def stop(self, container: Container) -> None:
        """An idle container is to leave."""
        container.pool.leave(container)
        self._say(StopContainer(container.number))

    def kill(self, container: Container, reason: str) -> None:
        """A container is to leave, whatever it is doing."""
        container.pool.leave(container)
        self._say(KillContainer(container.number, reason))

    def close(self, pool: Pool) -> None:
        """The pool's workflow is gone: its containers leave as soon as they run nothing."""
        pool.closing = True
        self.starved.pop(pool, None)
        self._making_room.pop(pool, None)
        for container in tuple(pool.containers.values()):
            if container.phase is not ContainerPhase.LEAVING and container.is_idle:
                self.stop(container)

    def stop_if_unwanted(self, container: Container) -> None:
        """A task of it is over: it leaves if it runs nothing any more and nothing is to come."""
        if not container.is_idle:
            return
        phase = container.phase
        if phase is ContainerPhase.DRAINING or (container.pool.closing and phase is ContainerPhase.READY):
            self.stop(container)

    def watch_idle(self, container: Container, now: float) -> None:
        """It is idle now: it leaves after its time unless it is used again."""
        if container.keep_alive_set:
            return
        container.keep_alive_set = True
        due = container.idle_since + container.pool.stage.scaling.keep_alive_s
        self._timers.at(max(due, now), lambda at: self._stop_if_idle(container, at))

    def _stop_if_idle(self, container: Container, now: float) -> None:
        container.keep_alive_set = False
        pool = container.pool
        if container.phase is not ContainerPhase.READY or not container.is_idle:
            return
        if now < container.idle_since + pool.stage.scaling.keep_alive_s:
            self.watch_idle(container, now)
        elif pool.surplus() > 0:
            self.stop(container)

    def _start(self, pool: Pool, now: float) -> None:
        if self.memory is not None:
            self.memory.starting(pool)
        self._last += 1
        container = Container(self._last, pool)
        self.containers[container.number] = container
        pool.add(container)
        own = pool.stage.start_timeout_s
        limit = self._start_timeout_s if own is None else own
        container.start_limit = self._timers.at(now + limit, lambda at: self._late(container, limit, at))
        followers = tuple(follower.stage for follower in pool.followers)
        self._say(StartContainer(container.number, pool.key, pool.stage, container.hardware, followers, pool.stays))

    def _has_room(self, pool: Pool, now: float) -> bool:
        """Whether the host can take one more container; if not, another pool's longest idle one is sent away, or a
        busy one of a pool that has more is to leave after its present tasks.

        The limit gives way where keeping it would mean to wait for ever: nothing moves, and a queue has no container.
        """
        if self.memory is not None and not self.memory.admit(pool, now):
            return False
        if len(self.containers) < self._limit:
            return True
        if any(c.phase is ContainerPhase.LEAVING for c in self.containers.values()):
            return False
        pools = {c.pool: None for c in self.containers.values() if c.pool is not pool}
        spare = [p.idle[0] for p in pools if p.dispensable() > 0 and not p.backlog and p.idle]
        if spare:
            self.stop(min(spare, key=lambda c: c.idle_since))
            return False
        if pool.queued and not pool.size and self._is_standstill:
            return True
        if pool.queued:
            self._make_room(pool, now)
        return False

    def _make_room(self, pool: Pool, now: float) -> None:
        """Have a busy container of another pool leave, if that has more of them, or served for its time and this none.

        Without it, a stage whose queue never ends would keep all others out.
        """
        if self._making_room.get(pool) in self.containers.values():
            return
        others = {c.pool: None for c in self.containers.values() if c.pool is not pool}
        richer = [p for p in others if p.dispensable() > 0 and p.size > pool.size + (1 if pool.size else 0)]
        ready = [
            c
            for p in richer
            if p.size == max(other.size for other in richer)
            for c in p.containers.values()
            if c.phase is ContainerPhase.READY
        ]
        if not ready:
            return
        oldest = min(ready, key=lambda c: c.ready_at)
        if now < oldest.ready_at + TURN_S:
            if self._turn is None or self._turn.at <= now:
                self._turn = self._timers.at(oldest.ready_at + TURN_S, lambda at: None)  # to be asked again then
            return
        self._making_room[pool] = oldest
        if oldest.pool in self.starved:
            self.starved[oldest.pool] = now  # behind those that it gives way to
        self.drain(oldest)

    def drain(self, container: Container) -> None:
        """It gets no more tasks, and leaves after those that it has."""
        container.pool.drain(container)
        self._recall(container)
        self.stop_if_unwanted(container)

    @property
    def _is_standstill(self) -> bool:
        """Whether no container will do anything of its own accord: they are idle, or their tasks wait for others."""
        return all(
            c.phase is not ContainerPhase.STARTING
            and not c.pool.will_move
            and not c.sending
            and c.pressed is None
            and all(i.may_wait for i in c.tasks.values())
            for c in self.containers.values()
        )
