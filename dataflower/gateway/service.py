"""`dataflower.v1.WorkflowService` over a host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from dataflower.clock import Clock
from dataflower.errors import Code, DataflowerError, FailedPrecondition, Failure, InvalidArgument, Unavailable
from dataflower.gateway import messages, server_info, values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway._generated import workflow_pb2_grpc
from dataflower.gateway.answer_size import check_answer, fitting
from dataflower.gateway.guard import deadline_of, guarded
from dataflower.gateway.times import seconds_of, set_time
from dataflower.host.api import HostApi, Invocation, State
from dataflower.spec.workflow import Workflow

Loader = Callable[[str, str], Workflow]
"""(YAML text, file name for messages) -> workflow; raises WorkflowInvalid."""

RECENT = 50
"""Invocations listed if the caller does not say how many."""


class WorkflowService(workflow_pb2_grpc.WorkflowServiceServicer):
    """The methods are documented in proto/dataflower/v1/workflow.proto.

    `changed` is awaited after the set of workflows has changed.
    """

    def __init__(
        self,
        host: HostApi,
        *,
        load: Loader,
        clock: Clock,
        max_message_bytes: int,
        version: str,
        changed: Callable[[], Any],
        log_dir: str = "",
    ) -> None:
        self._host = host
        self._load = load
        self._clock = clock
        self._limit = max_message_bytes
        self._version = version
        self._changed = changed
        self._log_dir = log_dir
        self._started_at = clock.wall()

    # --- workflows ---

    @guarded
    async def ApplyWorkflow(self, request: pb.ApplyWorkflowRequest, context: Any) -> Any:  # noqa: D102
        # Reading a workflow parses YAML and the functions' sources: too long for the loop that serves everyone.
        workflow = await asyncio.to_thread(self._load, request.source, request.file_name or "<workflow>")
        expected = request.expected_version if request.HasField("expected_version") else None
        plan = request.plan if request.HasField("plan") else None
        status = await self._host.apply(
            workflow, request.source, expected_version=expected, plan=plan, plan_file=request.plan_file_name or "plan"
        )
        await self._changed()
        response = pb.ApplyWorkflowResponse()
        messages.encode_workflow(status, response.workflow, source=False)
        return response

    @guarded
    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Any) -> Any:  # noqa: D102
        response = pb.ListWorkflowsResponse()
        for status in self._host.workflows():
            messages.encode_workflow(status, response.workflows.add(), source=False)
        return fitting(response, self._limit)

    @guarded
    async def GetWorkflow(self, request: pb.GetWorkflowRequest, context: Any) -> Any:  # noqa: D102
        response = pb.GetWorkflowResponse()
        messages.encode_workflow(self._host.workflow(request.name), response.workflow, source=True)
        return response

    @guarded
    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, context: Any) -> Any:  # noqa: D102
        running = self._host.workflow(request.name).running
        await self._host.delete(request.name)
        await self._changed()
        return pb.DeleteWorkflowResponse(running=running)

    # --- calls ---

    @guarded
    async def Invoke(self, request: pb.InvokeRequest, context: Any) -> Any:  # noqa: D102
        invocation = await self._host.invoke(
            request.workflow,
            values.decode_map(request.inputs),
            invocation=request.request_id or None,
            deadline=deadline_of(context, self._clock),
        )
        try:
            outputs = await invocation.result()
        except asyncio.CancelledError:
            invocation.cancel(departure(context))
            raise
        check_answer(outputs, self._limit)
        response = pb.InvokeResponse(invocation_id=invocation.id)
        values.encode_map(outputs, response.outputs)
        return fitting(response, self._limit)

    @guarded
    async def InvokeStream(self, requests: AsyncIterator[pb.InvokeStreamRequest], context: Any) -> None:  # noqa: D102
        began = self._clock.monotonic()
        opening = await anext(aiter(requests), None)
        if opening is None or not opening.HasField("open"):
            raise InvalidArgument("the first message of InvokeStream must be `open`")
        open_ = opening.open
        invocation = await self._host.invoke(
            open_.workflow,
            values.decode_map(open_.inputs),
            invocation=open_.request_id or None,
            open_inputs=tuple(open_.open_inputs),
            deadline=deadline_of(context, self._clock),
        )
        feeder = asyncio.create_task(feed(requests, invocation, set(open_.open_inputs)))
        try:
            await self._write_outputs(invocation, context, began)
        except asyncio.CancelledError:
            invocation.cancel(departure(context))
            raise
        except BaseException:
            invocation.cancel()
            raise
        finally:
            feeder.cancel()
            await asyncio.wait((feeder,))

    async def _write_outputs(self, invocation: Invocation, context: Any, began: float) -> None:
        await context.write(pb.InvokeStreamResponse(started=pb.InvocationStarted(invocation_id=invocation.id)))
        items, first = 0, 0.0
        # The next item is asked for only once this one is on its way: a slow reader slows the workflow, and the
        # views in an item are valid just as long.
        async for output in invocation.outputs():
            check_answer(output.value, self._limit)
            items += 1
            response = pb.InvokeStreamResponse()
            response.item.port = output.port
            if output.index >= 0:
                response.item.index = output.index
            values.encode(output.value, response.item.value)
            first = first or self._clock.monotonic()
            await context.write(fitting(response, self._limit))
        response = pb.InvokeStreamResponse()
        response.summary.invocation_id = invocation.id
        response.summary.items = items
        set_time(response.summary.elapsed, self._clock.monotonic() - began)
        if items:
            set_time(response.summary.first_output, first - began)
        await context.write(response)

    # --- records ---

    @guarded
    async def Submit(self, request: pb.SubmitRequest, context: Any) -> Any:  # noqa: D102
        record = await self._host.submit(
            request.workflow,
            values.decode_map(request.inputs),
            invocation=request.request_id or None,
            deadline_s=seconds_of(request.deadline) if request.HasField("deadline") else None,
        )
        response = pb.SubmitResponse()
        messages.encode_record(record, response.invocation)
        return fitting(response, self._limit)

    @guarded
    async def GetInvocation(self, request: pb.GetInvocationRequest, context: Any) -> Any:  # noqa: D102
        response = pb.GetInvocationResponse()
        messages.encode_record(await self._host.get(request.invocation_id), response.invocation)
        return fitting(response, self._limit)

    @guarded
    async def WatchInvocation(self, request: pb.WatchInvocationRequest, context: Any) -> None:  # noqa: D102
        async for record in self._host.watch(request.invocation_id):
            response = pb.WatchInvocationResponse()
            messages.encode_record(record, response.invocation)
            await context.write(fitting(response, self._limit))

    @guarded
    async def CancelInvocation(self, request: pb.CancelInvocationRequest, context: Any) -> Any:  # noqa: D102
        response = pb.CancelInvocationResponse()
        messages.encode_record(await self._host.cancel(request.invocation_id), response.invocation)
        return fitting(response, self._limit)

    @guarded
    async def ListInvocations(self, request: pb.ListInvocationsRequest, context: Any) -> Any:  # noqa: D102
        if request.limit < 0:
            raise InvalidArgument(f"limit must not be negative: {request.limit}")
        response = pb.ListInvocationsResponse()
        for record in self._host.recent(request.workflow or None, request.limit or RECENT):
            messages.encode_record(record, response.invocations.add())
        return fitting(response, self._limit)

    @guarded
    async def GetTrace(self, request: pb.GetTraceRequest, context: Any) -> Any:  # noqa: D102
        record = await self._host.get(request.invocation_id)
        if record.trace is None:
            why = "is still running" if record.state is State.RUNNING else "left no record points"
            raise FailedPrecondition(f"no trace of invocation {record.id!r}: it {why}")
        response = pb.GetTraceResponse()
        messages.encode_trace(record.trace, response.trace)
        return fitting(response, self._limit)

    @guarded
    async def ServerStatus(self, request: pb.ServerStatusRequest, context: Any) -> Any:  # noqa: D102
        response = pb.ServerStatusResponse(version=self._version, max_message_bytes=self._limit, log_dir=self._log_dir)
        set_time(response.started_at, self._started_at)
        for status in self._host.workflows():
            messages.encode_workflow(status, response.workflows.add(), source=False)
        for peer in self._host.peers():
            server_info.encode_peer(peer, response.peers.add())
        for artifact in self._host.preloaded():
            server_info.encode_preloaded(artifact, response.preloaded.add())
        for device in self._host.devices():
            server_info.encode_device(device, response.devices.add())
        with suppress(Unavailable):  # it has just died; the host starts the next one
            if (held := await self._host.weights()) is not None:
                server_info.encode_weights(held, response.weights)
        return fitting(response, self._limit)


def departure(context: Any) -> Failure:
    """Why a call whose handler was cancelled is over: its time ran out, or the caller left."""
    left = context.time_remaining()
    if left is not None and left <= 0:
        return Failure(Code.DEADLINE_EXCEEDED, "DeadlineExceeded", "the caller's deadline passed")
    return Failure(Code.CANCELLED, "Cancelled", "the caller left")


async def feed(requests: AsyncIterator[pb.InvokeStreamRequest], invocation: Invocation, still_open: set[str]) -> None:
    """Pass items of stream inputs on as the workflow takes them; a bad one ends the invocation with the reason."""
    try:
        async for request in requests:
            match request.WhichOneof("message"):
                case "item":
                    await invocation.feed(_fed(request.item.port, still_open), values.decode(request.item.value))
                case "end":
                    await invocation.end_input(_fed(request.end.port, still_open))
                    still_open.discard(request.end.port)
                case _:
                    raise InvalidArgument("only `item` and `end` may follow the first message of InvokeStream")
        if still_open:
            # A client that goes away looks like one that half-closes: only `end` says that an input is complete.
            cut = ", ".join(sorted(still_open))
            invocation.cancel(Failure(Code.CANCELLED, "Cancelled", f"the caller stopped before the end of {cut}"))
    except DataflowerError as error:
        invocation.cancel(Failure(error.code, type(error).__name__, error.message))


def _fed(port: str, still_open: set[str]) -> str:
    if port not in still_open:
        raise InvalidArgument(f"{port!r} is not an open input; open are {', '.join(sorted(still_open)) or 'none'}")
    return port
