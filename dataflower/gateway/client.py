"""The Python client. `AsyncClient` in `dataflower.gateway.async_client` is its twin for asyncio.

with Client("localhost:8001") as client:
    client.apply("workflows/caption.yaml")
    print(client.invoke("caption", video="x.mp4", deadline_s=10))
    for port, index, value in client.stream("caption", video="x.mp4"):
        print(port, index, value)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from dataflower.core.trace import InvocationTrace
from dataflower.gateway import calls, messages, values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway._generated import workflow_pb2_grpc
from dataflower.gateway.async_client import AsyncClient, AsyncOutputStream
from dataflower.gateway.calls import CONTROL_TIMEOUT_S, Endpoint, Item, Summary
from dataflower.gateway.messages import WorkflowInfo
from dataflower.gateway.server_info import ServerInfo, decode_server
from dataflower.host.api import InvocationRecord

__all__ = ["AsyncClient", "AsyncOutputStream", "Client", "OutputStream"]


class OutputStream(Iterator[Item]):
    """Results of a stream call as they come; raises `InvocationFailed` at the end if it failed.

    Its owner must exhaust it or `cancel()` it (or use it as `with`). A reader that pauses slows the workflow down.
    """

    def __init__(self, call: Any, endpoint: Endpoint, feeder: Feeder) -> None:
        self._call = call
        self._endpoint = endpoint
        self._feeder = feeder
        self.invocation_id: str | None = None
        """Known from the first item on."""
        self.summary: Summary | None = None
        """Known once the stream has ended in success."""

    def __next__(self) -> Item:
        try:
            for response in self._call:
                match response.WhichOneof("message"):
                    case "item":
                        return calls.decode_item(response.item)
                    case "started":
                        self.invocation_id = response.started.invocation_id
                    case "summary":
                        self.summary = calls.decode_summary(response.summary)
        except grpc.RpcError as error:
            raise self._feeder.error or self._endpoint.error(error, invocation=True) from None
        raise StopIteration

    def cancel(self) -> None:
        """Stop the invocation; a no-op once it is over."""
        self._call.cancel()

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Feeder(Iterator[pb.InvokeStreamRequest]):
    """The requests of a stream call: the opening, then one item of each open input in turn.

    gRPC asks for the next one, in a thread of its own, when there is room for it. `error`: what the caller's
    iterator raised, which ends the call.
    """

    def __init__(self, opening: pb.InvokeStreamRequest, sources: Mapping[str, Iterator[Any]]) -> None:
        self.error: BaseException | None = None
        self._requests = self._run(opening, dict(sources))

    def __next__(self) -> pb.InvokeStreamRequest:
        try:
            return next(self._requests)
        except StopIteration:
            raise
        except BaseException as error:  # gRPC would swallow it: kept for the reader of the outputs
            self.error = error
            raise

    @staticmethod
    def _run(opening: pb.InvokeStreamRequest, sources: dict[str, Iterator[Any]]) -> Iterator[pb.InvokeStreamRequest]:
        yield opening
        end = object()
        while sources:
            for port in tuple(sources):
                item = next(sources[port], end)
                if item is end:
                    del sources[port]
                    yield calls.end_request(port)
                else:
                    yield calls.item_request(port, item)


class Client:
    """A connection to a dataflower server. Threads may share it; `close()` it, or use it as `with`.

    Every method raises the errors of `dataflower.errors`: Unavailable if nothing answers at `address` (`host:port`, or
    `unix:/path`), NotFound, InvalidArgument, and so on. Arrays come back as read-only views of the answer.
    """

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
            self._channel = grpc.insecure_channel(address, calls.OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, calls.OPTIONS)
        self._stub: Any = workflow_pb2_grpc.WorkflowServiceStub(self._channel)
        self._metadata = self._endpoint.metadata

    def close(self) -> None:
        """Cancel what is running and disconnect. May be called twice."""
        self._stub = calls.ClosedStub()
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- workflows ---

    def apply(
        self,
        path_or_text: str | Path,
        *,
        expected_version: int | None = None,
        plan: str | Path | None = None,
        plan_name: str | None = None,
    ) -> WorkflowInfo:
        """Make a workflow invokable: a YAML file, or its text. WorkflowInvalid lists every problem.

        `plan`: a plan file (`dataflower plan -o yaml`), or its text, to run it by; empty to run it as its file says.
        If it is not given, the same file keeps the plan that it has, and a new version has none. `plan_name`: what
        messages call it, if not by its path.
        """
        request = calls.apply_request(path_or_text, expected_version, plan, plan_name)
        return messages.decode_workflow(self._ask(self._stub.ApplyWorkflow, request).workflow)

    def workflows(self) -> tuple[WorkflowInfo, ...]:
        """All workflows, by name."""
        response = self._ask(self._stub.ListWorkflows, pb.ListWorkflowsRequest())
        return tuple(messages.decode_workflow(w) for w in response.workflows)

    def workflow(self, name: str) -> WorkflowInfo:
        """One workflow, with its source."""
        return messages.decode_workflow(self._ask(self._stub.GetWorkflow, pb.GetWorkflowRequest(name=name)).workflow)

    def delete(self, name: str) -> int:
        """Forget a workflow at once; returns how many invocations still run to their end."""
        return int(self._ask(self._stub.DeleteWorkflow, pb.DeleteWorkflowRequest(name=name)).running)

    # --- calls ---

    def invoke(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        deadline_s: float | None = None,
        request_id: str | None = None,
        **named: Any,
    ) -> dict[str, Any]:
        """Run a workflow and wait for all its outputs (streams as lists, absent ones left out).

        Inputs by keyword, or in a mapping where names clash with the options. Raises `InvocationFailed`, whose
        `failure` says which stage, which attempt and why; with DEADLINE_EXCEEDED after `deadline_s`.
        """
        request = calls.invoke_request(workflow, {**(inputs or {}), **named}, request_id)
        response = self._ask(self._stub.Invoke, request, timeout_s=calls.deadline(deadline_s), invocation=True)
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
    ) -> OutputStream:
        """Run a workflow and give its outputs as they come: (port, index, value), index -1 for what is no stream.

        An input that is an iterator (a generator, `iter(...)`) feeds a stream input item by item while the workflow
        runs; it is read in another thread, as fast as the workflow takes the items.
        """
        given = {**(inputs or {}), **named}
        sources = {name: value for name, value in given.items() if hasattr(value, "__next__")}
        fixed = {name: value for name, value in given.items() if name not in sources}
        feeder = Feeder(calls.open_request(workflow, fixed, tuple(sources), request_id), sources)
        call = self._stub.InvokeStream(feeder, timeout=calls.deadline(deadline_s), metadata=self._metadata)
        return OutputStream(call, self._endpoint, feeder)

    # --- records ---

    def submit(
        self,
        workflow: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        deadline_s: float | None = None,
        request_id: str | None = None,
        **named: Any,
    ) -> InvocationRecord:
        """Start a call that outlives this client and the server; `request_id` makes a repetition harmless."""
        request = calls.submit_request(workflow, {**(inputs or {}), **named}, request_id, deadline_s)
        return messages.decode_record(self._ask(self._stub.Submit, request).invocation)

    def get(self, invocation: str) -> InvocationRecord:
        """What is known of an invocation (its trace apart)."""
        request = pb.GetInvocationRequest(invocation_id=invocation)
        return messages.decode_record(self._ask(self._stub.GetInvocation, request).invocation)

    def watch(self, invocation: str) -> Iterator[InvocationRecord]:
        """The record now and after each change; ends when the invocation is over."""
        request = pb.WatchInvocationRequest(invocation_id=invocation)
        call = self._stub.WatchInvocation(request, metadata=self._metadata)
        try:
            for response in call:
                yield messages.decode_record(response.invocation)
        except grpc.RpcError as error:
            raise self._endpoint.error(error) from None
        finally:
            call.cancel()

    def cancel(self, invocation: str) -> InvocationRecord:
        """Stop an invocation, whoever started it; changes nothing once it is over."""
        request = pb.CancelInvocationRequest(invocation_id=invocation)
        return messages.decode_record(self._ask(self._stub.CancelInvocation, request).invocation)

    def invocations(self, workflow: str | None = None, limit: int = 50) -> tuple[InvocationRecord, ...]:
        """The newest first, without outputs."""
        request = pb.ListInvocationsRequest(workflow=workflow or "", limit=limit)
        return tuple(messages.decode_record(i) for i in self._ask(self._stub.ListInvocations, request).invocations)

    def trace(self, invocation: str) -> InvocationTrace:
        """Record points of an invocation that is over (FailedPrecondition before); times of the server's clock."""
        request = pb.GetTraceRequest(invocation_id=invocation)
        return messages.decode_trace(self._ask(self._stub.GetTrace, request).trace)

    def status(self) -> ServerInfo:
        """The server's version, start and workflows."""
        return decode_server(self._ask(self._stub.ServerStatus, pb.ServerStatusRequest()))

    def _ask(
        self, method: Any, request: Any, *, timeout_s: float | None = CONTROL_TIMEOUT_S, invocation: bool = False
    ) -> Any:
        if (size := calls.request_size(request)) >= calls.LARGE_BYTES:
            calls.check_size(size, self.status().max_message_bytes)
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._endpoint.error(error, invocation=invocation) from None
