"""A container as the core knows it: its phase, its tasks, what it makes and keeps."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from dataflower.core.instance import Instance
from dataflower.core.pressure import Hold
from dataflower.core.timers import Timer
from dataflower.wire import ArenaMade

if TYPE_CHECKING:
    from dataflower.core.dispatch import Batch
    from dataflower.core.pool import Pool


class ContainerPhase(enum.Enum):
    """Of a container. DRAINING: it takes no more tasks and stops after its last one. LEAVING: told to stop."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"


class Container:
    """One container."""

    __slots__ = (
        "arenas",
        "batches",
        "hardware",
        "has_sent",
        "held",
        "idle_since",
        "is_disbelieved",
        "keep_alive_set",
        "moved",
        "number",
        "phase",
        "pool",
        "pressed",
        "pressed_until",
        "ready_at",
        "released",
        "relief",
        "sending",
        "start",
        "start_limit",
        "stuck",
        "tasks",
    )

    def __init__(self, number: int, pool: Pool) -> None:
        self.number = number
        self.pool = pool
        self.phase = ContainerPhase.STARTING
        self.tasks: dict[int, Instance] = {}
        """In the order in which they were given to it."""
        self.sending: dict[int, Instance] = {}
        """Tasks whose function is over and whose outputs are on their way from another host: they take no place."""
        self.pressed: Hold | None = None
        """Set while its places are held because it has so much to send (`core.pressure`)."""
        self.pressed_until = 0.0
        self.has_sent = False
        """Whether it is known how fast its outputs come to other hosts."""
        self.relief: Timer | None = None
        """Ends that."""
        self.moved = 0.0
        """When it last ended a task, or got one after it had none."""
        self.stuck = 0
        """The task that waits for room in its memory, if that is not over."""
        self.arenas: list[int] = []
        self.batches: dict[int, Batch] = {}
        """By number; none where the function takes one task at a time."""
        self.held: dict[tuple[int, int], int] = {}
        """Slots of ended tasks' inputs that its user code still keeps a view of, and how often."""
        self.hardware = ""
        self.idle_since = math.inf
        self.ready_at = math.inf
        self.start: dict[str, float] = {}
        """Phases of its start, in seconds."""
        self.keep_alive_set = False
        self.is_disbelieved = False
        """Whether it has broken the protocol: what it says until it is dead does not count."""
        self.start_limit: Timer | None = None
        """Goes off if it is not ready by then."""
        self.released = 0
        """Slots of its arenas that it was told nobody reads any more."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing that it was given is still to come from it."""
        return not self.tasks and not self.sending

    def find(self, task: int) -> Instance | None:
        """A task that it has."""
        return self.tasks.get(task) or self.sending.get(task)

    def made(self, message: ArenaMade) -> None:
        """It has a new arena."""
        self.arenas.append(message.arena)
