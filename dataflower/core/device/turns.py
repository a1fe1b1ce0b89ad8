"""Whose batch a shared device runs next: windows for each function, then the smallest margin to the deadline.

After ServerlessLoRA (EuroSys'26), section 4.2, reconstructed. Two layers: the requests of a function gather in a window
(`window`); batches that are closed are ordered by margin, which counts that M batches on the device slow each other
down by M: margin = objective - (wait of the oldest + M T(b)), M being those that run and this one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from dataflower.core.device.window import Latency, Window

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the device: its objective for the first token, how long batches take, and its window."""

    name: str
    slo_s: float
    latency: Latency
    window: Window


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """Requests of a function that run together. `since`: when the oldest of them came; `margin_s` at its start."""

    function: str
    items: tuple[Item, ...]
    since: float
    margin_s: float = math.inf


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

    def forget(self, name: str) -> tuple[Item, ...]:
        """A function is gone; gives what still waited."""
        queue = self._queues.pop(name, None)
        return () if queue is None else tuple(item for item, _ in queue.items)

    def add(self, name: str, item: Item, since: float) -> None:
        """A request of a known function that came at `since`. KeyError if it is not known."""
        self._queues[name].items.append((item, since))

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

    def take(self, now: float, able: Callable[[str], bool] = lambda _: True) -> Batch[Item] | None:
        """The batch to start now, if any; it runs until `over`.

        `able`: whether a function could start now at all (its weights are there, its process is ready).
        """
        if self.running >= self._slots:
            return None
        ready = [b for b in self._closed(now) if able(b.function)]
        if not ready:
            return None
        best = min(ready, key=lambda b: (b.margin_s, b.since))
        if self.running and best.margin_s > self._defer_s:
            return None
        items = self._queues[best.function].items
        for _ in best.items:
            items.popleft()
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
        return queue.items[0][1] + queue.function.window.wait_s

    def _closed(self, now: float) -> Iterable[Batch[Item]]:
        idle = not self.running and not self._patient
        together = self.running + 1
        for queue in self._queues.values():
            if not queue.items:
                continue
            size = queue.function.window.size
            if idle or len(queue.items) >= size or now >= self._closing(queue):
                items = tuple(item for item, _ in list(queue.items)[:size])
                yield self._judged(Batch(queue.function.name, items, queue.items[0][1]), queue.function, together, now)

    @staticmethod
    def _judged(batch: Batch[Item], function: Function, together: int, now: float) -> Batch[Item]:
        taken = now - batch.since + together * function.latency.of(len(batch.items))
        return replace(batch, margin_s=function.slo_s - taken)
