"""The containers of a stage whose tasks run in batches: who collects, when a batch leaves, and with whom.

A *lane* is a queue from which one or several groups of containers take their batches. Without a plan there is one
lane and one group. A plan with ranked groups (TC, after Harpagon) has one lane too: the best ranked group with a free
container collects, the others get what comes while all of its containers are busy. Otherwise (GROUP) each group has
a lane of its own, and tasks are dealt out in proportion to the groups' rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from dataflower.core.batching import GRACE_S, CostError, Shelf, Sorter, Waiting
from dataflower.core.container import Container, ContainerPhase
from dataflower.core.instance import Instance, Phase
from dataflower.core.plan import GroupPlan, StageDispatch
from dataflower.core.pool import Pool
from dataflower.core.program import StageProgram
from dataflower.core.timers import Timer
from dataflower.core.turnstile import Turnstile, Underway
from dataflower.spec.expression import Expression, compile_expression
from dataflower.spec.workflow import Batch as BatchSpec

CALM = 0.5
"""Share of the time that a group may be busy with small batches before it waits for larger ones."""


class Batch:
    """Tasks that were given to a container together, and are still there."""

    __slots__ = ("last", "members", "number")

    def __init__(self, number: int, members: dict[int, Instance]) -> None:
        self.number = number
        self.members = members
        self.last = number
        """The last of its tasks, which are numbered one after the other from `number` + 1."""

    @property
    def is_doomed(self) -> bool:
        """Whether every task of it was told to stop."""
        return all(instance.is_doomed for instance in self.members.values())


@dataclass(slots=True, eq=False)
class _Group:
    """Containers that run batches of one size. `free`: those with a free place, the most recently used last.

    `enough`: tasks that are worth a run while a container is free; nobody waits for more.
    """

    plan: GroupPlan
    enough: int
    containers: int = 0
    free: dict[int, Container] = field(default_factory=dict)


USUAL = 64.0
"""Tasks over which their usual weight is averaged, about."""


@dataclass(slots=True, eq=False)
class _Lane:
    """A queue and the groups that take from it, best ranked first. `owed`: how far it is behind its share."""

    groups: list[_Group]
    shelves: dict[Hashable, Shelf] = field(default_factory=dict)
    rate: float = 1.0
    owed: float = 0.0


class BatchPool(Pool):
    """A `Pool` that gives whole batches to containers."""

    batches = True

    def __init__(self, key: str, program: StageProgram, default_replicas: int) -> None:
        super().__init__(key, program.stage, default_replicas)
        spec = program.stage.batch or BatchSpec()
        self._spec = spec
        self._max_cost = math.inf if spec.max_cost is None else spec.max_cost
        self._expression: Expression | None = None if spec.cost is None else compile_expression(spec.cost)
        names = tuple((number, name) for number, name, _ in program.data_inputs)
        self._sorter = Sorter(names, program.stage.input_ports, same_shape=spec.same_shape)
        self._waiting: dict[Instance, Waiting] = {}
        self._weight = 0.0
        """Of the tasks that wait, together."""
        self._usual = 0.0
        """Weight of a task, on the average of late; 0 before the first."""
        self._of: dict[int, _Group] = {}
        self._alone = 0
        self.together = self.concurrency * spec.max_size
        self.plan: StageDispatch | None = None
        self.alarm = math.inf
        """When the queue is to be looked at again although nothing happens."""
        self.timer: Timer | None = None
        """The one that will see to that, kept by whoever has the timers."""
        self.turnstile: Turnstile | None = None
        self._groups = [_Group(self._unplanned(), spec.max_size)]
        self._lanes = [_Lane(self._groups)]

    def _unplanned(self) -> GroupPlan:
        return GroupPlan(self._spec.max_size, self.max_replicas, 0.0, 1.0)

    def follow(self, plan: StageDispatch | None) -> None:
        """Run as a plan says from now on (None: as the workflow says). Containers and waiting tasks are kept."""
        waiting = [
            (w, w.instance.attempt > 0 if w.shelf is None else w.shelf.limit == 1) for w in self._waiting.values()
        ]
        self.plan = plan
        self.turnstile = None
        super().follow(plan)
        groups = (self._unplanned(),) if plan is None else plan.groups
        self._groups = [_Group(group, _enough(group, plan)) for group in groups]
        if plan is None or plan.ranked:
            self._lanes = [_Lane(self._groups)]
        else:
            self._lanes = [_Lane([group], rate=group.plan.rate) for group in self._groups]
        for container in self.containers.values():
            if container.phase in (ContainerPhase.STARTING, ContainerPhase.READY):
                self._join(container)
        for entry, alone in sorted(waiting, key=lambda pair: (pair[0].due, pair[0].since)):
            self._shelve(entry, alone=alone)

    def let_in_by_turn(self, before: Sequence[Pool]) -> None:
        """From now on tasks wait for older ones under way in those stages, as the plan says."""
        assert self.plan is not None, "only a plan asks for it"
        kept = []
        for pool in before:
            if pool.underway is None:
                pool.underway = Underway(pool.holds)
            pool.letting.append(self)
            kept.append(pool.underway)
        self.turnstile = Turnstile(kept, self.plan.from_s)

    @property
    def due(self) -> float:
        """Deadline of the most urgent task that waits; inf without one."""
        shelves = (shelf for lane in self._lanes for shelf in lane.shelves.values() if shelf.count)
        early = (
            (entry.due for entry in self._waiting.values() if entry.shelf is None) if self.turnstile is not None else ()
        )
        return min((*(shelf.head.due for shelf in shelves), *early), default=math.inf)

    # --- tasks -----------------------------------------------------------------------------------------------

    def enlist(self, instance: Instance, deadline: float, arrived: float, now: float) -> None:
        """A task is ready. `deadline` (0 = none) and `arrived` of its invocation. Raises CostError."""
        cost = 1.0 if self._expression is None else self._sorter.cost(instance, self._expression)
        due = deadline or math.inf
        if self.plan is None:
            leave_by = now + self._spec.wait_ms / 1000 if self._spec.wait_ms else now
            leave_by = min(leave_by, due - self.run_s) if deadline else leave_by
        else:
            leave_by = min(arrived + self.plan.until_s, due)
            due = min(due, arrived + self.plan.until_s)
        entry = Waiting(instance, due, leave_by, now, cost)
        self._waiting[instance] = entry
        self._weight += cost
        self._usual = cost if self._usual == 0.0 else self._usual + (cost - self._usual) / USUAL
        if self.turnstile is None:
            self._shelve(entry, alone=instance.attempt > 0)
        else:
            self.turnstile.add(entry, arrived)
        self.queued += 1
        instance.pooled = True

    def _let_in(self, turnstile: Turnstile, now: float) -> None:
        for entry in turnstile.let_in(now):
            if self._waiting.get(entry.instance) is entry:  # it was not withdrawn
                self._shelve(entry, alone=entry.instance.attempt > 0)
        self.alarm = turnstile.next_at

    def _shelve(self, entry: Waiting, *, alone: bool) -> None:
        lane = self._deal()
        key: Hashable
        if alone:
            self._alone += 1
            key = ("alone", self._alone)
        else:
            key = self._sorter.key(entry.instance)
        shelf = lane.shelves.get(key)
        if shelf is None:
            shelf = lane.shelves[key] = Shelf(key, 1 if alone else self._spec.max_size)
        shelf.add(entry)

    def _deal(self) -> _Lane:
        """The lane whose turn it is: each gets its share of the tasks, as evenly as whole tasks can be."""
        lanes = self._lanes
        if len(lanes) == 1:
            return lanes[0]
        total = sum(lane.rate for lane in lanes)
        for lane in lanes:
            lane.owed += lane.rate / total
        chosen = max(lanes, key=lambda lane: lane.owed)
        chosen.owed -= 1.0
        return chosen

    def withdraw(self, instance: Instance) -> None:
        """A queued task will not run after all."""
        entry = self._waiting.pop(instance, None)
        if entry is None:
            return
        instance.pooled = False
        self.queued -= 1
        self._lighten(entry.cost)
        if entry.shelf is not None:
            entry.shelf.discard(entry)

    def _lighten(self, cost: float) -> None:
        """So much waits no more; `queued` knows already."""
        self._weight = self._weight - cost if self.queued else 0.0  # nothing is left of rounding

    @property
    def load(self) -> float:
        """See `Pool.load`: by the `cost` of tasks, where the workflow gives one."""
        if self._expression is None or self._usual <= 0.0:
            return float(self.backlog)
        return self.beyond + self._weight / self._usual

    def upcoming(self, count: int) -> list[Instance]:
        """The tasks of the next batches, about."""
        return list(islice(self._waiting, count * self._spec.max_size))

    def give_up(self) -> list[Instance]:
        """All tasks that wait, in order; the queue is empty afterwards."""
        entries = sorted(self._waiting.values(), key=lambda w: (w.due, w.since))
        for entry in entries:
            self.withdraw(entry.instance)
        for lane in self._lanes:
            lane.shelves.clear()
        if self.turnstile is not None:
            self.turnstile.clear()
        return [entry.instance for entry in entries]

    def take_batch(self, now: float) -> tuple[list[Instance], Container] | None:
        """The next batch that is due and the container for it; else None, and `alarm` says when to ask again.

        The container keeps its place: `occupy` takes it.
        """
        best: tuple[Shelf, _Group] | None = None
        self.alarm = math.inf
        if self.turnstile is not None:
            self._let_in(self.turnstile, now)
        idle: _Group | None = None
        stuck: list[_Lane] = []
        for lane in self._lanes:
            group = next((g for g in lane.groups if self._has_free(g)), None)
            if group is None:
                stuck.append(lane)
            elif not lane.shelves:
                idle = idle or group
            else:
                best = self._most_urgent(lane, group, now, best)
        if best is None and idle is not None:
            for lane in stuck:  # what should have left and finds no container of its own
                best = self._most_urgent(lane, idle, now, best)
        if best is None:
            return None
        shelf, group = best
        entries = shelf.take(group.plan.batch, self._max_cost)
        for entry in entries:
            del self._waiting[entry.instance]
            entry.instance.pooled = False
        self.queued -= len(entries)
        self._lighten(sum([entry.cost for entry in entries]))
        return [entry.instance for entry in entries], next(reversed(group.free.values()))

    def _most_urgent(
        self, lane: _Lane, group: _Group, now: float, best: tuple[Shelf, _Group] | None
    ) -> tuple[Shelf, _Group] | None:
        """The shelf of a lane that is due, if it is more urgent than `best`; `alarm` learns of those that are not."""
        own = group in lane.groups
        for key, shelf in tuple(lane.shelves.items()):
            if not shelf.count:
                del lane.shelves[key]
                continue
            at = self._leaves_at(shelf, group if own else lane.groups[0], overdue=not own)
            if at > now:
                self.alarm = min(self.alarm, at)
            elif best is None or shelf.head.due < best[0].head.due:
                best = (shelf, group)
        return best

    def _leaves_at(self, shelf: Shelf, group: _Group, *, overdue: bool) -> float:
        """When the shelf's next batch leaves if nobody else comes; -inf if it need not wait for anybody.

        `overdue`: a full batch too waits for a container of its own as long as it can.
        """
        if not overdue and shelf.is_full(group.enough, self._max_cost):
            return -math.inf
        head = shelf.head
        at = head.leave_by
        plan = self.plan
        if plan is not None:
            slowdown = self.slowdown
            longer = 1.0 if slowdown is None else slowdown.counted  # so that it still ends when the plan says
            at += GRACE_S - group.plan.duration_s * longer
            if plan.dummy_rate:
                filled_s = max((group.plan.batch - shelf.count) / plan.dummy_rate, (group.plan.batch - 1) / plan.rate)
                at = min(at, head.since + filled_s)
        return at

    # --- containers ------------------------------------------------------------------------------------------

    def _has_free(self, group: _Group) -> bool:
        free = group.free
        while free:
            container = next(reversed(free.values()))
            if self._has_place(container):
                return True
            del free[container.number]
        return False

    def _has_place(self, container: Container) -> bool:
        ready = container.phase is ContainerPhase.READY and container.pressed is None
        return ready and len(container.batches) < self.concurrency

    def _tasks_to_come(self, container: Container) -> int:
        return max(0, self.concurrency - len(container.batches)) * self._spec.max_size

    def occupy(self, container: Container, batch: Batch) -> None:
        """The container runs a batch from now on."""
        container.batches[batch.number] = batch

    def offer(self, container: Container) -> None:
        """The container has a free place (again)."""
        if self._has_place(container):
            free = self._of[container.number].free
            free.pop(container.number, None)
            free[container.number] = container

    def add(self, container: Container) -> None:
        """A container is being started: it belongs to the best ranked group that lacks one."""
        super().add(container)
        container.hardware = self._lacking(self._groups).plan.hardware
        self._join(container)

    @staticmethod
    def _lacking(groups: list[_Group]) -> _Group:
        return next((g for g in groups if g.containers < g.plan.replicas), groups[-1])

    def _join(self, container: Container) -> None:
        """Put it into a group, one for its kind of device if there is any."""
        alike = [g for g in self._groups if g.plan.hardware in ("", container.hardware)]
        group = self._lacking(alike or self._groups)
        group.containers += 1
        self._of[container.number] = group
        self.offer(container)

    def _lose(self, container: Container) -> None:
        super()._lose(container)
        group = self._of.pop(container.number)
        group.containers -= 1
        group.free.pop(container.number, None)

    def _group_of(self, container: Container) -> GroupPlan | None:
        group = self._of.get(container.number)
        return None if group is None or self.plan is None else group.plan

    def wanted(self, now: float) -> int:
        """How many containers to start now: what a plan says; else enough for the queue, unless one is free."""
        if self.closing or now < self.blocked_until:
            return 0
        size = self.size
        short = 0
        if self.plan is None and not any(self._has_free(group) for group in self._groups):
            places = self.concurrency * self._spec.max_size
            short = -(-max(0, self._unmet(now) - self.starting * places) // places)
        return max(0, min(max(short, self.min_replicas - size), self.max_replicas - size))

    @property
    def will_move(self) -> bool:
        """Whether the queue waits for time alone to pass."""
        return self.queued > 0 and self.alarm < math.inf

    def check_integrity(self, running: Callable[[Instance], bool]) -> None:
        """The counters agree with what they count."""
        shelved = sum(shelf.count for lane in self._lanes for shelf in lane.shelves.values())
        early = sum(entry.shelf is None for entry in self._waiting.values())
        assert self.queued == shelved + early == len(self._waiting), "queue count"
        assert not early or self.turnstile is not None, "a task waits nowhere"
        self._check_sizes()
        assert sum(group.containers for group in self._groups) == self.size == len(self._of), "group sizes"
        for container in self.containers.values():
            assert len(container.batches) <= self.concurrency, "too many batches in a container"
            members = {task for batch in container.batches.values() for task in batch.members}
            assert members == set(container.tasks), "batches and tasks of a container"
            for instance in container.tasks.values():
                assert running(instance), "a container runs a task that isn't running"
                assert instance.container == container.number
        assert all(i.phase is Phase.QUEUED and i.pooled for i in self._waiting)


def _enough(group: GroupPlan, plan: StageDispatch | None) -> int:
    """How many tasks a batch needs so that the containers stay calm even if each run takes as long as a full one.

    While all containers are busy tasks gather as ever. Where groups collect in turn, or dummies are counted on, the
    others reckon with full batches.
    """
    if plan is None or not plan.eager or plan.ranked or plan.dummy_rate:
        return group.batch
    needed = math.ceil(group.rate * group.duration_s / (group.replicas * CALM) - 1e-9)
    return max(1, min(group.batch, needed))


__all__ = ["Batch", "BatchPool", "CostError"]
