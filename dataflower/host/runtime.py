"""A machine that runs workflows: `host.api.HostApi` on real containers."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from dataflower.channel import pace
from dataflower.checkpoint.protocol import Statistics
from dataflower.clock import Clock, SystemClock
from dataflower.core.device.state import DeviceState
from dataflower.core.events import InvocationArrived
from dataflower.core.host import CoreConfig, HostCore
from dataflower.errors import (
    Code,
    DataflowerError,
    Failure,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from dataflower.host.api import (
    ContainerStart,
    HostUsage,
    InvocationRecord,
    Listener,
    PeerStatus,
    Preloaded,
    StartListener,
    State,
    WorkflowStatus,
)
from dataflower.host.database import DatabaseJournal
from dataflower.host.engine import Engine
from dataflower.host.inputs import split_inputs
from dataflower.host.intake import Intake
from dataflower.host.invocations import RunningInvocation
from dataflower.host.journal import Entry, Journal, MemoryJournal
from dataflower.host.pump import pump
from dataflower.host.recording import Recording
from dataflower.host.records import HostStatistics, already_exists, check_id, failure_of, record_of, state_of
from dataflower.host.registry import Deployed, Load, Registry
from dataflower.host.settings import HostConfig
from dataflower.host.values import Border, fingerprint, read_blob, record_inputs
from dataflower.spec.workflow import Workflow
from dataflower.wire import Value

_log = logging.getLogger(__name__)

_REFUSALS = frozenset({Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND})
"""Codes with which the core turns an invocation away at the door."""
SHUTDOWN = Failure(Code.UNAVAILABLE, "ShuttingDown", "the server stops", retry_after_s=1.0)


class Running:
    """An invocation that is not over, with what its record needs."""

    __slots__ = ("deployed", "entry", "handle", "is_arriving", "pump")

    def __init__(self, deployed: Deployed, entry: Entry, handle: RunningInvocation) -> None:
        self.deployed = deployed
        self.entry = entry
        self.handle = handle
        self.is_arriving = True
        self.pump: asyncio.Task[None] | None = None


class Runtime:
    """`HostApi`. Use it as `async with Runtime(config) as host`; inside, everything happens on that one loop."""

    def __init__(
        self, config: HostConfig | None = None, *, load: Load | None = None, clock: Clock | None = None
    ) -> None:
        """`load` turns a workflow's YAML, with a name for messages, into a `Workflow`; for a state directory."""
        self.config = config or HostConfig()
        self._load = load
        self._clock = clock or SystemClock()
        self._running: dict[str, Running] = {}
        self._draining = False
        self._started = False
        self._idle = asyncio.Event()
        self._accepted = 0
        self._ended = dict.fromkeys(State, 0)
        self._accepting: dict[str, asyncio.Task[bool]] = {}
        """Submissions that are being journalled."""
        self._listeners: list[Listener] = []
        self._start_listeners: list[StartListener] = []

    # --- life ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        config = self.config
        self._journal = self._open_journal()
        core_config = CoreConfig(
            cpus=config.cpus,
            max_containers=config.max_containers,
            cancel_grace_s=config.cancel_grace_s,
            start_timeout_s=config.start_timeout_s,
            output_ttl_s=config.output_ttl_s,
            seed=config.seed,
            pressure=config.pressure,
            lines=config.peer_lines,
            preload=config.preload,
            preload_memory_bytes=config.preload_memory_bytes,
            preload_device_bytes=config.preload_device_bytes,
            device_batches=config.device_batches,
            device_batch_size=config.device_batch_size,
            device_ttft_s=config.device_ttft_s,
            device_memory_bytes=config.device_memory_bytes,
        )
        try:
            self._core = HostCore(core_config)
            self._engine = Engine(self._core, self._clock, config)
            self._engine.on_start = self._on_start
            self._border = Border(self._engine.arenas, self._engine.views, config.max_input_bytes)
            self._intake = Intake(self._border)
            self._registry = Registry(self._engine, self._core, self._journal, self._clock, config, load=self._load)
        except BaseException:
            await self._journal.close()
            raise
        try:
            self._registry.restore()
            await self._resume()
        except BaseException:
            await self._registry.close()
            await self._engine.close()
            await self._journal.close()
            raise
        self._started = True
        pace.prompt()
        return self

    def _open_journal(self) -> Journal:
        config = self.config
        if config.state_dir is None:
            return MemoryJournal(config.keep_finished, config.keep_finished_bytes)
        return DatabaseJournal(
            config.state_dir,
            self._clock,
            keep_finished=config.keep_finished,
            keep_finished_s=config.keep_finished_s,
            replace=config.set_aside_corrupt_journal,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def drain(self) -> None:
        """Take no new invocations from now on; those that run go on."""
        self._draining = True

    async def close(self, drain_timeout_s: float | None = None) -> None:
        """Drain, then cancel what still runs, then end every process. Submitted invocations that are cut off here run
        again at the next start, if there is a state directory. Idempotent.
        """
        if not self._started:
            return
        self._started = False
        self.drain()
        if self._accepting:
            await asyncio.wait(self._accepting.values())
        timeout_s = self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        await self._wait_idle(timeout_s)
        interrupted = [ident for ident, running in self._running.items() if running.handle.submitted]
        for running in list(self._running.values()):
            running.handle.stop(SHUTDOWN)
        await self._wait_idle(self.config.stop_grace_s)
        await self._intake.close()
        await self._registry.close()
        try:
            await self._engine.close()
        finally:
            pace.patient()
            await self._journal.close(interrupted)

    async def _wait_idle(self, timeout_s: float) -> None:
        self._idle.clear()
        if self._running:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                _log.warning("%d invocations still run after %.1f s", len(self._running), timeout_s)

    async def _resume(self) -> None:
        """Run again what was submitted and had not ended when the server went down."""
        for entry in self._journal.unfinished():
            if entry.attempts >= self.config.max_server_crashes:
                message = f"the server went down {entry.attempts} times while it ran"
                self._give_up(entry, Failure(Code.UNAVAILABLE, "ServerCrashed", message))
                continue
            await self._run_again(entry)
        self._registry.retire_revived()

    async def _run_again(self, entry: Entry) -> None:
        deadline = 0.0
        if entry.deadline_at is not None:
            deadline = self._clock.monotonic() + entry.deadline_at - self._clock.wall()
            if deadline <= self._clock.monotonic():
                message = "its deadline passed while the server was down"
                self._give_up(entry, Failure(Code.DEADLINE_EXCEEDED, "DeadlineExceeded", message))
                return
        entry = replace(entry, attempts=entry.attempts + 1)
        try:
            deployed = self._registry.revive(entry.workflow, entry.version)
            inputs = read_blob(entry.inputs or b"\x80")
            given = split_inputs(entry.workflow, deployed.inputs, inputs)
            await self._journal.accept(entry)  # counted before it can bring the server down once more
            packed = self._border.pack(deployed.name, given[0])
            self._start(deployed, entry, (packed, given[1]), (), deadline)
        except DataflowerError as error:
            self._give_up(entry, failure_of(error))
        else:
            _log.info("invocation %s runs again (run %d)", entry.id, entry.attempts)

    def _give_up(self, entry: Entry, failure: Failure) -> None:
        _log.error("invocation %s is not run again: %s", entry.id, failure.message)
        self._journal.finish(
            replace(entry, state=State.FAILED, finished_at=self._clock.wall(), failure=failure, inputs=None)
        )

    # --- workflows -------------------------------------------------------------------------------------------

    async def apply(
        self,
        workflow: Workflow,
        source: str,
        *,
        expected_version: int | None = None,
        plan: str | None = None,
        plan_file: str = "plan",
    ) -> WorkflowStatus:
        """See `HostApi.apply`."""
        return self._registry.status(await self._registry.apply(workflow, source, expected_version, plan, plan_file))

    async def delete(self, name: str) -> None:
        """See `HostApi.delete`. Returns at once; running invocations go on to their end."""
        await self._registry.delete(name)

    def workflows(self) -> tuple[WorkflowStatus, ...]:
        """See `HostApi.workflows`."""
        return tuple(self.workflow(name) for name in self._registry.names())

    def workflow(self, name: str) -> WorkflowStatus:
        """See `HostApi.workflow`."""
        return self._registry.status(self._registry.find(name))

    async def wait_ready(self, name: str) -> None:
        """See `HostApi.wait_ready`."""
        while any(stage.starting for stage in self.workflow(name).stages):
            await self._engine.container_changed()

    # --- invocations -----------------------------------------------------------------------------------------

    async def invoke(
        self,
        name: str,
        inputs: Mapping[str, Any],
        *,
        invocation: str | None = None,
        open_inputs: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> RunningInvocation:
        """See `HostApi.invoke`."""
        self._refuse_if_draining()
        if invocation is not None:
            await self._refuse_if_known(invocation)
        deployed = self._registry.find(name)
        given = split_inputs(name, deployed.inputs, inputs, open_inputs)
        if deadline is None:
            limit_s = deployed.workflow.deadline_s
            deadline = 0.0 if limit_s is None else self._clock.monotonic() + limit_s
        entry = Entry(
            id=invocation or os.urandom(16).hex(),
            workflow=name,
            version=deployed.version,
            state=State.RUNNING,
            accepted_at=self._clock.wall(),
        )
        packed = await self._intake.bring(name, given[0])
        try:
            self._refuse_if_draining()  # large inputs take a while, and much may have happened
            if entry.id in self._running or entry.id in self._accepting:
                raise already_exists(entry.id)
            current = self._registry.find(name)
        except DataflowerError:
            self._border.release(packed)
            raise
        if current is not deployed:
            self._border.release(packed)
            return await self.invoke(
                name, inputs, invocation=invocation, open_inputs=open_inputs, deadline=deadline or None
            )
        running = self._start(deployed, entry, (packed, given[1]), open_inputs, deadline)
        return running.handle

    async def submit(
        self, name: str, inputs: Mapping[str, Any], *, invocation: str | None = None, deadline_s: float | None = None
    ) -> InvocationRecord:
        """See `HostApi.submit`."""
        self._refuse_if_draining()
        marks = fingerprint(inputs)
        if invocation is not None:
            known = await self._same_submission(invocation, name, marks)
            if known is not None:
                return known
        deployed = self._registry.find(name)
        given = split_inputs(name, deployed.inputs, inputs)
        limit_s = deployed.workflow.deadline_s if deadline_s is None else deadline_s
        now = self._clock.wall()
        entry = Entry(
            id=invocation or os.urandom(16).hex(),
            workflow=name,
            version=deployed.version,
            state=State.RUNNING,
            accepted_at=now,
            submitted=True,
            deadline_at=None if limit_s is None else now + limit_s,
            fingerprint=marks,
            inputs=record_inputs(inputs),
        )
        deadline = 0.0 if limit_s is None else self._clock.monotonic() + limit_s
        accepted = self._accepting[entry.id] = asyncio.create_task(self._accept(deployed, entry, given, deadline))
        if await asyncio.shield(accepted):
            return await self.get(entry.id)
        return await self.submit(name, inputs, invocation=invocation, deadline_s=deadline_s)

    async def _accept(
        self, deployed: Deployed, entry: Entry, given: tuple[dict[str, Any], dict[str, list[Any]]], deadline: float
    ) -> bool:
        """Write a submission down and start it, also if its caller leaves: what is written must run.

        False: another version came meanwhile, which may take other inputs, and nothing is written.
        """
        try:
            await self._journal.accept(entry)
            if self._registry.find(entry.workflow) is not deployed:
                await self._journal.forget(entry.id)
                return False
            packed = self._border.pack(entry.workflow, given[0])
            self._start(deployed, entry, (packed, given[1]), (), deadline)
        except DataflowerError:
            await self._journal.forget(entry.id)
            raise
        finally:
            del self._accepting[entry.id]
        return True

    async def _same_submission(self, ident: str, name: str, marks: bytes) -> InvocationRecord | None:
        """The record of an earlier submission under this id; ALREADY_EXISTS if it was another one."""
        check_id(ident)
        while ident in self._accepting:
            await asyncio.wait([self._accepting[ident]])
        running = self._running.get(ident)
        entry = running.entry if running is not None else await self._journal.get(ident)
        if entry is None:
            if ident in self._accepting or ident in self._running:
                return await self._same_submission(ident, name, marks)
            return None
        if not entry.submitted or entry.workflow != name or entry.fingerprint != marks:
            raise already_exists(ident)
        return await self.get(ident)

    async def _refuse_if_known(self, ident: str) -> None:
        check_id(ident)
        if await self._journal.get(ident) is not None or ident in self._running or ident in self._accepting:
            raise already_exists(ident)

    def _refuse_if_draining(self) -> None:
        if self._draining or not self._started:
            raise Unavailable("the server is shutting down", retry_after_s=SHUTDOWN.retry_after_s)

    def _start(
        self,
        deployed: Deployed,
        entry: Entry,
        given: tuple[dict[str, Value], dict[str, list[Any]]],
        open_inputs: tuple[str, ...],
        deadline: float,
    ) -> Running:
        """Hand an invocation to the core; `given`: packed values, and streams. Raises ResourceExhausted if refused."""
        if deployed.watch is not None:
            deployed.watch.arrived()
        packed, streams = given
        opened = (*open_inputs, *streams)
        recorded_bytes = self.config.submitted_bytes if entry.submitted else self.config.recorded_bytes
        handle = RunningInvocation(
            entry.id,
            feed=self._engine.feed,
            border=self._border,
            workflow=entry.workflow,
            streams=deployed.streams,
            open_inputs={name: deployed.inputs[name] for name in opened} if opened else {},
            recording=Recording(self._border, recorded_bytes),
            on_over=self._on_over,
            submitted=entry.submitted,
        )
        running = self._running[entry.id] = Running(deployed, entry, handle)
        deployed.running += 1
        self._engine.expect(entry.id, deployed.key, handle)
        self._engine.feed(InvocationArrived(entry.id, deployed.key, packed, opened, deadline, entry.attempts > 1))
        running.is_arriving = False
        if handle.failure is not None and handle.failure.code in _REFUSALS:
            handle.cancel()
            failure = handle.failure
            raise ResourceExhausted(failure.message, code=failure.code, retry_after_s=failure.retry_after_s)
        self._accepted += 1
        if streams and not handle.is_over:
            running.pump = asyncio.create_task(pump(handle, streams))
        return running

    def _on_over(self, handle: RunningInvocation) -> None:
        running = self._running.pop(handle.id)
        running.deployed.running -= 1
        if running.pump is not None:
            running.pump.cancel()
        failure = handle.failure
        if running.is_arriving and failure is not None and failure.code in _REFUSALS:
            return  # the caller is told; there is nothing to remember
        if not self._running:
            self._idle.set()
        state = state_of(failure)
        self._ended[state] += 1
        if failure is SHUTDOWN and handle.submitted:
            return  # it stays `running` in the journal, and so runs again
        entry = replace(
            running.entry,
            state=state,
            finished_at=self._clock.wall(),
            failure=failure,
            outputs=handle.recording.blob() if failure is None else None,
            trace=handle.trace,
            inputs=None,
        )
        self._journal.finish(entry)
        for listener in self._listeners:
            listener(record_of(replace(entry, outputs=None)))

    async def get(self, invocation: str) -> InvocationRecord:
        """See `HostApi.get`."""
        running = self._running.get(invocation)
        entry = running.entry if running is not None else await self._journal.get(invocation)
        if entry is None:
            raise NotFound(f"no invocation {invocation!r}")
        return record_of(entry)

    async def watch(self, invocation: str) -> AsyncIterator[InvocationRecord]:
        """See `HostApi.watch`."""
        record = await self.get(invocation)
        yield record
        while record.state is State.RUNNING:
            running = self._running.get(invocation)
            if running is not None:
                await running.handle.wait_over()
            record = await self.get(invocation)
            if record.state is State.RUNNING and invocation not in self._running:
                return  # cut off by the end of this host; it runs again in the next one
            yield record

    async def cancel(self, invocation: str) -> InvocationRecord:
        """See `HostApi.cancel`."""
        running = self._running.get(invocation)
        if running is not None:
            running.handle.stop(Failure(Code.CANCELLED, "Cancelled", "cancelled on request"))
        return await self.get(invocation)

    def recent(self, workflow: str | None = None, limit: int = 50) -> tuple[InvocationRecord, ...]:
        """See `HostApi.recent`."""
        found = {entry.id: entry for entry in self._journal.recent(workflow, limit)}
        for running in self._running.values():
            if workflow is None or running.entry.workflow == workflow:
                found[running.entry.id] = running.entry
        newest = sorted(found.values(), key=lambda entry: -entry.accepted_at)[:limit]
        return tuple(record_of(replace(entry, outputs=None, trace=None)) for entry in newest)

    def on_over(self, listener: Listener) -> None:
        """See `HostApi.on_over`."""
        self._listeners.append(listener)

    def on_start(self, listener: StartListener) -> None:
        """See `HostApi.on_start`."""
        self._start_listeners.append(listener)

    def _on_start(self, start: ContainerStart) -> None:
        for listener in self._start_listeners:
            listener(start)

    def preloaded(self) -> tuple[Preloaded, ...]:
        """See `HostApi.preloaded`."""
        return tuple(
            Preloaded(p.name, p.kind.name.lower(), p.nbytes, p.saved_s, p.value, p.held, ready, p.users)
            for p, ready in self._core.prepared(self._clock.monotonic())
        )

    def devices(self) -> tuple[DeviceState, ...]:
        """See `HostApi.devices`."""
        return self._core.devices()

    def usage(self) -> HostUsage:
        """See `HostApi.usage`."""
        core, engine = self._core.statistics(), self._engine.statistics()
        return HostUsage(
            arenas=engine.arenas,
            arena_bytes=engine.arena_bytes,
            host_arena_used_bytes=self._engine.arenas.statistics().used_bytes,
            slots=core.slots,
            containers=core.containers,
            zygotes=engine.launcher.zygotes,
        )

    def peers(self) -> tuple[PeerStatus, ...]:
        """See `HostApi.peers`."""
        lender = self._engine.lender
        return (*self._engine.remotes.status(), *(() if lender is None else lender.status()))

    @property
    def peer_port(self) -> int | None:
        """Where other hosts may come in; None if they may not."""
        return None if self._engine.lender is None else self._engine.lender.port

    # --- for people ------------------------------------------------------------------------------------------

    def container_pids(self) -> dict[int, int]:
        """Process ids of the running containers, by number."""
        return self._engine.pids()

    def zygote_pids(self) -> tuple[int, ...]:
        """Process ids of the fork servers."""
        return self._engine.zygote_pids()

    async def weights(self) -> Statistics | None:
        """The models in this host's memory, and how fast it loads others; None before the first was asked for."""
        return await self._engine.weights()

    def statistics(self) -> HostStatistics:
        """Counts now."""
        return HostStatistics(
            accepted=self._accepted,
            succeeded=self._ended[State.SUCCEEDED],
            failed=self._ended[State.FAILED],
            cancelled=self._ended[State.CANCELLED],
            running=len(self._running),
            core=self._core.statistics(),
            engine=self._engine.statistics(),
        )
