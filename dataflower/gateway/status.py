"""The one place where errors become gRPC statuses, and back (docs/reference/status.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from dataflower.errors import (
    Code,
    DataflowerError,
    FailedPrecondition,
    Failure,
    InvalidArgument,
    InvocationFailed,
    NotFound,
    Problem,
    ResourceExhausted,
    Unavailable,
    WorkflowInvalid,
)

DOMAIN = "dataflower"
"""`ErrorInfo.domain` of everything that dataflower itself says."""
DETAILS_KEY = "grpc-status-details-bin"

STATUS: dict[Code, grpc.StatusCode] = {
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
    Code.ABORTED: grpc.StatusCode.ABORTED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}

_CODES = {status: code for code, status in STATUS.items()}
_NUMBERS = {code: int(status.value[0]) for code, status in STATUS.items()}
_BY_NUMBER = {number: code for code, number in _NUMBERS.items()}
_CLASSES: dict[Code, type[DataflowerError]] = {
    cls.code: cls for cls in (InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted, Unavailable)
}

# All of a status travels in HTTP/2 trailers, of which gRPC promises 8 KiB; the message may grow threefold by escaping.
_MESSAGE_BYTES = 700
_TRACEBACK_BYTES = 2400
_PROBLEMS_BYTES = 2400

Metadata = tuple[tuple[str, str | bytes], ...]


def code_number(code: Code) -> int:
    """The code as a `google.rpc.Code`."""
    return _NUMBERS[code]


def code_of(number: int) -> Code:
    """The code of a `google.rpc.Code`; INTERNAL for those that we never use."""
    return _BY_NUMBER.get(number, Code.INTERNAL)


def to_status(error: DataflowerError) -> tuple[grpc.StatusCode, str, Metadata]:
    """Code, message and trailing metadata with the google.rpc details of an error."""
    status = STATUS[error.code]
    message = _head(error.message, _MESSAGE_BYTES) or error.code.value
    rich = status_pb2.Status(code=_NUMBERS[error.code], message=message)
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    return status, message, ((DETAILS_KEY, rich.SerializeToString()),)


def from_status(status: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, Any]]) -> DataflowerError:
    """The error that a peer meant: the same class, with the failure or the problems if it sent them."""
    code = _CODES.get(status, Code.INTERNAL)
    info, retry_after_s, violations = _unpack(metadata)
    if info is not None and info.reason == _reason(InvocationFailed):
        return InvocationFailed(_failure(code, info, message, retry_after_s))
    if info is not None and info.reason == _reason(WorkflowInvalid):
        return WorkflowInvalid(tuple(_problem(v.field, v.description) for v in violations))
    cls = _CLASSES.get(code, DataflowerError)
    return cls(message or code.value, code=code, retry_after_s=retry_after_s)


def _details(error: DataflowerError) -> Iterable[Any]:
    info = error_details_pb2.ErrorInfo(reason=_reason(type(error)), domain=DOMAIN)
    if isinstance(error, InvocationFailed):
        failure = error.failure
        info.metadata["kind"] = _head(failure.kind, 200)
        info.metadata["message"] = _head(failure.message, _MESSAGE_BYTES)
        if failure.stage:
            info.metadata["stage"] = _head(failure.stage, 200)
            info.metadata["attempt"] = str(failure.attempt)
        if failure.traceback:
            info.metadata["traceback"] = _tail(failure.traceback, _TRACEBACK_BYTES)
    yield info
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        yield retry
    if isinstance(error, WorkflowInvalid):
        yield _bad_request(error.problems)


def _bad_request(problems: tuple[Problem, ...]) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    room = _PROBLEMS_BYTES
    for shown, problem in enumerate(problems):
        where = f"{problem.file}:{problem.line}:{problem.column}"
        what = str(problem).removeprefix(f"{where}: ")
        room -= len(where.encode()) + len(what.encode())
        if room < 0 and shown:
            request.field_violations.add(field=where, description=f"... and {len(problems) - shown} more problems")
            break
        request.field_violations.add(field=_head(where, 300), description=_head(what, _PROBLEMS_BYTES))
    return request


def _unpack(metadata: Iterable[tuple[str, Any]]) -> tuple[Any, float | None, list[Any]]:
    info: error_details_pb2.ErrorInfo | None = None
    retry_after_s: float | None = None
    violations: list[Any] = []
    for key, value in metadata:
        if key != DETAILS_KEY:
            continue
        for packed in status_pb2.Status.FromString(value).details:
            if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(packed.value)
            elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry_after_s = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay.ToNanoseconds() / 1e9
            elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                violations = list(error_details_pb2.BadRequest.FromString(packed.value).field_violations)
    return (info if info is not None and info.domain == DOMAIN else None), retry_after_s, violations


def _failure(code: Code, info: error_details_pb2.ErrorInfo, message: str, retry_after_s: float | None) -> Failure:
    said = info.metadata
    return Failure(
        code=code,
        kind=said.get("kind", ""),
        message=said.get("message", message),
        stage=said.get("stage", ""),
        attempt=int(said.get("attempt", "0")),
        traceback=said.get("traceback", ""),
        retry_after_s=retry_after_s,
    )


def _problem(where: str, what: str) -> Problem:
    file, line, column = [*where.rsplit(":", 2), "0", "0"][:3]
    return Problem(file, int(line), int(column), what)


def _reason(cls: type[DataflowerError]) -> str:
    """`InvocationFailed` -> `INVOCATION_FAILED`, as google.rpc wants reasons spelled."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).upper()


def _head(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "..."


def _tail(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= limit else "..." + data[3 - limit :].decode(errors="ignore")
