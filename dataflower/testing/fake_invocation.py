"""One call of a `FakeHost`."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from dataflower.clock import Clock
from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.errors import Code, DataflowerError, Failure, InvalidArgument, InvocationFailed
from dataflower.host.api import InvocationRecord, OutputItem, State, WorkflowStatus

CREDIT = 2
"""Stream items that may wait for the caller before the body has to."""
_END = object()


class FakeInvocation:
    """A `host.api.Invocation` whose workflow is a Python callable running as an asyncio task."""

    def __init__(
        self,
        id_: str,
        status: WorkflowStatus,
        body: Callable[..., Any],
        *,
        inputs: Mapping[str, Any],
        open_inputs: tuple[str, ...],
        deadline: float | None,
        clock: Clock,
    ) -> None:
        self.id = id_
        self.workflow = status.name
        self.deadline = deadline
        self.state = State.RUNNING
        self.failure: Failure | None = None
        self.emitted = 0
        """Items and values that the body has handed out so far."""
        self.taken = 0
        """Of those, how many the caller asked for."""
        self.on_over: Callable[[InvocationRecord], None] = lambda record: None
        self._version = status.version
        self._clock = clock
        self._ports = status.workflow.outputs
        self._streams = {o.name for o in self._ports if o.type_ is not None and o.type_.stream}
        self._accepted = clock.wall(), clock.monotonic()
        self._finished: tuple[float, float] | None = None
        self._items: deque[OutputItem] = deque()
        self._kept: dict[str, Any] | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._feeds: dict[str, asyncio.Queue[Any]] = {name: asyncio.Queue(CREDIT) for name in open_inputs}
        self._task = asyncio.create_task(self._run(body, self._arguments(status, inputs)))
        self._task.add_done_callback(self._never_began)
        self._timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            late = Failure(Code.DEADLINE_EXCEEDED, "DeadlineExceeded", "the deadline passed")
            delay = max(0.0, deadline - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self.cancel, late)

    def _arguments(self, status: WorkflowStatus, inputs: Mapping[str, Any]) -> dict[str, Any]:
        streams = {port.name for port in status.workflow.inputs if port.stream}
        given = {name: _listed(value) if name in streams else value for name, value in inputs.items()}
        return given | {name: _fed(queue) for name, queue in self._feeds.items()}

    async def _run(self, body: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        try:
            result = body(**arguments)
            if inspect.isasyncgen(result):
                index = 0
                async for item in result:
                    await self._emit_item(index, item)
                    index += 1
            elif inspect.isgenerator(result):
                for index, item in enumerate(result):
                    await self._emit_item(index, item)
            else:
                self._emit_values(await result if inspect.isawaitable(result) else result)
            self._end(State.SUCCEEDED)
        except asyncio.CancelledError:
            failure = self.failure or Failure(Code.CANCELLED, "Cancelled", "the invocation was cancelled")
            self._end(State.CANCELLED if failure.code is Code.CANCELLED else State.FAILED, failure)
        except Exception as error:
            self._end(State.FAILED, _failure(error))

    async def _emit_item(self, index: int, item: Any) -> None:
        named = item if isinstance(item, dict) and len(self._ports) > 1 else {self._ports[0].name: item}
        for port, value in named.items():
            while self._kept is None and len(self._items) >= CREDIT:
                self._room.clear()
                await self._room.wait()
            self._emit(OutputItem(port, index, value))
        await asyncio.sleep(0)

    def _emit_values(self, result: Any) -> None:
        names = {port.name for port in self._ports}
        named = result if isinstance(result, dict) and names.issuperset(result) else {self._ports[0].name: result}
        for port, value in named.items():
            if port in self._streams:
                for index, item in enumerate(value):
                    self._emit(OutputItem(port, index, item))
            else:
                self._emit(OutputItem(port, -1, value))

    def _emit(self, item: OutputItem) -> None:
        self.emitted += 1
        if self._kept is None:
            self._items.append(item)
            self._changed.set()
        else:
            self._keep(item)

    def _end(self, state: State, failure: Failure | None = None) -> None:
        self.state, self.failure = state, failure
        self._finished = self._clock.wall(), self._clock.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        self._changed.set()
        self._over.set()
        self.on_over(self.record())

    def _never_began(self, task: asyncio.Task[None]) -> None:
        if not self._over.is_set():  # cancelled before its first step
            self._end(State.CANCELLED if task.cancelled() else State.FAILED, self.failure)

    async def feed(self, port: str, item: Any) -> None:
        """As `Invocation.feed`."""
        await self._queue(port).put(item)

    async def end_input(self, port: str) -> None:
        """As `Invocation.end_input`."""
        await self._queue(port).put(_END)

    def _queue(self, port: str) -> asyncio.Queue[Any]:
        if port not in self._feeds:
            raise InvalidArgument(f"{port!r} is not an open input of this invocation")
        return self._feeds[port]

    async def outputs(self) -> AsyncIterator[OutputItem]:
        """As `Invocation.outputs`."""
        while True:
            while self._items:
                self.taken += 1
                item = self._items.popleft()
                self._room.set()
                yield item
            if self._over.is_set():
                break
            self._changed.clear()
            await self._changed.wait()
        if self.failure is not None:
            raise InvocationFailed(self.failure)

    async def result(self) -> dict[str, Any]:
        """As `Invocation.result`."""
        self.keep()
        await self._over.wait()
        if self.failure is not None:
            raise InvocationFailed(self.failure)
        return dict(self._kept or {})

    def keep(self) -> None:
        """Collect the outputs for `record()` and `result()`; nobody will read them one by one."""
        if self._kept is None:
            self._kept = {port.name: [] for port in self._ports if port.name in self._streams}
            while self._items:
                self._keep(self._items.popleft())
            self._room.set()

    def _keep(self, item: OutputItem) -> None:
        assert self._kept is not None
        if item.index < 0:
            self._kept[item.port] = item.value
        else:
            self._kept.setdefault(item.port, []).append(item.value)

    def cancel(self, failure: Failure | None = None) -> None:
        """As `Invocation.cancel`."""
        if self.state is State.RUNNING and self.failure is None:
            self.failure = failure or Failure(Code.CANCELLED, "Cancelled", "the invocation was cancelled")
            self._task.cancel()

    async def wait_over(self) -> None:
        """Until it has ended, however."""
        await self._over.wait()

    def record(self) -> InvocationRecord:
        """What `HostApi.get` says of it."""
        return InvocationRecord(
            id=self.id,
            workflow=self.workflow,
            version=self._version,
            state=self.state,
            accepted_at=self._accepted[0],
            finished_at=self._finished[0] if self._finished else None,
            failure=self.failure if self.state is not State.RUNNING else None,
            outputs=dict(self._kept or {}) if self.state is State.SUCCEEDED else None,
            trace=self.trace,
        )

    @property
    def trace(self) -> InvocationTrace | None:
        """As `Invocation.trace`: one task, from arrival to end."""
        if self._finished is None:
            return None
        start, end = self._accepted[1], self._finished[1]
        error = self.failure.kind if self.failure else ""
        task = TaskTrace("body", (), 1, start, 1, start, start, start, end, end, end, self.emitted, False, error)
        return InvocationTrace(
            self.id, f"{self.workflow}@{self._version}", start, end, end, self.deadline or 0.0, [task]
        )


async def _listed(values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def _fed(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (item := await queue.get()) is not _END:
        yield item


def _failure(error: Exception) -> Failure:
    if isinstance(error, InvocationFailed):
        return error.failure
    code = error.code if isinstance(error, DataflowerError) else Code.INTERNAL
    text = "".join(traceback.format_exception(error))
    return Failure(code, type(error).__name__, str(error), stage="body", attempt=1, traceback=text)
