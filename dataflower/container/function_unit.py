"""The function unit (FLU): runs user code on the thread that the kernel woke, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Protocol

from dataflower import wire
from dataflower.channel.arena import Arena
from dataflower.channel.pace import Pace
from dataflower.channel.tensor import Uncopied
from dataflower.clock import SystemClock
from dataflower.container import coroutines, loops
from dataflower.container.batch import BatchMember, RunningBatch
from dataflower.container.batch_unit import BatchUnit
from dataflower.container.context import TaskContext
from dataflower.container.failpoints import FailPoints, Point
from dataflower.container.failure import Cancelled, DeadlineExceeded, error_record, forget_frames
from dataflower.container.outputs import Inputs, Outputs
from dataflower.container.running import RunningTask
from dataflower.container.target import Target, to_torch
from dataflower.wire import ErrorRecord, InputPort, OutputPort, Value

_monotonic = SystemClock().monotonic


class Transport(Protocol):
    """What the function unit needs of a data unit."""

    arena: Arena

    def next_task(self) -> RunningTask | RunningBatch | None:
        """Block for a task, or for several that run together; None to leave."""
        ...

    def fetch(self, task: RunningTask) -> dict[str, Any]:
        """The inputs by name."""
        ...

    def send_item(self, task: RunningTask, ports: dict[str, Any]) -> None:
        """Send one item of the streams."""
        ...

    def encode_outputs(
        self,
        task: RunningTask,
        ports: Mapping[str, Any],
        starve: Callable[[int], bool] | None = None,
        uncopied: Uncopied | None = None,
    ) -> dict[str, Value]:
        """Encode the value outputs; `uncopied` takes up what is to be copied by `finish_later`."""
        ...

    def finish_later(
        self, task: RunningTask, ports: dict[str, Any], uncopied: Uncopied, outputs: dict[str, Value]
    ) -> bool:
        """Copy outputs; True: beside the function, and report the task after that."""
        ...

    def starve(self, task: RunningTask, released: int) -> bool:
        """The task is about to wait for room in the arena; gives whether it was cancelled."""
        ...

    def finish(self, task: RunningTask, outputs: dict[str, Value]) -> None:
        """Report success."""
        ...

    def fail(self, task: RunningTask, error: ErrorRecord) -> None:
        """Report failure."""
        ...

    def finish_batch(
        self, batch: RunningBatch, results: Sequence[tuple[BatchMember, dict[str, Value] | ErrorRecord]]
    ) -> None:
        """Report some tasks of a batch."""
        ...


class FunctionUnit:
    """Runs tasks, one at a time on each thread that calls `serve`."""

    def __init__(
        self,
        target: Target,
        data: Transport,
        *,
        inputs: tuple[InputPort, ...],
        outputs: tuple[OutputPort, ...],
        stage: str,
        failpoints: FailPoints | None = None,
    ) -> None:
        self._target = target
        self._data = data
        self._inputs = Inputs(inputs)
        self._outputs = Outputs(outputs)
        self._stage = stage
        self._failpoints = failpoints
        self._plain = not (self._inputs or target.torch or target.context or target.constants)
        """Whether the inputs go to the function just as they come."""
        self._batches = BatchUnit(target, data, self._inputs, self._outputs, stage=stage, failpoints=failpoints)

    def serve(self) -> None:
        """Run tasks on the calling thread until it is time to leave."""
        pace = Pace()
        while (task := self._data.next_task()) is not None:
            pace.begin()
            if isinstance(task, RunningTask):
                task.pace = pace
                self.run(task)
                began = task.started
            else:
                self._batches.run(task)
                began = task.whole.started
            pace.ran(_monotonic() - began if began else 0.0)

    def run(self, task: RunningTask) -> None:
        """Run one task to its end and report it. Raises nothing, whatever user code does."""
        record: ErrorRecord
        try:
            outputs = self._compute(task)
        except BaseException as error:  # user code: also sys.exit, KeyboardInterrupt
            if task.reason is not None and not isinstance(error, Cancelled):
                record = error_record(Cancelled(task.reason))
            else:
                record = error_record(error)
            forget_frames(error)
        else:
            if outputs is not None:
                self._data.finish(task, outputs)
            return
        self._data.fail(task, record)

    def _compute(self, task: RunningTask) -> dict[str, Value] | None:
        """Its outputs; None: they are copied beside this thread, and reported after that."""
        result = self._call(task)
        kind = type(result)
        if kind is GeneratorType:
            ports = self._drive(task, result)
        elif kind is CoroutineType or kind is AsyncGeneratorType or inspect.isawaitable(result):
            ports = self._run_async(task, result)
        else:
            ports = self._hand_out(task, result)
        del result
        if not ports:
            return {}
        uncopied = Uncopied()
        outputs = self._data.encode_outputs(task, ports, uncopied=uncopied)
        if uncopied.places and self._data.finish_later(task, ports, uncopied, outputs):
            return None
        return outputs

    def _call(self, task: RunningTask) -> Any:
        if task.reason is not None:
            raise Cancelled(task.reason)
        inputs = self._data.fetch(task)
        if not self._plain:
            inputs = self._prepare(task, inputs)
        if self._failpoints is not None:
            self._failpoints.hit(Point.BEFORE_RUN, task.run.attempt)
        if task.run.deadline_s and _monotonic() > task.run.deadline_s:
            raise DeadlineExceeded("the deadline passed before the task started")
        invoke = self._target.invoke
        task.enter_user()
        result = None
        try:
            task.started = _monotonic()  # not before: one that was cancelled while it fetched has not begun
            result = invoke(inputs)
        finally:
            try:
                task.leave_user()
            except Cancelled:
                if type(result) is CoroutineType:
                    result.close()  # nobody will await it, of which Python would warn
                raise
        return result

    def _prepare(self, task: RunningTask, inputs: dict[str, Any]) -> dict[str, Any]:
        target = self._target
        for entry in task.run.inputs:
            name = entry.name
            refine = partial(self._refine, task, name, name in target.torch)
            if isinstance(entry, wire.Opened):
                task.streams[name].refine(refine)
            elif isinstance(entry, wire.Gathered):
                inputs[name] = [refine(item) for item in inputs[name]]
            else:
                inputs[name] = refine(inputs[name])
        if target.context is not None:
            inputs[target.context] = TaskContext(task, self._data.arena, self._stage, self._data.starve)
        return {**target.constants, **inputs} if target.constants else inputs

    def _refine(self, task: RunningTask, name: str, torch: bool, value: Any) -> Any:
        """Check a value against its port and give it the form that the parameter asks for."""
        self._inputs.check(name, value, task.sizes)
        return to_torch(value) if torch else value

    # --- the three ways of handing out

    def _hand_out(self, task: RunningTask, result: Any) -> dict[str, Any]:
        """Of a plain function: lists become items."""
        if not self._outputs.streams:
            return self._outputs.values(result, task.sizes)
        rows, values = self._outputs.whole(result, task.sizes)
        for row in rows:
            self._wait_for_credit(task)
            self._data.send_item(task, row)
        return values

    def _drive(self, task: RunningTask, generator: Generator[Any, Any, Any]) -> dict[str, Any]:
        """Of a generator: each yield leaves before user code goes on."""
        if task.pace is not None:
            task.pace.goes_on()
        try:
            returned = self._drain(task, generator)
        finally:
            generator.close()
        return self._outputs.returned(returned, task.sizes)

    def _drain(self, task: RunningTask, generator: Generator[Any, Any, Any]) -> Any:
        while True:
            task.enter_user()
            try:
                item = next(generator)
            except StopIteration as stop:
                return stop.value
            finally:
                task.leave_user()
            ports = self._outputs.item(item, task.sizes)
            del item
            self._wait_for_credit(task)
            self._data.send_item(task, ports)
            del ports

    def _run_async(self, task: RunningTask, result: Any) -> dict[str, Any]:
        """Of a coroutine or asynchronous generator: on this thread's own loop, which is kept."""
        try:
            if isinstance(result, AsyncGeneratorType):
                sort = partial(self._outputs.item, sizes=task.sizes)
                return loops.run(coroutines.drive(task, result, sort, partial(self._data.send_item, task)))
            return loops.run(coroutines.hand_out(task, result, partial(self._hand_out, task)))
        except asyncio.CancelledError:
            if task.reason is not None:
                raise Cancelled(task.reason) from None
            raise
        finally:
            task.unbind()

    def _wait_for_credit(self, task: RunningTask) -> None:
        if not task.has_credit():
            task.wait(task.has_credit)
