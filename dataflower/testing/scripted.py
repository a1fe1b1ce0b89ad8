"""All containers and callers of a host, played against a core without processes, one event at a time.

`Script` keeps what every party would know, offers the moves that any of them could make next, and picks one. After each
event it checks that the commands keep to the protocol, and the core to its own invariants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.events import Slot
from dataflower.core.host import CoreStatistics
from dataflower.errors import Failure
from dataflower.testing.behaviour import Behaviour
from dataflower.testing.clock import FakeClock
from dataflower.testing.payloads import slots_of
from dataflower.testing.scripted_caller import ScriptedCaller
from dataflower.testing.scripted_container import Phase, ScriptedContainer
from dataflower.testing.slots import FakeSlots

Move = Callable[[], events.Event]
"""Makes something happen outside the core and returns the event that tells it."""

STEP_S = 0.0001
"""How long everything takes."""


class Core(Protocol):
    """What the script needs of `core.host.HostCore`."""

    def handle(self, event: events.Event, now: float) -> list[commands.Command]:
        """What to do about an event."""
        ...

    def check_integrity(self) -> None:
        """AssertionError if an invariant is broken."""
        ...

    def statistics(self) -> CoreStatistics:
        """Sizes of its books."""
        ...


class Script:
    """Plays a core's surroundings until nothing more can happen.

    `seed` picks the interleaving: 0 first come first served, 1 last come first served, others at random. `crashes`: so
    many containers die at a random moment. `impatient`: time may jump to the core's alarm while others could still
    move. `stubborn`: half of the containers don't let go of cancelled tasks. `far`: half of them are on another host.
    `losses`: so often a host dies at a random moment, the one that `places` of a workflow names, and all that it kept.
    """

    def __init__(
        self,
        core: Core,
        *,
        seed: int = 0,
        crashes: int = 0,
        impatient: bool = False,
        stubborn: bool = False,
        far: bool = False,
        losses: int = 0,
    ) -> None:
        self.core = core
        self.clock = FakeClock()
        self.slots = FakeSlots()
        self.containers: dict[int, ScriptedContainer] = {}
        self.callers: dict[str, ScriptedCaller] = {}
        self.wake_at = math.inf
        self.log: list[tuple[events.Event, float]] = []
        self.answers: list[list[commands.Command]] = []
        self.ran: list[tuple[str, str, wire.Tag, int]] = []
        self.crashed: list[str] = []
        self.most_containers = 0
        """How many there were at the same time."""
        self.largest_batch = 0
        self._behaviours: dict[str, Mapping[str, Behaviour]] = {}
        self._random = Random(seed)
        self._seed = seed
        self._crashes = crashes
        self._impatient = impatient
        self._stubborn = stubborn
        self._far = far
        self._losses = losses
        self._lent: set[str] = set()
        self._staying: set[int] = set()
        self.lost = 0
        """Slots that were lost while they were in use."""
        self._cancels: dict[str, tuple[int, Failure]] = {}

    # --- setting the scene ---

    def add_workflow(self, event: events.WorkflowAdded, behaviours: Mapping[str, Behaviour]) -> None:
        """Make a workflow known; its functions do what `behaviours` says."""
        self._behaviours[event.key] = behaviours
        self._lent.update(event.places)
        self.tell(event)

    def add_caller(self, caller: ScriptedCaller) -> None:
        """A caller whose invocation arrives when its turn comes."""
        self.callers[caller.invocation] = caller

    def cancel_at(self, invocation: str, step: int, failure: Failure) -> None:
        """The caller changes its mind after so many events."""
        self._cancels[invocation] = (step, failure)

    # --- playing ---

    def run(self, limit: int = 5000) -> None:
        """Play until all is quiet: no move left, no alarm set."""
        for _ in range(limit):
            event = self.next_event()
            if event is None:
                return
            self.tell(event)
        raise AssertionError(f"still busy after {limit} events")

    def next_event(self) -> events.Event | None:
        """Pick the next move and make it; None when nothing can happen any more."""
        for name, (step, failure) in list(self._cancels.items()):
            if len(self.log) >= step and self.callers[name].arrived:
                del self._cancels[name]
                return self.callers[name].cancel(failure)
        if self._crashes and self._random.random() < 0.04:
            victims = [c for c in self.containers.values() if c.phase is Phase.READY]
            if victims:
                self._crashes -= 1
                return self._crash(self._random.choice(victims))
        if self._losses and self._random.random() < (0.2 if self.slots.of(self._staying) else 0.02):
            victims = [c for c in self.containers.values() if c.stage.name in self._lent and c.phase is not Phase.GONE]
            if victims:
                self._losses -= 1
                return self._lose(victims)
        moves = self.moves()
        alarm = self.wake_at < math.inf
        if alarm and (not moves or (self._impatient and self._random.random() < 0.05)):
            self.clock.advance_to(self.wake_at)
            self.wake_at = math.inf
            return events.Woke()
        if not moves:
            stuck = [c.invocation for c in self.callers.values() if not c.finished]
            assert not stuck, f"nothing can happen any more, but {stuck} did not finish"
            return None
        if self._seed < 2:
            return moves[-self._seed]()
        return self._random.choice(moves)()

    def moves(self) -> list[Move]:
        """Everything that could happen next."""
        found: list[Move] = []
        for container in self.containers.values():
            found += container.moves(self._random)
        for caller in self.callers.values():
            found += caller.moves()
        return found

    def tell(self, event: events.Event) -> list[commands.Command]:
        """Give an event to the core and carry out what it answers."""
        if isinstance(event, events.ContainerExited):
            self.slots.owner_died(event.container)
        now = self.clock.advance(STEP_S)
        self.log.append((event, now))
        answer = self.core.handle(event, now)
        self.answers.append(answer)
        self._note_begun()
        for command in answer:
            self._do(command)
        self._note_begun()
        self.core.check_integrity()
        self._check_cancelled()
        return answer

    def _note_begun(self) -> None:
        for container in self.containers.values():
            for task in container.started:
                self.ran.append((task.invocation, container.stage.name, task.tag, task.attempt))
            container.started.clear()

    @property
    def relayed(self) -> int:
        """Tasks that got their inputs straight from another container."""
        return sum(container.relayed for container in self.containers.values())

    def check_quiet(self, *, warm: bool = False) -> None:
        """All is over: nothing runs, nothing is kept, neither here nor in the core's books, and no alarm is set.

        `warm`: but for containers that wait for the next invocation.
        """
        assert self.wake_at == math.inf, f"an alarm is set for {self.wake_at}"
        over = (Phase.GONE, Phase.READY) if warm else (Phase.GONE,)
        for container in self.containers.values():
            assert container.phase in over, f"container {container.number} is {container.phase.value} for ever"
        self.slots.check_idle()
        books = self.core.statistics()
        containers = 0 if warm else books.containers
        kept = (books.invocations, books.tasks, books.queued, containers, books.slots, books.timers)
        assert not any(kept), f"the core's books are not empty: {books}"

    def _lose(self, containers: list[ScriptedContainer]) -> events.Event:
        """A host dies: all its containers, and the bytes that nobody else has."""
        for container in containers:
            self.crashed.append(container.stage.name)
            self.tell(container.exit("host b is gone"))
        slots = self.slots.lose(self._staying)
        self.lost += len(slots)
        return events.MemoryLost(slots)

    def _crash(self, container: ScriptedContainer) -> events.Event:
        self.crashed.append(container.stage.name)
        return container.die("killed by signal 9", self._random)

    # --- carrying out commands ---

    def _do(self, command: commands.Command) -> None:
        match command:
            case commands.StartContainer(number, key, stage, stays=stays):
                if stays:
                    self._staying.add(number)
                assert number not in self.containers, f"container {number} started twice"
                assert not stage.is_switch, f"switch {stage.name} needs no container"
                behaviour = self._behaviours[key][stage.name]
                container = ScriptedContainer(number, stage, behaviour, self.slots, self.containers)
                container.stubborn = self._stubborn and self._random.random() < 0.5
                container.is_far = self._far and self._random.random() < 0.5
                self.containers[number] = container
                alive = sum(1 for other in self.containers.values() if other.phase is not Phase.GONE)
                self.most_containers = max(self.most_containers, alive)
            case commands.StopContainer(number):
                self.containers[number].stop()
            case commands.KillContainer(number, reason):
                self.containers[number].kill(reason)
            case commands.Tell(number, message):
                self._tell_container(number, message)
            case commands.EmitOutput(invocation, port, index, value):
                for slot in slots_of(value):
                    self.slots.check_readable(slot)
                self.callers[invocation].take_output(port, index, value)
            case commands.EndOutput(invocation, port, absent):
                self.callers[invocation].end_output(port, absent)
            case commands.TakeInput(invocation, port, items):
                self.callers[invocation].allow_input(port, items)
            case commands.ExpireOutputs(invocation):
                assert invocation in self.callers, "its caller goes on reading"
            case commands.FinishInvocation(invocation, failure, _):
                self.callers[invocation].finish(failure)
            case commands.DropArena(arena):
                for slot in self.slots.drop(arena):
                    self._check_unread(slot, f"arena {arena} dropped")
            case commands.WakeAt(time):
                self.wake_at = time

    def _tell_container(self, number: int, message: wire.ToContainer) -> None:
        if isinstance(message, wire.ReleaseSlots):
            for slot in message.slots:
                self.slots.release(number, slot)
                self._check_unread(slot, f"slot {slot} given back")
            if number == 0:
                return
        container = self.containers[number]
        assert container.phase is not Phase.GONE, f"{message} for container {number}, which is gone"
        started: tuple[wire.RunTask, ...] = ()
        if isinstance(message, wire.RunTask):
            started = (message,)
        elif isinstance(message, wire.RunBatch):
            started = message.tasks
            self.largest_batch = max(self.largest_batch, len(started))
        for task in started:
            caller = self.callers[task.invocation]
            assert not caller.finished, f"task of {task.invocation} starts after its end"
            assert task.deadline_s == 0 or task.deadline_s > self.clock.monotonic(), "task starts past its deadline"
        container.receive(message)

    def _check_unread(self, slot: Slot, what: str) -> None:
        for container in self.containers.values():
            assert slot not in container.reads(), f"{what} while container {container.number} reads it"
        for caller in self.callers.values():
            assert slot not in caller.reads(), f"{what} while output of {caller.invocation} is unread"

    def _check_cancelled(self) -> None:
        for container in self.containers.values():
            for task in container.tasks.values():
                over = self.callers[task.invocation].finished
                told = task.cancelled or container.phase in (Phase.LEAVING, Phase.KILLED)
                assert told or not over, f"{task.invocation} is over, but task {task.number} runs on"


def replay(core: Core, log: list[tuple[events.Event, float]]) -> list[list[commands.Command]]:
    """What another core answers to the same events."""
    return [core.handle(event, now) for event, now in log]
