"""Whose batch a shared device runs next: windows for each function, then the smallest margin to the deadline.

After ServerlessLoRA (EuroSys'26), section 4.2, reconstructed. Two layers: the requests of a function gather in a window
(`window`); batches that are closed are ordered by margin, which counts that M batches on the device slow each other
down by M: margin = objective - (wait of the oldest + M T(b)), M being those that run and this one.

The smallest margin first is the worst order once not everybody can be served in time: it spends the device on those who
are late already. So what can still be in time goes before what can't, a batch is no larger than its oldest request has
time for, and nothing that would be in time by itself is started beside others that would make it late. Who is
late takes what is left, oldest first, and after `STARVED` objectives goes before everybody.
"""

from __future__ import annotations

import enum
import math
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dataflower.core.device.window import Latency, Window, window

Item = TypeVar("Item", bound=Hashable)

STARVED = 10.0
"""A request that has waited for so many objectives goes first, however late it is."""
SLACK = 0.02
"""Share of an objective that a window leaves when it closes for want of time: clocks are late, and then fewer fit."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the device: its objective for the first token, how long batches take, and its window."""

    name: str
    slo_s: float
    latency: Latency
    window: Window


class Rank(enum.IntEnum):
    """Who goes before whom, whatever the margins."""

    STARVED = 0
    TIMELY = 1
    LATE = 2


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """Requests of a function that run together. `since`: when the oldest of them came; `margin_s` at its start."""

    function: str
    items: tuple[Item, ...]
    since: float
    margin_s: float = math.inf
    rank: Rank = Rank.TIMELY


def ordered(name: str, slo_s: float, latency: Latency | None, *, most: int, fitting: int = sys.maxsize) -> Function:
    """A function with the window that follows from its objective (`window.window`).

    `latency` None: not known yet. Then nobody waits, since nobody knows how long there is time for that.
    """
    if latency is None:
        return Function(name, slo_s, Latency(0.0, 0.0), Window(max(1, min(most, fitting)), 0.0))
    return Function(name, slo_s, latency, window(slo_s, latency, most=most, fitting=fitting))


@dataclass(slots=True)
class _Queue(Generic[Item]):
    function: Function
    items: deque[tuple[Item, float]] = field(default_factory=deque)


