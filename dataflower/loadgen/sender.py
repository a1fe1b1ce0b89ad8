"""One request to a server, and what came of it, as cheaply as a client can: bodies are encoded beforehand, and answers
are not decoded beyond what has to be known of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from dataflower.clock import Clock
from dataflower.errors import Code, DataflowerError, InvocationFailed
from dataflower.gateway import calls
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway.calls import Endpoint
from dataflower.gateway.status import DETAILS_KEY
from dataflower.loadgen.messages import Door

Streams = dict[str, list[float]]
"""Stream output -> when its items came, CLOCK_MONOTONIC seconds."""
_SERVICE = "/dataflower.v1.WorkflowService"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request failed. `lost`: nobody answered."""

    code: str
    kind: str = ""
    stage: str = ""
    message: str = ""
    retry_after_s: float | None = None
    lost: bool = False


class Sender(Protocol):
    """A connection to one workflow."""

    def prepared(self, body: bytes, ident: str) -> bytes:
        """The body with an invocation id: done before the request is due."""
        ...

    async def connect(self) -> None:
        """Be ready to send without delay; returns even if nobody answers yet."""
        ...

    async def send(self, body: bytes, timeout_s: float | None, streams: Streams) -> Refusal | str:
        """Send, wait for the whole answer, note in `streams` when items come. Cancelling cancels the request.

        Returns the id of the invocation if the server made one up, else "".
        """
        ...

    async def close(self) -> None:
        """Cancel what is running and disconnect."""
        ...


def encode(workflow: str, inputs: Mapping[str, Any], *, stream: bool) -> bytes:
    """A request body for gRPC."""
    if stream:
        return bytes(calls.open_request(workflow, inputs, (), None).SerializeToString())
    return bytes(calls.invoke_request(workflow, inputs, None).SerializeToString())


class GrpcSender:
    """Over `dataflower.v1.WorkflowService`. To be made in the event loop that uses it."""

    def __init__(self, door: Door, clock: Clock) -> None:
        self._clock = clock
        self._stream = door.stream
        self._endpoint = Endpoint(door.address, door.api_key or None, Path(door.ca_file) if door.ca_file else None)
        credentials = self._endpoint.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(door.address, calls.OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(door.address, credentials, calls.OPTIONS)
        self._invoke: Any = self._channel.unary_unary(f"{_SERVICE}/Invoke")
        self._open: Any = self._channel.stream_stream(f"{_SERVICE}/InvokeStream")

    def prepared(self, body: bytes, ident: str) -> bytes:  # noqa: D102
        # Encoded messages put one behind the other are one message with the fields of both.
        if self._stream:
            opening = pb.InvokeStreamRequest(open=pb.OpenInvocation(request_id=ident))
            return body + bytes(opening.SerializeToString())
        return body + bytes(pb.InvokeRequest(request_id=ident).SerializeToString())

    async def connect(self) -> None:  # noqa: D102
        self._channel.get_state(try_to_connect=True)

    async def send(self, body: bytes, timeout_s: float | None, streams: Streams) -> Refusal | str:  # noqa: D102
        try:
            if self._stream:
                await self._streamed(body, timeout_s, streams)
            else:
                await self._invoke(body, timeout=timeout_s, metadata=self._endpoint.metadata)
        except grpc.RpcError as error:
            return self._refusal(error)
        return ""

    async def _streamed(self, body: bytes, timeout_s: float | None, streams: Streams) -> None:
        call = self._open(timeout=timeout_s, metadata=self._endpoint.metadata)
        with contextlib.suppress(asyncio.InvalidStateError):  # it has failed already: reading tells why
            await call.write(body)
            await call.done_writing()
        async for answer in call:
            now = self._clock.monotonic()
            message = pb.InvokeStreamResponse.FromString(answer)
            if message.HasField("item") and message.item.HasField("index"):
                streams.setdefault(message.item.port, []).append(now)

    def _refusal(self, error: grpc.RpcError) -> Refusal:
        said = any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())
        lost = not said and error.code() is grpc.StatusCode.UNAVAILABLE
        return refusal_of(self._endpoint.error(error, invocation=True), lost=lost)

    async def close(self) -> None:  # noqa: D102
        await self._channel.close()


def refusal_of(error: DataflowerError, *, lost: bool = False) -> Refusal:
    """An error as data."""
    failure = error.failure if isinstance(error, InvocationFailed) else None
    return Refusal(
        code=error.code.value,
        kind=failure.kind if failure else type(error).__name__,
        stage=failure.stage if failure else "",
        message=(failure.message if failure else error.message)[:500],
        retry_after_s=error.retry_after_s,
        lost=lost and error.code is Code.UNAVAILABLE,
    )
