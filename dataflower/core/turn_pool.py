"""The tasks and containers of a stage that takes turns with others on a device (`core.devices`)."""

from __future__ import annotations

import math
from collections.abc import Callable

from dataflower.core.container import Container
from dataflower.core.device.turns import Turns
from dataflower.core.instance import Instance, Phase
from dataflower.core.pool import Pool
from dataflower.spec.workflow import Stage


class TurnPool(Pool):
    """A `Pool` whose tasks wait in the `turns` of their device; nobody else gives them out."""

    def __init__(self, key: str, stage: Stage, default_replicas: int, turns: Turns[Instance], name: str) -> None:
        """`name`: under which `turns` know it, and nothing else."""
        super().__init__(key, stage, default_replicas)
        self.name = name
        self.may_run_ahead = False
        self._turns = turns
        self._waiting: dict[Instance, float] = {}

    @property
    def may_copy_on(self) -> bool:
        """A place here is nobody's before its turn."""
        return False

    def put_back(self, instance: Instance, deadline: float) -> None:  # noqa: D102 - as in the base
        self.queued += 1
        instance.pooled = True
        self._waiting[instance] = deadline or math.inf
        self._weigh(instance)
        self._turns.add(self.name, instance, instance.trace.queued if instance.trace is not None else 0.0)

    def withdraw(self, instance: Instance) -> None:
        """A queued task will not run after all."""
        if self.chosen(instance):
            self._turns.withdraw(self.name, instance)

    def chosen(self, instance: Instance) -> bool:
        """Its turn has come: it does not wait any more. False if it did not."""
        if self._waiting.pop(instance, None) is None:
            return False
        instance.pooled = False
        self.queued -= 1
        self._lift(instance)
        return True

    def _queueing(self) -> list[Instance]:
        return list(self._waiting)

    @property
    def due(self) -> float:  # noqa: D102 - as in the base
        return min(self._waiting.values(), default=math.inf)

    def take(self, now: float) -> None:
        """Nothing: whose turn it is says the device."""

    def spare(self) -> None:
        """Nothing: a place here is nobody's before its turn."""

    def give_up(self) -> list[Instance]:  # noqa: D102 - as in the base
        waiting = sorted(self._waiting, key=lambda i: (self._waiting[i], i.turn))
        for instance in waiting:
            self.withdraw(instance)
        return waiting

    def roomiest(self) -> Container | None:
        """The container with the most free places, the most recently started among equals; None if there is none."""
        ready = [c for c in self.containers.values() if self._has_place(c)]
        return max(ready, key=lambda c: (-len(c.tasks), c.number), default=None)

    def room(self) -> int:
        """How many tasks it could take at once."""
        container = self.roomiest()
        return 0 if container is None else self.concurrency - len(container.tasks)

    def check_integrity(self, running: Callable[[Instance], bool]) -> None:
        """The counters agree with what they count."""
        assert self.queued == len(self._waiting) == self._turns.waiting(self.name), "queue count"
        assert not self.beyond, "a task was given ahead of its turn"
        self._check_sizes()
        for container in self.containers.values():
            assert len(container.tasks) <= self.concurrency, "too many tasks in a container"
            for instance in container.tasks.values():
                assert running(instance), "a container runs a task that isn't running"
                assert instance.container == container.number
        assert all(i.phase is Phase.QUEUED and i.pooled for i in self._waiting)
