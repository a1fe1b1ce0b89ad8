"""The Python client for asyncio; the same methods as `Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from dataflower.core.trace import InvocationTrace
from dataflower.gateway import calls, messages, values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway._generated import workflow_pb2_grpc
from dataflower.gateway.calls import CONTROL_TIMEOUT_S, Endpoint, Item, Summary
from dataflower.gateway.messages import WorkflowInfo
from dataflower.gateway.server_info import ServerInfo, decode_server
from dataflower.host.api import InvocationRecord

Source = AsyncIterator[Any] | Iterator[Any]


class AsyncOutputStream(AsyncIterator[Item]):
    """Results of a stream call as they come; raises `InvocationFailed` at the end if it failed.

    Its owner must exhaust it or `cancel()` it (or use it as `async with`). A pausing reader slows the workflow down.
    """

    def __init__(
        self, call: Any, endpoint: Endpoint, opening: pb.InvokeStreamRequest, sources: dict[str, Source]
    ) -> None:
        self._call = call
        self._endpoint = endpoint
        self._error: BaseException | None = None
        self._ending = _Ending(call)
        self._feeder = asyncio.create_task(self._feed(opening, sources))
        self.invocation_id: str | None = None
        """Known from the first item on."""
        self.summary: Summary | None = None
        """Known once the stream has ended in success."""

    async def __anext__(self) -> Item:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                match response.WhichOneof("message"):
                    case "item":
                        return calls.decode_item(response.item)
                    case "started":
                        self.invocation_id = response.started.invocation_id
                    case "summary":
                        self.summary = calls.decode_summary(response.summary)
            # `read` says EOF for a failure too, until the status is asked for.
            if await self._call.code() is not grpc.StatusCode.OK:
                raise await _failed(self._call)
        except grpc.RpcError as error:
            await self._stop_feeding()
            raise self._error or self._endpoint.error(await self._ending.of(error), invocation=True) from None
        except asyncio.CancelledError:
            self.cancel()
            raise self._error or asyncio.CancelledError from None
        await self._stop_feeding()
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Stop the invocation; a no-op once it is over."""
        self._feeder.cancel()
        self._call.cancel()

    async def __aenter__(self) -> AsyncOutputStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def _feed(self, opening: pb.InvokeStreamRequest, sources: dict[str, Source]) -> None:
        try:
            await self._call.write(opening)
            while sources:
                for port in tuple(sources):
                    item = await _next(sources[port])
                    if item is _END:
                        del sources[port]
                        await self._call.write(calls.end_request(port))
                    else:
                        await self._call.write(calls.item_request(port, item))
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the call is over; its reader learns why
        except Exception as error:  # the caller's iterator, or an item that can't be sent: for the reader
            self._error = error
            self._call.cancel()

    async def _stop_feeding(self) -> None:
        self._feeder.cancel()
        await asyncio.wait((self._feeder,))


class _Ending:
    """The status with which the server ended a call to which the client still writes.

    Where a write fails because the call is over, grpc.aio says INTERNAL in place of what the server said, be it on its
    way still or there already (github.com/grpc/grpc/issues/36066). So each status is noted when it is set.
    """

    def __init__(self, call: Any) -> None:
        self._said: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        failed = _failed(call)
        try:
            failed.send(None)  # it need not wait for anything: the status is there
        except StopIteration as noted:
            if not self._said.done() and not _is_of_a_write(noted.value):
                self._said.set_result(noted.value)
        failed.close()

    async def of(self, error: grpc.RpcError) -> grpc.RpcError:
        """What the server said, if `error` is of a write that came too late for it; else `error`."""
        if _is_of_a_write(error):
            await asyncio.wait((self._said,), timeout=_STATUS_S)
            return self._said.result() if self._said.done() else error
        return error


def _is_of_a_write(error: Any) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


_STATUS_S = 5.0
"""The server's status is on the same connection as its refusal to take more, right behind."""
_END = object()


async def _next(source: Source) -> Any:
    if isinstance(source, AsyncIterator):
        return await anext(source, _END)
    return next(source, _END)