class Turns(Generic[Item]):
    """The requests that wait for one device. Pure: `add`, then `take` whenever something has changed or `wake` comes.

    `slots`: batches that run at a time. `patient`: hold requests back for the whole of their window even if the device
    is idle, as the paper does; otherwise an idle device takes what there is. `defer_s`: a batch with a larger margin
    does not join another that runs.
    """

    def __init__(self, slots: int = 1, *, patient: bool = False, defer_s: float = math.inf) -> None:
        self._slots = max(1, slots)
        self._patient = patient
        self._defer_s = defer_s
        self._queues: dict[str, _Queue[Item]] = {}
        self.running = 0
        """Batches that were taken and are not over."""

    def know(self, function: Function) -> None:
        """A function shares the device from now on, or its figures have changed."""
        queue = self._queues.get(function.name)
        if queue is None:
            self._queues[function.name] = _Queue(function)
        else:
            queue.function = function

    def known(self, name: str) -> Function:
        """What is known of a function. KeyError if nothing is."""
        return self._queues[name].function

    def forget(self, name: str) -> tuple[Item, ...]:
        """A function is gone; gives what still waited."""
        queue = self._queues.pop(name, None)
        return () if queue is None else tuple(item for item, _ in queue.items)

    def add(self, name: str, item: Item, since: float) -> None:
        """A request of a known function that came at `since`. KeyError if it is not known."""
        items = self._queues[name].items
        place = len(items)
        while place and items[place - 1][1] > since:  # it was given out before, and came back
            place -= 1
        items.insert(place, (item, since))

    def withdraw(self, name: str, item: Item) -> bool:
        """It is not wanted any more; False if it does not wait here."""
        queue = self._queues.get(name)
        found = None if queue is None else next((entry for entry in queue.items if entry[0] == item), None)
        if queue is None or found is None:
            return False
        queue.items.remove(found)
        return True

    def waiting(self, name: str) -> int:
        """Requests of a function that wait."""
        queue = self._queues.get(name)
        return 0 if queue is None else len(queue.items)

    def take(self, now: float, room: Callable[[str], int] = lambda _: sys.maxsize) -> Batch[Item] | None:
        """The batch to start now, if any; it runs until `over`.

        `room`: how many requests of a function could start now; 0 if its weights are not there, or its process is not
        ready.
        """
        if self.running >= self._slots:
            return None
        ready = list(self._closed(now, room))
        if not ready:
            return None
        best = min(ready, key=lambda b: (b.rank, b.margin_s, b.since))
        if self.running and best.margin_s > self._defer_s:
            return None
        queue = self._queues[best.function]
        if best.items[0] == queue.items[0][0] and best.items[-1] == queue.items[len(best.items) - 1][0]:
            for _ in best.items:
                queue.items.popleft()
        else:
            taken = set(best.items)
            queue.items = deque(entry for entry in queue.items if entry[0] not in taken)
        self.running += 1
        return best

    def over(self) -> None:
        """A batch that was taken is over."""
        assert self.running > 0, "no batch runs"
        self.running -= 1

    def wake(self, now: float) -> float:
        """When a window closes next that is still open; inf if none will by time alone."""
        closings = (self._closing(queue) for queue in self._queues.values() if queue.items)
        return min((at for at in closings if at > now), default=math.inf)

    def _closing(self, queue: _Queue[Item]) -> float:
        """When its window closes: at its end, or when the batch would be late beside those that run now."""
        function = queue.function
        taken = (self.running + 1) * function.latency.of(min(len(queue.items), function.window.size))
        last = (1 - SLACK) * function.slo_s - taken
        return queue.items[0][1] + max(0.0, min(function.window.wait_s, last))

    def _closed(self, now: float, room: Callable[[str], int]) -> Iterable[Batch[Item]]:
        idle = not self.running and not self._patient
        for queue in self._queues.values():
            if not queue.items:
                continue
            most = min(queue.function.window.size, room(queue.function.name))
            if most > 0 and (idle or len(queue.items) >= most or now >= self._closing(queue)):
                batch = self._chosen(queue, now, most)
                if batch is not None:
                    yield batch

    def _chosen(self, queue: _Queue[Item], now: float, most: int) -> Batch[Item] | None:
        """The next batch of a function; None if it had better wait for the end of one that runs."""
        function, together = queue.function, self.running + 1
        oldest = queue.items[0][1]
        if now - oldest > STARVED * function.slo_s:
            return self._judged(list(queue.items)[:most], function, now, Rank.STARVED)
        latest = now + function.latency.of(1) - function.slo_s - 1e-9
        timely = [entry for entry in queue.items if entry[1] >= latest] if oldest < latest else list(queue.items)
        if not timely:
            return self._judged(list(queue.items)[:most], function, now, Rank.LATE)
        fits = min(most, _largest(function, (function.slo_s - (now - timely[0][1])) / together))
        if fits:
            late = [entry for entry in queue.items if entry[1] < latest]
            return self._judged((timely + late)[:fits], function, now, Rank.TIMELY)
        return None if self.running else self._judged(timely[:most], function, now, Rank.TIMELY)

    def _judged(self, entries: list[tuple[Item, float]], function: Function, now: float, rank: Rank) -> Batch[Item]:
        taken = entries[: function.window.size]
        since = taken[0][1]
        spent = now - since + (self.running + 1) * function.latency.of(len(taken))
        return Batch(function.name, tuple(item for item, _ in taken), since, function.slo_s - spent, rank)


def _largest(function: Function, seconds: float) -> int:
    """The largest batch that takes no longer; 0 if none does."""
    spare = seconds - function.latency.first_s + 1e-9
    if spare < 0:
        return 0
    if function.latency.more_s <= 0:
        return function.window.size
    return min(function.window.size, int(min(spare / function.latency.more_s, function.window.size)) + 1)
