"""A stream input as user code sees it: an iterator over items that arrive while the producer still runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dataflower.container import coroutines
from dataflower.wire import TensorRef, Value

if TYPE_CHECKING:
    from dataflower.container.running import RunningTask

_REPORT_EVERY = 4
"""Items taken before the host hears of it, while more are waiting here anyway."""


class StreamReader:
    """Iterator and asynchronous iterator; one reader at a time. Reading past the end stays at the end."""

    def __init__(
        self,
        task: RunningTask,
        name: str,
        values: tuple[Value, ...],
        ended: bool,
        *,
        decode: Callable[[Value], Any],
        report: Callable[[StreamReader, RunningTask], None],
    ) -> None:
        """`report` tells the host what `taken` and `take_slots` say."""
        self.name = name
        self.taken = 0
        self._reported = 0
        self._task = task
        self._items = deque(values)
        self._ended = ended
        self._decode = decode
        self._report = report
        self._given: deque[tuple[tuple[int, int], ...]] = deque()
        """Slots of the items taken since the last report, and of the newest before it."""

    def refine(self, step: Callable[[Any], Any]) -> None:
        """Let every item go through `step` on its way to user code. Before the first is taken."""
        decode = self._decode
        self._decode = lambda value: step(decode(value))

    def put(self, values: tuple[Value, ...], ended: bool) -> None:
        """More items (the task's lock is held)."""
        self._items.extend(values)
        self._ended = self._ended or ended

    def __iter__(self) -> StreamReader:
        return self

    def __next__(self) -> Any:
        task = self._task
        shielded = task.interruptible and threading.get_ident() == task.thread
        if shielded:
            task.leave_user()
        try:
            if self.before_wait():
                task.wait(self.is_ready)
            return self.take(StopIteration)
        finally:
            if shielded:
                task.enter_user()

    def __aiter__(self) -> StreamReader:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return coroutines.take(self._task, self)

    def take_slots(self) -> list[tuple[int, int]]:
        """Slots of all taken items but the newest, each once: those that a report must call held or let go."""
        self._reported = self.taken
        let_go: list[tuple[int, int]] = []
        while len(self._given) > 1:
            let_go.extend(self._given.popleft())
        return let_go

    def all_slots(self) -> list[tuple[int, int]]:
        """Slots of every item not reported on so far."""
        return [slot for slots in self._given for slot in slots]

    def is_ready(self) -> bool:
        """Whether there is something to take, or the end."""
        return bool(self._items) or self._ended

    def before_wait(self) -> bool:
        """Whether there is nothing to take yet; what was taken is reported then, for the producer may wait for that."""
        if self._items:
            return False
        if self._reported < self.taken:
            self._report(self, self._task)
        return True

    def take(self, end: type[Exception]) -> Any:
        """The next item; raises `end` if there is none."""
        if not self._items:
            raise end
        value = self._items.popleft()
        self.taken += 1
        self._given.append(slots_of(value))
        if not self._items or self.taken - self._reported >= _REPORT_EVERY:
            self._report(self, self._task)  # with nothing left here the producer may be waiting for this
        return self._decode(value)


def slots_of(value: Value) -> tuple[tuple[int, int], ...]:
    """The slots that a value names."""
    if not value.tensors and value.spilled is None:
        return ()
    return tuple((ref.arena, ref.slot) for ref in refs_of(value))


def refs_of(value: Value) -> tuple[TensorRef, ...]:
    """The references inside a value."""
    return value.tensors if value.spilled is None else (*value.tensors, value.spilled)


def value_bytes(value: Value) -> int:
    """Bytes of a value as credit counts them: its body and its tensors."""
    return len(value.body) + sum([ref.nbytes for ref in refs_of(value)])
