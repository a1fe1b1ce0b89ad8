"""Tasks that run together: one call of the function, one thread, several tasks to report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dataflower.container.failure import TypeMismatch
from dataflower.container.running import RunningTask
from dataflower.wire import RunBatch, RunTask


class BatchMember(RunningTask):
    """A task of a batch. Cancelling it is noted; only when all are cancelled is the function interrupted."""

    __slots__ = ("batch",)

    def __init__(self, run: RunTask, received: float, batch: RunningBatch) -> None:
        super().__init__(run, received)
        self.batch = batch

    def cancel(self, reason: str) -> None:
        """Nobody wants its result any more. Idempotent."""
        with self.lock:
            if self.reason is not None:
                return
            self.reason = reason
        self.batch.member_cancelled(reason)


class RunningBatch:
    """Several firings.

    `whole` stands for all of them towards user code: it is what can be interrupted, and what coroutines are bound to.
    """

    __slots__ = ("members", "waiting", "whole")

    def __init__(self, message: RunBatch, received: float) -> None:
        self.members = tuple(BatchMember(run, received, self) for run in message.tasks)
        self.whole = RunningTask(message.tasks[0], received)
        self.waiting: list[BatchMember] = list(self.members)
        """Those that were not reported yet."""

    def member_cancelled(self, reason: str) -> None:
        """One more was cancelled: stop user code if it was the last that anybody wanted."""
        if all(member.reason is not None for member in self.members):
            self.whole.cancel(reason)


def split(result: Any, count: int) -> Iterator[Any]:
    """What a function returned for a batch, task by task. An array counts as the list of its rows.

    Raises TypeMismatch.
    """
    is_array = getattr(result, "shape", None) is not None
    if not isinstance(result, list | tuple) and not (is_array and len(result.shape)):
        raise TypeMismatch(
            f"a function that takes batches returns the list of its outputs, one for each task, not "
            f"{type(result).__name__}"
        )
    if len(result) != count:
        raise TypeMismatch(f"the function returned {len(result)} outputs for a batch of {count} tasks")
    return iter(result)


def columns(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The inputs of the tasks, which all have the same names, as lists by name."""
    return {name: [given[name] for given in inputs] for name in inputs[0]}
