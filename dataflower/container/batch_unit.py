"""The function unit's way of running several tasks in one call (docs/semantics.md, Batches)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any, Protocol

from dataflower.channel.arena import Arena
from dataflower.clock import SystemClock
from dataflower.container import coroutines, loops
from dataflower.container.batch import BatchMember, RunningBatch, columns, split
from dataflower.container.context import TaskContext
from dataflower.container.failpoints import FailPoints, Point
from dataflower.container.failure import Cancelled, DeadlineExceeded, error_record, forget_frames
from dataflower.container.outputs import Inputs, Outputs
from dataflower.container.running import RunningTask
from dataflower.container.target import Target, to_torch
from dataflower.wire import ErrorRecord, Value

_monotonic = SystemClock().monotonic

Results = list[tuple[BatchMember, dict[str, Value] | ErrorRecord]]


class BatchTransport(Protocol):
    """What running batches needs of a data unit."""

    arena: Arena

    def fetch(self, task: RunningTask) -> dict[str, Any]:
        """The inputs by name."""
        ...

    def encode_outputs(self, task: RunningTask, ports: Any, starve: Any = None) -> dict[str, Value]:
        """Encode the value outputs; `starve` is called before it waits for room."""
        ...

    def starve(self, task: RunningTask, released: int) -> bool:
        """The task is about to wait for room in the arena; gives whether it was cancelled."""
        ...

    def finish_batch(
        self, batch: RunningBatch, results: Sequence[tuple[BatchMember, dict[str, Value] | ErrorRecord]]
    ) -> None:
        """Report some tasks of a batch."""
        ...


class BatchUnit:
    """Runs batches, one at a time on each thread."""

    def __init__(
        self,
        target: Target,
        data: BatchTransport,
        inputs: Inputs,
        outputs: Outputs,
        *,
        stage: str,
        failpoints: FailPoints | None,
    ) -> None:
        self._target = target
        self._data = data
        self._inputs = inputs
        self._outputs = outputs
        self._stage = stage
        self._failpoints = failpoints

    def run(self, batch: RunningBatch) -> None:
        """Run a batch to its end and report each of its tasks. Raises nothing, whatever user code does."""
        results: Results = []
        try:
            self._compute(batch, results)
        except BaseException as error:  # user code: also sys.exit, KeyboardInterrupt
            record = error_record(error)
            forget_frames(error)
            told = {member.number for member, _ in results}
            results += [(m, _cancelled(m) or record) for m in batch.waiting if m.number not in told]
        self._data.finish_batch(batch, results)

    def _compute(self, batch: RunningBatch, results: Results) -> None:
        members, given = self._fetch(batch, results)
        if not members:
            return
        value = self._call(batch.whole, members, given)
        del given
        count = len(members)
        for member, output in zip(members, split(value, count), strict=True):
            results.append((member, _cancelled(member) or self._encode(batch, member, output, results)))

    def _fetch(self, batch: RunningBatch, results: Results) -> tuple[list[BatchMember], dict[str, Any]]:
        """The tasks that are still wanted, and their inputs; `results` gets word of the others."""
        members: list[BatchMember] = []
        given: list[dict[str, Any]] = []
        for member in batch.members:
            try:
                if member.reason is not None:
                    raise Cancelled(member.reason)
                if member.run.deadline_s and _monotonic() > member.run.deadline_s:
                    raise DeadlineExceeded("the deadline passed before the task started")
                given.append(self._take_in(member))
            except (Exception, Cancelled) as error:
                results.append((member, error_record(error)))
                forget_frames(error)
            else:
                members.append(member)
        inputs = columns(given) if given else {}
        for name in self._target.torch.intersection(inputs):  # `&` with keys gives a set
            inputs[name] = [to_torch(value) for value in inputs[name]]
        if self._target.context is not None:
            inputs[self._target.context] = [
                TaskContext(member, self._data.arena, self._stage, self._data.starve) for member in members
            ]
        return members, {**self._target.constants, **inputs}

    def _take_in(self, member: BatchMember) -> dict[str, Any]:
        inputs = self._data.fetch(member)
        if self._inputs:
            for name, value in inputs.items():
                self._inputs.check(name, value, member.sizes)
        return inputs

    def _call(self, whole: RunningTask, members: list[BatchMember], inputs: dict[str, Any]) -> Any:
        if self._failpoints is not None:
            self._failpoints.hit(Point.BEFORE_RUN, whole.run.attempt)
        whole.fetched = members[-1].fetched
        whole.enter_user()
        try:
            whole.started = _monotonic()
            result = self._target.invoke(inputs)
        finally:
            whole.leave_user()
        if not inspect.isawaitable(result):
            return result
        try:
            return loops.run(coroutines.settle(whole, result))
        except asyncio.CancelledError:
            if whole.reason is not None:
                raise Cancelled(whole.reason) from None
            raise
        finally:
            whole.unbind()

    def _encode(
        self, batch: RunningBatch, member: BatchMember, output: Any, results: Results
    ) -> dict[str, Value] | ErrorRecord:
        def starve(released: int) -> bool:
            """What is done leaves first: its readers may be those that make room."""
            self._data.finish_batch(batch, results)
            results.clear()
            for waiting in batch.waiting:
                self._data.starve(waiting, released)
            return member.reason is not None

        try:
            if isinstance(output, BaseException):
                raise output
            ports = self._outputs.values(output, member.sizes)
            return self._data.encode_outputs(member, ports, starve) if ports else {}
        except BaseException as error:  # user code's own, or a value that fits no port
            record = error_record(error)
            forget_frames(error)
            return _cancelled(member) or record


def _cancelled(member: BatchMember) -> ErrorRecord | None:
    return None if member.reason is None else error_record(Cancelled(member.reason))
