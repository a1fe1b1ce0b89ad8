"""`FakeHost`: the `HostApi` without processes, for tests of whatever stands in front of a host."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

from dataflower.checkpoint.protocol import Statistics
from dataflower.clock import Clock, SystemClock
from dataflower.core.device.state import DeviceState
from dataflower.errors import Code, DataflowerError, InvalidArgument, NotFound
from dataflower.host.api import (
    HostUsage,
    InvocationRecord,
    Listener,
    PeerStatus,
    Preloaded,
    StageStatus,
    StartListener,
    State,
    WorkflowStatus,
)
from dataflower.spec.function import DTYPES, Kind, Port
from dataflower.spec.workflow import Edge, Output, PortRef, Stage, Workflow
from dataflower.testing.fake_invocation import FakeInvocation

Body = Callable[..., Any]
"""What a fake workflow does: called with its inputs by name (stream inputs as async iterators).

A dict from output names is all outputs, anything else the only one. A generator (async or not) yields items, of the
only stream port or as a dict. A coroutine function may wait, and sees a cancellation as `asyncio.CancelledError`.
"""


def fake_workflow(name: str, inputs: tuple[Port, ...] = (), outputs: tuple[Port, ...] = ()) -> Workflow:
    """A workflow of one stage with the given ports; one untyped output `out` if none is given."""
    outputs = outputs or (Port("out"),)
    stage = Stage(name="body", function="fake:body", input_ports=inputs, outputs=outputs)
    results = tuple(Output(port.name, Edge(PortRef("body", port.name)), port) for port in outputs)
    return Workflow(name=name, stages={"body": stage}, inputs=inputs, outputs=results)


class FakeHost:
    """Workflows are Python callables, run as tasks of the running event loop.

    `bodies`: what workflows do that are applied rather than added; others give their inputs back as a dict.
    """

    def __init__(self, bodies: Mapping[str, Body] | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.invocations: dict[str, FakeInvocation] = {}
        """Every call so far, for tests to look at."""
        self.refusal: DataflowerError | None = None
        """Raised by the next `invoke` or `submit`, once."""
        self._bodies = dict(bodies or {})
        self._workflows: dict[str, WorkflowStatus] = {}
        self._submitted: dict[str, dict[str, Any]] = {}
        self._ids = itertools.count(1)
        self._listeners: list[Listener] = []
        self.stored: Statistics | None = None
        self.shared: tuple[DeviceState, ...] = ()

    def add(
        self, name: str, body: Body, inputs: tuple[Port, ...] | None = None, outputs: tuple[Port, ...] = ()
    ) -> None:
        """Make `body` invokable as workflow `name`; its parameters are untyped inputs unless `inputs` says more."""
        if inputs is None:
            parameters = inspect.signature(body).parameters.values()
            inputs = tuple(Port(p.name, optional=p.default is not p.empty) for p in parameters)
        self._bodies[name] = body
        self._put(fake_workflow(name, inputs, outputs), f"name: {name}\n")

    def _put(self, workflow: Workflow, source: str) -> WorkflowStatus:
        old = self._workflows.get(workflow.name)
        status = WorkflowStatus(
            name=workflow.name,
            version=old.version + 1 if old else 1,
            workflow=workflow,
            source=source,
            applied_at=self.clock.wall(),
        )
        self._workflows[workflow.name] = status
        return status

    async def apply(
        self,
        workflow: Workflow,
        source: str,
        *,
        expected_version: int | None = None,
        plan: str | None = None,
        plan_file: str = "plan",
    ) -> WorkflowStatus:
        """As `HostApi.apply`; a plan is kept and not looked at."""
        old = self._workflows.get(workflow.name)
        present = old.version if old else 0
        if expected_version is not None and expected_version != present:
            raise DataflowerError(f"{workflow.name} is at version {present}, not {expected_version}", code=Code.ABORTED)
        if old and old.source == source and plan in (None, old.plan):
            return old
        status = old if old and old.source == source else self._put(workflow, source)
        if plan is not None:
            status = self._workflows[workflow.name] = replace(status, plan=plan)
        return status

    async def delete(self, name: str) -> None:
        """As `HostApi.delete`."""
        self.workflow(name)
        del self._workflows[name]

    async def wait_ready(self, name: str) -> None:
        """As `HostApi.wait_ready`: there are no containers to wait for."""
        self.workflow(name)

    def workflows(self) -> tuple[WorkflowStatus, ...]:
        """As `HostApi.workflows`."""
        return tuple(self.workflow(name) for name in sorted(self._workflows))

    def workflow(self, name: str) -> WorkflowStatus:
        """As `HostApi.workflow`."""
        status = self._workflows.get(name)
        if status is None:
            raise NotFound(f"no workflow {name!r}; there is {', '.join(sorted(self._workflows)) or 'none'}")
        running = sum(i.workflow == name and i.state is State.RUNNING for i in self.invocations.values())
        stages = tuple(StageStatus(s, 0, 1, running, 0) for s in status.workflow.stages)
        return replace(status, running=running, stages=stages)

    async def invoke(
        self,
        name: str,
        inputs: Mapping[str, Any],
        *,
        invocation: str | None = None,
        open_inputs: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> FakeInvocation:
        """As `HostApi.invoke`."""
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        status = self._workflows.get(name) or self.workflow(name)
        check_inputs(status.workflow, inputs, open_inputs)
        id_ = invocation or f"i{next(self._ids)}"
        if id_ in self.invocations:
            raise DataflowerError(f"there is an invocation {id_!r} already", code=Code.ALREADY_EXISTS)
        body = self._bodies.get(name, lambda **given: given)
        made = FakeInvocation(
            id_, status, body, inputs=inputs, open_inputs=open_inputs, deadline=deadline, clock=self.clock
        )
        made.on_over = self._tell
        self.invocations[id_] = made
        return made

    async def submit(
        self, name: str, inputs: Mapping[str, Any], *, invocation: str | None = None, deadline_s: float | None = None
    ) -> InvocationRecord:
        """As `HostApi.submit`, but nothing outlives the process."""
        if invocation in self._submitted:
            if repr(self._submitted[invocation]) != repr(dict(inputs)):
                raise DataflowerError(f"{invocation!r} was submitted with other inputs", code=Code.ALREADY_EXISTS)
            return self.invocations[invocation].record()
        deadline = None if deadline_s is None else self.clock.monotonic() + deadline_s
        made = await self.invoke(name, inputs, invocation=invocation, deadline=deadline)
        self._submitted[made.id] = dict(inputs)
        made.keep()
        return made.record()

    async def get(self, invocation: str) -> InvocationRecord:
        """As `HostApi.get`."""
        return self._find(invocation).record()

    async def watch(self, invocation: str) -> AsyncIterator[InvocationRecord]:
        """As `HostApi.watch`."""
        found = self._find(invocation)
        if found.state is State.RUNNING:
            yield found.record()
            await found.wait_over()
        yield found.record()

    async def cancel(self, invocation: str) -> InvocationRecord:
        """As `HostApi.cancel`."""
        found = self._find(invocation)
        found.cancel()
        await found.wait_over()
        return found.record()

    def recent(self, workflow: str | None = None, limit: int = 50) -> tuple[InvocationRecord, ...]:
        """As `HostApi.recent`."""
        chosen = [i for i in reversed(self.invocations.values()) if workflow in (None, i.workflow)]
        return tuple(replace(i.record(), outputs=None, trace=None) for i in chosen[:limit])

    def on_over(self, listener: Listener) -> None:
        """As `HostApi.on_over`."""
        self._listeners.append(listener)

    def _tell(self, record: InvocationRecord) -> None:
        for listener in self._listeners:
            listener(replace(record, outputs=None))

    def preloaded(self) -> tuple[Preloaded, ...]:
        """As `HostApi.preloaded`: nothing is."""
        return ()

    def devices(self) -> tuple[DeviceState, ...]:
        """As `HostApi.devices`: what `shared` says."""
        return self.shared

    def on_start(self, listener: StartListener) -> None:
        """As `HostApi.on_start`: there are no containers to tell of."""

    def peers(self) -> tuple[PeerStatus, ...]:
        """As `HostApi.peers`: it knows no other hosts."""
        return ()

    async def weights(self) -> Statistics | None:
        """As `HostApi.weights`: what `stored` says."""
        return self.stored

    def usage(self) -> HostUsage:
        """As `HostApi.usage`: it holds nothing."""
        return HostUsage()

    async def close(self) -> None:
        """Cancel whatever runs, and wait until it has ended."""
        for invocation in self.invocations.values():
            invocation.cancel()
        await asyncio.gather(*(i.wait_over() for i in self.invocations.values()))

    def _find(self, invocation: str) -> FakeInvocation:
        try:
            return self.invocations[invocation]
        except KeyError:
            raise NotFound(f"no invocation {invocation!r}") from None


def check_inputs(workflow: Workflow, inputs: Mapping[str, Any], open_inputs: tuple[str, ...]) -> None:
    """Names, kinds, dtypes and shapes; InvalidArgument names the input and both types."""
    ports = {port.name: port for port in workflow.inputs}
    for name in (*inputs, *open_inputs):
        if name not in ports:
            raise InvalidArgument(f"unknown input {name!r}; {workflow.name} takes {', '.join(ports) or 'none'}")
    for port in workflow.inputs:
        if port.name in inputs:
            items = inputs[port.name] if port.stream else (inputs[port.name],)
            for item in items:
                check_value(port, item)
        elif port.name not in open_inputs and not port.optional:
            raise InvalidArgument(f"input {port.name!r} is missing")


def check_value(port: Port, value: Any) -> None:
    """One value against its port."""
    python = {Kind.STRING: str, Kind.BYTES: bytes, Kind.INT: int, Kind.FLOAT: (float, int), Kind.BOOL: bool}
    kind = port.type.kind
    if kind in python and not isinstance(value, python[kind]):
        raise InvalidArgument(f"input {port.name!r} is {port.type}, not {type(value).__name__}")
    if kind is not Kind.TENSOR:
        return
    shape = getattr(value, "shape", None)
    if shape is None:
        raise InvalidArgument(f"input {port.name!r} is {port.type}, not {type(value).__name__}")
    if port.type.dtype and DTYPES[port.type.dtype] != str(value.dtype):
        raise InvalidArgument(f"input {port.name!r} is {port.type}, not {value.dtype}{list(shape)}")
    wanted = port.type.shape
    if wanted is not None and (
        len(wanted) != len(shape) or any(isinstance(w, int) and w != s for w, s in zip(wanted, shape, strict=True))
    ):
        raise InvalidArgument(f"input {port.name!r} is {port.type}, not {value.dtype}{list(shape)}")
