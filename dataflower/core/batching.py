"""Which tasks may run together, and when a batch is ready: queues of tasks that fit each other.

A *shelf* holds tasks that may share a batch, most urgent first. A batch leaves it when enough tasks are there, when
they weigh enough, or when the most urgent can't wait any longer.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator

import msgpack

from dataflower.core.instance import Instance
from dataflower.core.payload import Payload
from dataflower.core.values import look
from dataflower.spec.expression import Expression, ExpressionError
from dataflower.spec.function import Kind, Port
from dataflower.wire import EXT_INLINE_TENSOR, Value

_SHAPELESS = frozenset({Kind.JSON, Kind.STRING, Kind.BYTES, Kind.INT, Kind.FLOAT, Kind.BOOL})
GRACE_S = 1e-6
"""Added to every latest start: the last of evenly spaced tasks may come at just that moment."""


class CostError(ValueError):
    """A task's weight can't be told."""


class Waiting:
    """A task in a batch queue.

    Attributes:
        instance: the task.
        due: what it is ordered by: its deadline, inf without one.
        leave_by: when a batch with it must be done with at the latest to keep the plan (or must start, without one).
        since: when it came.
        cost: its weight.
    """

    __slots__ = ("cost", "due", "instance", "leave_by", "shelf", "since")

    def __init__(self, instance: Instance, due: float, leave_by: float, since: float, cost: float) -> None:
        self.instance = instance
        self.due = due
        self.leave_by = leave_by
        self.since = since
        self.cost = cost
        self.shelf: Shelf | None = None


class Shelf:
    """Tasks that may share a batch. `limit`: most of them in one, whatever its container would take."""

    __slots__ = ("_heap", "_sequence", "cost", "count", "key", "limit")

    def __init__(self, key: Hashable, limit: int) -> None:
        self.key = key
        self.limit = limit
        self.count = 0
        self.cost = 0.0
        self._heap: list[tuple[float, int, Waiting]] = []
        self._sequence = 0

    def add(self, waiting: Waiting) -> None:
        """One more; equally urgent ones stay in the order in which they came."""
        self._sequence += 1
        heapq.heappush(self._heap, (waiting.due, self._sequence, waiting))
        waiting.shelf = self
        self.count += 1
        self.cost += waiting.cost

    def discard(self, waiting: Waiting) -> None:
        """It will not run after all; its entry is skipped when its turn comes."""
        waiting.shelf = None
        self.count -= 1
        self.cost -= waiting.cost

    @property
    def head(self) -> Waiting:
        """The most urgent task. The shelf must not be empty."""
        heap = self._heap
        while heap[0][2].shelf is None:
            heapq.heappop(heap)
        return heap[0][2]

    def is_full(self, size: int, max_cost: float) -> bool:
        """Whether another task would not change the batch that is taken next."""
        return self.count >= size or self.count >= self.limit or self.cost >= max_cost

    def take(self, size: int, max_cost: float) -> list[Waiting]:
        """The next batch: at least one task, and no more than `size` that weigh `max_cost` together."""
        taken: list[Waiting] = []
        cost = 0.0
        while self.count and len(taken) < min(size, self.limit):
            head = self.head
            if taken and cost + head.cost > max_cost:
                break
            heapq.heappop(self._heap)
            self.discard(head)
            taken.append(head)
            cost += head.cost
        return taken

    def __iter__(self) -> Iterator[Waiting]:
        """In order."""
        return (waiting for _, _, waiting in sorted(self._heap, key=lambda e: e[:2]) if waiting.shelf is self)


class Sorter:
    """Sorts the tasks of a stage: what each weighs, and what it may share a batch with."""

    def __init__(self, names: tuple[tuple[int, str], ...], ports: tuple[Port, ...], *, same_shape: bool) -> None:
        """`names`: number and name of the stage's data inputs."""
        kinds = {port.name: port.type.kind for port in ports}
        self._names = names
        self._shaped = (
            tuple(n for n, name in names if kinds.get(name, Kind.ANY) not in _SHAPELESS) if same_shape else ()
        )

    def key(self, instance: Instance) -> Hashable:
        """Equal for tasks that may share a batch."""
        if not self._shaped:
            return ()
        return tuple(_shapes(instance.payloads[number]) for number in self._shaped)

    def cost(self, instance: Instance, expression: Expression) -> float:
        """The weight of a task. Raises CostError."""
        variables = {name: look(payload) for n, name in self._names if (payload := instance.payloads[n]) is not None}
        try:
            value = expression.evaluate(variables)
        except (ExpressionError, ValueError) as error:
            raise CostError(str(error)) from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise CostError(f"the cost `{expression.text}` gave {value!r}, which is no weight")
        return float(value)


def _shapes(payload: Payload | None) -> Hashable:
    if payload is None:
        return None
    if isinstance(payload, tuple):
        return tuple(_shapes(value) for value in payload)
    return (*((ref.dtype, ref.shape) for ref in payload.tensors), *_small(payload))


def _small(value: Value) -> list[Hashable]:
    """Dtype and shape of the tensors that lie in the message itself."""
    found: list[Hashable] = []
    if value.spilled is not None:
        return found

    def extension(code: int, data: bytes) -> None:
        if code == EXT_INLINE_TENSOR:
            dtype, shape, _ = msgpack.unpackb(data)
            found.append((dtype, tuple(shape)))

    msgpack.unpackb(value.body, ext_hook=extension, strict_map_key=False)
    return found
