"""What every call goes through: the key check, the request id, the translation of errors, the deadline."""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from dataflower.clock import Clock
from dataflower.errors import Code, DataflowerError, InvalidArgument
from dataflower.gateway.status import to_status

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
"""Metadata key; what the caller sends comes back in the trailing metadata."""
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The caller's id of the call being handled, for logs."""

NO_DEADLINE_S = 1e9
"""gRPC reports about 9.2e18 s where there is no deadline."""

Method = Callable[[Any, Any, Any], Awaitable[Any]]


def guarded(method: Method) -> Method:
    """Turn what a method raises into a status with details; anything unexpected is logged and becomes INTERNAL."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Any) -> Any:
        id_ = request_id.get()
        if id_:
            context.set_trailing_metadata(((REQUEST_ID_KEY, id_),))
        try:
            if isinstance(request, DecodeError):
                raise request
            return await method(self, request, context)
        except DataflowerError as error:
            await refuse(context, error)
        except DecodeError as error:  # also of a message in the middle of a stream
            await refuse(context, InvalidArgument(f"the message can't be read: {error}"))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log.exception("%s failed (request %s)", method.__name__, id_ or "-")
            await refuse(context, DataflowerError(f"the server failed: {type(error).__name__}"))

    return call


async def refuse(context: Any, error: DataflowerError) -> None:
    """End the call with the error; raises, as `context.abort` does."""
    status, message, metadata = to_status(error)
    await context.abort(status, message, (*(context.trailing_metadata() or ()), *metadata))


def deadline_of(context: Any, clock: Clock) -> float | None:
    """CLOCK_MONOTONIC time at which the caller gives up; None if it waits for ever."""
    left = context.time_remaining()
    return None if left is None or left >= NO_DEADLINE_S else clock.monotonic() + left


class Interceptor(grpc.aio.ServerInterceptor):
    """Checks the key of each call, notes its request id, and has `guarded` methods refuse what can't be read.

    `keys` empty: everyone may call. Services named in `open_services` may be called without a key in any case.
    `guarded`: services whose methods are all `guarded`; at the others gRPC itself says UNKNOWN to malformed messages.
    """

    def __init__(
        self, keys: tuple[str, ...], open_services: tuple[str, ...] = (), guarded: tuple[str, ...] = ()
    ) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._open = tuple(f"/{service}/" for service in open_services)
        self._guarded = tuple(f"/{service}/" for service in guarded)
        self._readers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Called by gRPC once per call, in the task that then runs the handler."""
        given = ""
        for key, value in details.invocation_metadata or ():
            if key == REQUEST_ID_KEY:
                request_id.set(value)
            elif key == "authorization":
                given = value
        handler = self._readers.get(details.method) or self._reading(details.method, await continuation(details))
        if not self._keys or handler is None or details.method.startswith(self._open):
            return handler
        if self._knows(given):
            return handler
        return _refusing(handler, "no API key was sent" if not given else "the API key is not valid")

    def _reading(self, method: str, handler: Any) -> Any:
        """The handler, which is the same for every call, taking messages that can't be read as errors to tell."""
        if handler is None or handler.request_streaming or not method.startswith(self._guarded):
            return handler
        self._readers[method] = made = handler._replace(request_deserializer=_tolerant(handler.request_deserializer))
        return made

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        known = [hmac.compare_digest(key.strip().encode(), valid) for valid in self._keys]
        return scheme.lower() == "bearer" and any(known)


def _tolerant(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError as error:
            return error

    return tolerant


def _refusing(handler: Any, why: str) -> Any:
    async def refuse_call(_request: Any, context: Any) -> None:
        await refuse(context, DataflowerError(f"{why} (authorization: Bearer KEY)", code=Code.UNAUTHENTICATED))

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return kind(refuse_call, handler.request_deserializer, handler.response_serializer)
