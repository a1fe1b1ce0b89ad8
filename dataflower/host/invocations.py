"""A running call as its caller holds it: inputs in, outputs out, both at the pace of the slower side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from dataflower.core.commands import FinishInvocation
from dataflower.core.events import CancelArrived, Event, InputArrived, InputEnded, InvocationReleased, OutputTaken
from dataflower.core.trace import InvocationTrace
from dataflower.errors import Code, FailedPrecondition, Failure, InvocationFailed, NotFound
from dataflower.host.api import OutputItem
from dataflower.host.recording import Recording
from dataflower.host.values import Border
from dataflower.spec.function import Port
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.values import check_value
from dataflower.wire import Value

CANCELLED = Failure(Code.CANCELLED, "Cancelled", "cancelled by its caller")
EXPIRED = "OutputsExpired"


class RunningInvocation:
    """`host.api.Invocation`, and the engine's receiver of what the core says about it.

    Its outputs wait in shared memory until the caller takes them: by `outputs()` one at a time, or by `result()` as
    they come. A submitted one has no caller; its outputs go into its record at once.
    """

    def __init__(
        self,
        ident: str,
        *,
        feed: Callable[[Event], None],
        border: Border,
        workflow: str,
        streams: frozenset[str],
        open_inputs: Mapping[str, Port],
        recording: Recording,
        on_over: Callable[[RunningInvocation], None],
        submitted: bool = False,
    ) -> None:
        """`streams`: names of the workflow's stream outputs. `on_over` is called once, from within the engine."""
        self._id = ident
        self._feed = feed
        self._border = border
        self._workflow = workflow
        self._streams = streams
        self._open = dict(open_inputs)
        self._fed = dict.fromkeys(open_inputs, 0)
        self._granted = dict.fromkeys(open_inputs, 0)
        self._on_over = on_over
        self.recording = recording
        self.submitted = submitted
        self.failure: Failure | None = None
        self.is_over = False
        self._trace: InvocationTrace | None = None
        self._queue: deque[tuple[str, int, Value]] = deque()
        self._collected: dict[str, Any] | None = {} if submitted else None
        self._ended: list[str] = []
        self._reading = False
        self._abandoned = False
        self._released = False
        self._is_kept = True
        """Whether the core keeps outputs for it."""
        self._waiters: list[asyncio.Future[None]] = []

    # --- for the caller --------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The invocation's id."""
        return self._id

    @property
    def trace(self) -> InvocationTrace | None:
        """Record points, once it is over."""
        return self._trace

    async def feed(self, port: str, item: Any) -> None:
        """Send an item of a stream input; waits while the workflow can't take it.

        Once the invocation is over the item is dropped; raises InvocationFailed if it failed.
        """
        declared = self._port(port)
        check_value(declared, item, {})
        while not self.is_over and self._fed[port] >= self._granted[port]:
            await self._change()
        if self.is_over:
            if self.failure is not None:
                raise InvocationFailed(self.failure)
            return
        value = self._border.pack(self._workflow, {port: item})[port]
        self._fed[port] += 1
        self._feed(InputArrived(self._id, port, value))

    async def end_input(self, port: str) -> None:
        """Say that a stream input is complete."""
        self._port(port)
        del self._open[port]
        if not self.is_over:
            self._feed(InputEnded(self._id, port))

    def _port(self, name: str) -> Port:
        port = self._open.get(name)
        if port is not None:
            return port
        if name in self._fed:
            raise FailedPrecondition(f"input {name!r} of invocation {self._id} has been ended")
        raise NotFound(f"no open stream input {name!r} ({did_you_mean(name, self._fed, none='there is none')})")

    async def outputs(self) -> AsyncIterator[OutputItem]:
        """Results as they come; raises `InvocationFailed` at the end if it failed. Leaving the loop early cancels."""
        self._begin_reading()
        taken: dict[str, int] = {}
        try:
            while True:
                while self._queue:
                    port, index, value = self._queue.popleft()
                    yield OutputItem(port, index, self._border.view(value))
                    self._took(taken, port, index, value)
                if self.is_over:
                    break
                await self._change()
        finally:
            self._reading = False
            self.cancel()
        if self.failure is not None:
            raise InvocationFailed(self.failure)

    def _took(self, taken: dict[str, int], port: str, index: int, value: Value) -> None:
        """The caller asked for the next item, so it has let go of this one."""
        if index >= 0 or value.tensors or value.spilled is not None:
            taken[port] = taken.get(port, 0) + 1
            self._feed(OutputTaken(self._id, port, taken[port]))

    async def result(self) -> dict[str, Any]:
        """All outputs, streams as lists, absent ones left out (tensors copied). Raises `InvocationFailed`."""
        self._begin_reading()
        self._collected = {}
        try:
            while self._queue:
                self._collect(*self._queue.popleft())
            while not self.is_over:
                await self._change()
        finally:
            self._reading = False
            self.cancel()
        if self.failure is not None:
            raise InvocationFailed(self.failure)
        for port in self._ended:
            self._collected.setdefault(port, [])
        return self._collected

    def _begin_reading(self) -> None:
        if self._released and self.failure is not None and self.failure.kind == EXPIRED:
            raise InvocationFailed(self.failure)
        if self._reading or self._released:
            raise FailedPrecondition(f"the outputs of invocation {self._id} are read already")
        self._reading = True

    def stop(self, failure: Failure) -> None:
        """End it from elsewhere; its owner still reads what became of it."""
        if not self.is_over:
            self._feed(CancelArrived(self._id, failure))

    def cancel(self, failure: Failure | None = None) -> None:
        """Stop it, as its owner; once it is over, let go of what was not read."""
        if not self.is_over:
            self._abandoned = True
            self.stop(failure or CANCELLED)
        elif not self._reading:
            self._release()

    async def wait_over(self) -> None:
        """Return when it is over."""
        while not self.is_over:
            await self._change()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # --- for the engine --------------------------------------------------------------------------------------

    def on_emit(self, port: str, index: int, value: Value) -> None:  # noqa: D102
        try:
            self.recording.add(port, index, value)
        except ValueError as error:
            self._spoil(error)
            return
        if self.submitted and self.recording.overflowed:
            message = "the outputs are too large for the record of a submitted invocation"
            self._feed(CancelArrived(self._id, Failure(Code.RESOURCE_EXHAUSTED, "OutputsTooLarge", message)))
        elif self._collected is None:
            self._queue.append((port, index, value))
            self._wake()
        else:
            self._collect(port, index, value)

    def _collect(self, port: str, index: int, value: Value) -> None:
        collected = self._collected
        assert collected is not None
        if not self.submitted:
            try:
                plain = self._border.copy(value)
            except ValueError as error:
                self._spoil(error)
                return
            if index < 0:
                collected[port] = plain
            else:
                collected.setdefault(port, []).append(plain)
        if index >= 0 or value.tensors or value.spilled is not None:
            self._feed(OutputTaken(self._id, port, max(index, 0) + 1))

    def _spoil(self, error: ValueError) -> None:
        """A container handed out a value that does not hold together."""
        self._feed(CancelArrived(self._id, Failure(Code.INTERNAL, "BadValue", f"an output can't be read: {error}")))

    def on_end_output(self, port: str, absent: bool) -> None:  # noqa: D102
        if absent or port not in self._streams:
            return
        self.recording.add_stream(port)
        self._ended.append(port)

    def on_take_input(self, port: str, items: int) -> None:  # noqa: D102
        self._granted[port] = items
        self._wake()

    def on_finish(self, command: FinishInvocation) -> bool:  # noqa: D102
        self.is_over = True
        self.failure = command.failure
        self._trace = command.trace
        self._is_kept = command.is_kept
        self._on_over(self)
        if self._collected is not None or (self._abandoned and not self._reading):
            self._release()
        self._wake()
        return self._released or not self._is_kept

    def on_expire(self) -> None:  # noqa: D102
        if not self._reading and not self._released:
            message = "nobody read the outputs in time (setting output_ttl_s)"
            self.failure = self.failure or Failure(Code.FAILED_PRECONDITION, EXPIRED, message)
            self._release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._queue.clear()
            if self._is_kept:
                self._feed(InvocationReleased(self._id))
