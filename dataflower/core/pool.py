"""The containers of one stage and the tasks that wait for them: who runs where, and how many containers there are."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from dataflower.core.ahead import MOST, PATIENCE_S, depth
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.instance import Instance, Phase
from dataflower.core.pressure import Hold, lacking
from dataflower.core.scale import Scale
from dataflower.core.slowdown import Slowdown
from dataflower.core.timers import Timer
from dataflower.spec.workflow import Stage

if TYPE_CHECKING:
    from dataflower.core.dispatch import BatchPool
    from dataflower.core.plan import GroupPlan, StageDispatch
    from dataflower.core.turnstile import Underway


RUN_WEIGHT = 0.2
"""How much one more measurement counts in the moving average of run times."""


class Pool:
    """One stage's queue (earliest deadline first, then first come) and containers (most recently used first)."""

    batches = False
    """Whether it gives out whole batches (`dispatch.BatchPool`)."""

    is_far: bool = False
    """Whether its containers run on another host."""

    _scale: Scale | None = None
    """Weighs what waits; of a language model that runs by a plan."""

    def __init__(self, key: str, stage: Stage, default_replicas: int) -> None:
        self.key = key
        self.stage = stage
        self.concurrency = stage.scaling.concurrency
        self._default_replicas = default_replicas
        self.max_replicas = stage.scaling.max_replicas or default_replicas
        self.min_replicas = stage.scaling.min_replicas
        self.containers: dict[int, Container] = {}
        self.starting = 0
        self.size = 0
        """Containers that are or will be of use: starting or ready."""
        self.queued = 0
        self.failed_starts = 0
        """Starts that failed in a row."""
        self.blocked_until = 0.0
        """No start before this time (back-off after failed starts)."""
        self.closing = False
        self.stays = False
        """Whether the outputs of its containers need not leave the host that they run on."""
        self.warm = 0
        """Containers that are kept for the sake of calls to come, as long as nothing else needs the room."""
        self.run_s = 0.0
        """How long the function takes, as measured lately; 0 if nobody knows or asks."""
        self.slowdown: Slowdown | None = None
        """How its run times compare to those of the plan that it follows; None without a plan."""
        self.start_s = 0.0
        """How long the last container took to start, from its fork."""
        self.pressed: dict[int, Container] = {}
        """Those whose places are held, by number."""
        self.together = self.concurrency
        """Tasks that one container may run at a time."""
        self.ahead = 0
        """Tasks that a container may be given beyond that (`core.ahead`)."""
        self.beyond = 0
        """Tasks that were."""
        self.watch: Timer | None = None
        """Looks after those, kept by whoever has the timers."""
        self.may_run_ahead = not (self.batches or any(p.stream for p in (*stage.input_ports, *stage.outputs)))
        self.underway: Underway | None = None
        """Kept where stages behind this one let tasks in by turn."""
        self.letting: list[BatchPool] = []
        """The pools of those stages."""
        self.followers: tuple[Pool, ...] = ()
        """Pools of the stages that wait for this one (`priority.join`)."""
        self._own = (self.min_replicas, self.max_replicas)
        self._planned: GroupPlan | None = None
        self._waits = any(port.stream for port in stage.input_ports)
        """Whether its runs may wait for items, so that their length tells nothing of the machine."""
        self._queue: list[tuple[float, int, Instance]] = []
        self._free: list[Container] = []
        self._sequence = 0

    def follow(self, plan: StageDispatch | None) -> None:
        """Keep as many containers as a plan says from now on (None: as the workflow says)."""
        self.underway = None
        self.letting = []
        former, self.slowdown = self.slowdown, None
        self._scale = None
        if plan is None:
            self.min_replicas, self.max_replicas = self._own
        else:
            self.slowdown = Slowdown(plan.groups, answers=not self.batches and plan.groups[0].batch > 1)
            if former is not None:
                self.slowdown.take_over(former)
            self._planned = plan.groups[0]
            self.min_replicas = self.max_replicas = sum(group.replicas for group in plan.groups)
            if plan.tokens is not None and not self.batches:
                self._scale = Scale(plan.tokens)
                for instance in self._queueing():
                    self._scale.put(instance)

    def _queueing(self) -> list[Instance]:
        """Tasks that wait in the queue, in no order."""
        return [entry[2] for entry in self._queue if entry[2].pooled]

    def resize(self) -> None:
        """The scaling of its stage has changed."""
        self.min_replicas = self.stage.scaling.min_replicas
        self.max_replicas = self.stage.scaling.max_replicas or self._default_replicas
        self._own = (self.min_replicas, self.max_replicas)

    def enqueue(self, instance: Instance, deadline: float) -> None:
        """A task is ready. `deadline` 0 = none."""
        instance.turn = 0
        self.put_back(instance, deadline)

    def put_back(self, instance: Instance, deadline: float) -> None:
        """A task is ready again that its container has not begun with: it has its old place in the queue.

        One that was handed on by another container never had a place.
        """
        if not instance.turn:
            self._sequence += 1
            instance.turn = self._sequence
        self.queued += 1
        instance.pooled = True
        self._weigh(instance)
        heapq.heappush(self._queue, (deadline or math.inf, instance.turn, instance))

    def holds(self, instance: Instance) -> bool:
        """Whether a task waits or runs here."""
        if instance.pooled:
            return True
        container = self.containers.get(instance.container)
        return container is not None and container.find(instance.task) is instance

    def withdraw(self, instance: Instance) -> None:
        """A queued task will not run after all; its entry is skipped when its turn comes."""
        if instance.pooled:
            instance.pooled = False
            self.queued -= 1
            self._lift(instance)

    def _weigh(self, instance: Instance) -> None:
        if self._scale is not None:
            self._scale.put(instance)

    def _lift(self, instance: Instance) -> None:
        if self._scale is not None:
            self._scale.remove(instance)

    def pull(self, instance: Instance) -> None:
        """A queued task has to wait for something else first, and will be queued anew."""
        self.withdraw(instance)
        self._queue = [entry for entry in self._queue if entry[2] is not instance]
        heapq.heapify(self._queue)

    @property
    def due(self) -> float:
        """Deadline of the most urgent task that waits; inf without one."""
        queue = self._queue
        while queue and not queue[0][2].pooled:
            heapq.heappop(queue)
        return queue[0][0] if queue else math.inf

    def take(self, now: float) -> tuple[Instance, Container] | None:
        """The next task and the container for it, or None if either is lacking."""
        queue, free = self._queue, self._free
        while queue and not queue[0][2].pooled:
            heapq.heappop(queue)
        if not queue:
            return None
        while free and not self._has_place(free[-1]):
            free.pop()
        container = self._next_of(free) if free else self._soonest(now)
        if container is None:
            return None
        instance = heapq.heappop(queue)[2]
        instance.pooled = False
        self.queued -= 1
        self._lift(instance)
        return instance, container

    def _soonest(self, now: float) -> Container | None:
        """The container that may get a task ahead and has the fewest."""
        if not self.ahead:
            return None
        best = None
        fewest = self.concurrency + self.ahead
        for container in self.containers.values():
            count = len(container.tasks)
            if container.pressed is not None or container.stuck in container.tasks:
                continue
            if count < fewest and self._moves(container, now):
                best, fewest = container, count
        return best

    @staticmethod
    def _moves(container: Container, now: float) -> bool:
        return container.phase is ContainerPhase.READY and now - container.moved <= PATIENCE_S

    def is_moving(self, now: float) -> bool:
        """Whether any container has ended a task lately."""
        return any(self._moves(container, now) for container in self.containers.values())

    def standing(self, now: float) -> list[Container]:
        """Containers that have had a task for longer."""
        ready = (c for c in self.containers.values() if c.phase is ContainerPhase.READY)
        return [c for c in ready if not self._moves(c, now)]

    def seat(self, container: Container, instance: Instance, now: float) -> None:
        """The container has the task from now on."""
        tasks = container.tasks
        count = len(tasks)
        tasks[instance.task] = instance
        if not count:
            container.moved = now
        elif count >= self.concurrency and not self.batches:
            self.beyond += 1

    def unseat(self, container: Container, task: int, now: float) -> Instance | None:
        """The container does not have the task any more; None if it had not."""
        tasks = container.tasks
        if not self.batches and len(tasks) > self.concurrency and task in tasks:
            self.beyond -= 1
        if task in container.sending:
            return container.sending.pop(task)
        container.moved = now
        return tasks.pop(task, None)

    def _tasks_to_come(self, container: Container) -> int:
        """How many tasks it could take if its places were not held."""
        return max(0, self.concurrency - len(container.tasks))

    def vacate(self, container: Container, task: int, now: float) -> Instance | None:
        """The task takes no place any more, but is not over: its outputs are on their way. None if it had none."""
        if task not in container.tasks:
            return None
        instance = self.unseat(container, task, now)
        assert instance is not None
        container.sending[task] = instance
        return instance

    def press(self, container: Container, hold: Hold, until: float) -> None:
        """Its places are held from now on."""
        container.pressed, container.pressed_until = hold, until
        self.pressed[container.number] = container

    def relieve(self, container: Container) -> None:
        """They are free again, as far as they are."""
        container.pressed = None
        if self.pressed.pop(container.number, None) is not None:
            self.offer(container)

    @property
    def may_copy_on(self) -> bool:
        """Whether a task may give up its place while its outputs are still being copied."""
        return self.concurrency == 1 and not (self.batches or self.is_far)

    @property
    def backlog(self) -> int:
        """Tasks that wait, in the queue or in containers whose places are taken."""
        return self.queued + self.beyond

    @property
    def load(self) -> float:
        """`backlog` as so many tasks of the usual weight: by tokens, where a plan says what those take."""
        return float(self.backlog) if self._scale is None else self.beyond + self._scale.total

    @property
    def running(self) -> int:
        """Tasks that containers have and that don't wait there."""
        return sum(len(container.tasks) for container in self.containers.values()) - self.beyond

    def stalled(self, now: float) -> list[Instance]:
        """Tasks ahead in containers that do not move and that others could run at once, the longest waiting first."""
        places = self._free_places() - self.queued
        if places <= 0:
            return []
        waiting = [i for c in self.standing(now) for i in self.unbegun(c)]
        return sorted(waiting, key=lambda instance: instance.turn)[:places]

    def _free_places(self) -> int:
        ready = (c for c in self.containers.values() if c.phase is ContainerPhase.READY and c.pressed is None)
        return sum(max(0, self.concurrency - len(c.tasks)) for c in ready)

    def _unmet(self, now: float) -> int:
        """How many waiting tasks call for more containers, those that are starting not counted."""
        backlog = self.backlog
        if self.beyond:
            backlog -= self._free_places()  # what is ahead could have been run there
        if not self.pressed:
            return backlog
        held = [c for c in self.pressed.values() if c.phase is ContainerPhase.READY]
        soon = [c.pressed_until - now for c in held for _ in range(self._tasks_to_come(c))]
        shared = any(c.pressed is not None and c.pressed.shared for c in held)
        unproven = self.size - sum(1 for c in self.containers.values() if c.has_sent)
        return lacking(backlog, soon, self.start_s, shared=shared, unproven=unproven)

    def unbegun(self, container: Container) -> list[Instance]:
        """Tasks that the container has perhaps not begun with, and was not asked to give back."""
        behind = list(container.tasks.values())[self.concurrency :]
        return [instance for instance in behind if instance.ahead and not instance.recalled]

    def spare(self) -> Container | None:
        """A container with a free place that nobody waits for."""
        free = self._free
        while free and not self._has_place(free[-1]):
            free.pop()
        return self._next_of(free) if free and not self.backlog and not self.closing else None

    def _next_of(self, free: list[Container]) -> Container:
        """Who gets the next task: the most recently used; under a plan, which counts on an even load and keeps all
        containers, whoever has the fewest of those that take several at a time."""
        if self.slowdown is None or self.concurrency == 1:
            return free[-1]
        found = free[-1]
        for container in self.containers.values():
            if len(container.tasks) < len(found.tasks) and self._has_place(container):
                found = container
        return found

    def upcoming(self, count: int) -> list[Instance]:
        """The next task in the queue and some that are among the next."""
        return [entry[2] for entry in self._queue[:count] if entry[2].pooled]  # a heap: the first is the next

    def soonest_free(self) -> list[Container]:
        """The containers that will take what waits, in the order in which they are likely to."""
        known = self.containers.values()
        ready = sorted((c for c in known if c.phase is ContainerPhase.READY), key=lambda c: c.moved)
        return [*ready, *(c for c in known if c.phase is ContainerPhase.STARTING)]

    def give_up(self) -> list[Instance]:
        """All tasks that wait, in order; the queue is empty afterwards."""
        waiting = [entry[2] for entry in sorted(self._queue, key=lambda e: e[:2]) if entry[2].pooled]
        self._queue.clear()
        self.queued = 0
        for instance in waiting:
            instance.pooled = False
            self._lift(instance)
        return waiting

    def _has_place(self, container: Container) -> bool:
        ready = container.phase is ContainerPhase.READY and container.pressed is None
        return ready and len(container.tasks) < self.concurrency

    def offer(self, container: Container) -> None:
        """The container has a free place (again): it is the most recently used, so the next to get work."""
        if container.phase is ContainerPhase.READY and (not self._free or self._free[-1] is not container):
            self._free.append(container)

    def add(self, container: Container) -> None:
        """A container is being started."""
        self.containers[container.number] = container
        self.starting += 1
        self.size += 1

    def ready(self, container: Container) -> None:
        """It said Hello."""
        if container.phase is ContainerPhase.STARTING:
            self._started(container)
            container.phase = ContainerPhase.READY
        self.failed_starts = 0
        self.offer(container)

    def drain(self, container: Container) -> None:
        """It gets no more tasks: one that it can't stop blocks a place in it for ever."""
        if container.phase is ContainerPhase.READY:
            self._lose(container)
            container.phase = ContainerPhase.DRAINING

    def leave(self, container: Container) -> None:
        """It was told to stop."""
        if container.phase is ContainerPhase.STARTING:
            self._started(container)
        if container.phase in (ContainerPhase.STARTING, ContainerPhase.READY):
            self._lose(container)
        container.phase = ContainerPhase.LEAVING

    def _started(self, container: Container) -> None:
        self.starting -= 1
        if container.start_limit is not None:
            container.start_limit.cancel()
            container.start_limit = None

    def _lose(self, container: Container) -> None:
        """It is of no use for further tasks."""
        self.size -= 1

    def remove(self, container: Container) -> None:
        """It is gone."""
        self.leave(container)
        self.containers.pop(container.number, None)
        self.pressed.pop(container.number, None)
        self._free = [c for c in self._free if c is not container]

    @property
    def idle(self) -> list[Container]:
        """Ready containers without a task, longest idle first."""
        found = [c for c in self.containers.values() if c.phase is ContainerPhase.READY and c.is_idle]
        return sorted(found, key=lambda c: c.idle_since)

    def wanted(self, now: float) -> int:
        """How many containers to start now: enough for the queue and for the minimum, within the maximum."""
        if self.closing or now < self.blocked_until:
            return 0
        size = self.size
        if size >= self.max_replicas:
            return 0
        short = max(0, self._unmet(now) - self.starting * self.concurrency)
        for_queue = -(-short // self.concurrency)
        return max(0, min(max(for_queue, self.min_replicas - size), self.max_replicas - size))

    def surplus(self) -> int:
        """How many idle containers may leave."""
        return self.size - (0 if self.closing else max(self.min_replicas, self.warm))

    def dispensable(self) -> int:
        """How many idle containers may leave if others need the room."""
        return self.size - (0 if self.closing else self.min_replicas)

    def ran(self, seconds: float, container: Container | None = None, tasks: int = 1) -> None:
        """The function took so long in this container, for so many tasks at once."""
        self.run_s += RUN_WEIGHT * (seconds - self.run_s) if self.run_s else seconds
        if self.slowdown is not None and container is not None and not self._waits:
            group = self._group_of(container)
            if group is not None:
                self.slowdown.ran(group, tasks, seconds)
        if self.may_run_ahead:
            self.ahead = depth(self.ahead, self.run_s)

    def _group_of(self, container: Container) -> GroupPlan | None:
        """What the plan says of this container."""
        return self._planned

    @property
    def will_move(self) -> bool:
        """Whether its queue waits for time alone to pass."""
        return False

    def check_integrity(self, running: Callable[[Instance], bool]) -> None:
        """The counters agree with what they count."""
        assert self.queued == sum(1 for _, _, i in self._queue if i.pooled), "queue count"
        self._check_sizes()
        assert self.pressed == {n: c for n, c in self.containers.items() if c.pressed is not None}, "held places"
        beyond = sum(max(0, len(container.tasks) - self.concurrency) for container in self.containers.values())
        assert self.beyond == beyond, "count of tasks ahead"
        for container in self.containers.values():
            assert len(container.tasks) <= self.concurrency + MOST, "too many tasks in a container"
            for instance in (*container.tasks.values(), *container.sending.values()):
                assert running(instance), "a container runs a task that isn't running"
                assert instance.container == container.number
        assert all(i.phase is Phase.QUEUED for _, _, i in self._queue if i.pooled)

    def _check_sizes(self) -> None:
        if self._scale is not None:
            self._scale.check_integrity(self.queued)
        phases = [container.phase for container in self.containers.values()]
        assert self.starting == phases.count(ContainerPhase.STARTING)
        assert self.size == self.starting + phases.count(ContainerPhase.READY)