async def _failed(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


class AsyncClient:
    """A connection to a dataflower server, for one event loop; `await close()` it, or use it as `async with`."""

    def __init__(
        self,
        address: str = calls.DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        tls: bool = False,
    ) -> None:
        self._endpoint = Endpoint(address, api_key, None if ca_file is None else Path(ca_file), tls)
        credentials = self._endpoint.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, calls.OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, calls.OPTIONS)
        self._stub: Any = workflow_pb2_grpc.WorkflowServiceStub(self._channel)
        self._metadata = self._endpoint.metadata

    async def close(self) -> None:
        """Cancel what is running and disconnect. May be called twice."""
        self._stub = calls.ClosedStub()
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- workflows ---

    async def apply(
        self,
        path_or_text: str | Path,
        *,
        expected_version: int | None = None,
        plan: str | Path | None = None,
        plan_name: str | None = None,
    ) -> WorkflowInfo:
        """As `Client.apply`."""
        request = calls.apply_request(path_or_text, expected_version, plan, plan_name)
        return messages.decode_workflow((await self._ask(self._stub.ApplyWorkflow, request)).workflow)

    async def workflows(self) -> tuple[WorkflowInfo, ...]:
        """As `Client.workflows`."""
        response = await self._ask(self._stub.ListWorkflows, pb.ListWorkflowsRequest())
        return tuple(messages.decode_workflow(w) for w in response.workflows)

    async def workflow(self, name: str) -> WorkflowInfo:
        """As `Client.workflow`."""
        response = await self._ask(self._stub.GetWorkflow, pb.GetWorkflowRequest(name=name))
        return messages.decode_workflow(response.workflow)

    async def delete(self, name: str) -> int:
        """As `Client.delete`."""
        return int((await self._ask(self._stub.DeleteWorkflow, pb.DeleteWorkflowRequest(name=name))).running)

    # --- calls ---

    async def invoke(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        deadline_s: float | None = None,
        request_id: str | None = None,
        **named: Any,
    ) -> dict[str, Any]:
        """As `Client.invoke`; cancelling the awaiting task cancels the invocation."""
        request = calls.invoke_request(workflow, {**(inputs or {}), **named}, request_id)
        response = await self._ask(self._stub.Invoke, request, timeout_s=calls.deadline(deadline_s), invocation=True)
        return values.decode_map(response.outputs)

    def stream(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        deadline_s: float | None = None,
        request_id: str | None = None,
        **named: Any,
    ) -> AsyncOutputStream:
        """As `Client.stream`; iterators may be async ones. Must be called from the client's event loop."""
        given = {**(inputs or {}), **named}
        sources = {n: v for n, v in given.items() if isinstance(v, AsyncIterator) or hasattr(v, "__next__")}
        fixed = {name: value for name, value in given.items() if name not in sources}
        opening = calls.open_request(workflow, fixed, tuple(sources), request_id)
        call = self._stub.InvokeStream(timeout=calls.deadline(deadline_s), metadata=self._metadata)
        return AsyncOutputStream(call, self._endpoint, opening, sources)

    # --- records ---

    async def submit(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        deadline_s: float | None = None,
        request_id: str | None = None,
        **named: Any,
    ) -> InvocationRecord:
        """As `Client.submit`."""
        request = calls.submit_request(workflow, {**(inputs or {}), **named}, request_id, deadline_s)
        return messages.decode_record((await self._ask(self._stub.Submit, request)).invocation)

    async def get(self, invocation: str) -> InvocationRecord:
        """As `Client.get`."""
        request = pb.GetInvocationRequest(invocation_id=invocation)
        return messages.decode_record((await self._ask(self._stub.GetInvocation, request)).invocation)

    async def watch(self, invocation: str) -> AsyncIterator[InvocationRecord]:
        """As `Client.watch`."""
        request = pb.WatchInvocationRequest(invocation_id=invocation)
        call = self._stub.WatchInvocation(request, metadata=self._metadata)
        try:
            async for response in call:
                yield messages.decode_record(response.invocation)
        except grpc.RpcError as error:
            raise self._endpoint.error(error) from None
        finally:
            call.cancel()

    async def cancel(self, invocation: str) -> InvocationRecord:
        """As `Client.cancel`."""
        request = pb.CancelInvocationRequest(invocation_id=invocation)
        return messages.decode_record((await self._ask(self._stub.CancelInvocation, request)).invocation)

    async def invocations(self, workflow: str | None = None, limit: int = 50) -> tuple[InvocationRecord, ...]:
        """As `Client.invocations`."""
        request = pb.ListInvocationsRequest(workflow=workflow or "", limit=limit)
        response = await self._ask(self._stub.ListInvocations, request)
        return tuple(messages.decode_record(i) for i in response.invocations)

    async def trace(self, invocation: str) -> InvocationTrace:
        """As `Client.trace`."""
        request = pb.GetTraceRequest(invocation_id=invocation)
        return messages.decode_trace((await self._ask(self._stub.GetTrace, request)).trace)

    async def status(self) -> ServerInfo:
        """As `Client.status`."""
        return decode_server(await self._ask(self._stub.ServerStatus, pb.ServerStatusRequest()))

    async def _ask(
        self, method: Any, request: Any, *, timeout_s: float | None = CONTROL_TIMEOUT_S, invocation: bool = False
    ) -> Any:
        if (size := calls.request_size(request)) >= calls.LARGE_BYTES:
            calls.check_size(size, (await self.status()).max_message_bytes)
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._endpoint.error(error, invocation=invocation) from None
