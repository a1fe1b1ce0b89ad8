"""Errors to statuses and back: every code, every kind of detail."""

from __future__ import annotations

import grpc
import pytest
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
from dataflower.gateway.status import DETAILS_KEY, STATUS, code_number, code_of, from_status, to_status


def there_and_back(error: DataflowerError) -> DataflowerError:
    status, message, metadata = to_status(error)
    return from_status(status, message, metadata)


def details(error: DataflowerError) -> list[object]:
    _, _, metadata = to_status(error)
    known = (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    packed = status_pb2.Status.FromString(dict(metadata)[DETAILS_KEY]).details
    return [kind.FromString(p.value) for p in packed for kind in known if p.Is(kind.DESCRIPTOR)]


@pytest.mark.parametrize("code", Code)
def test_each_code_is_the_status_of_its_name_and_comes_back(code: Code) -> None:
    status, message, _ = to_status(DataflowerError("why", code=code))
    assert (status.name, message) == (code.value, "why")
    assert there_and_back(DataflowerError("why", code=code)).code is code
    assert code_of(code_number(code)) is code


def test_the_table_is_complete() -> None:
    assert set(STATUS) == set(Code)


@pytest.mark.parametrize("cls", [InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted, Unavailable])
def test_the_class_of_an_error_comes_back(cls: type[DataflowerError]) -> None:
    again = there_and_back(cls("why"))
    assert type(again) is cls
    assert again.message == "why"


@pytest.mark.parametrize("code", Code)
def test_a_failure_comes_back_whole(code: Code) -> None:
    failure = Failure(code, "ValueError", "ünlucky", "detect", 3, "Traceback\n  boom", 2.5)
    again = there_and_back(InvocationFailed(failure))
    assert isinstance(again, InvocationFailed)
    assert again.failure == failure
    assert again.retry_after_s == 2.5


def test_details_are_googles() -> None:
    failure = Failure(Code.INTERNAL, "ValueError", "boom", "detect", 3, "Traceback")
    (info,) = details(InvocationFailed(failure))
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("dataflower", "INVOCATION_FAILED")
    wanted = {"kind": "ValueError", "message": "boom", "stage": "detect", "attempt": "3", "traceback": "Traceback"}
    assert dict(info.metadata) == wanted


def test_retry_info_tells_when_to_come_back() -> None:
    _, retry = details(ResourceExhausted("full", retry_after_s=1.5))
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_problems_become_a_bad_request_and_come_back() -> None:
    problems = (Problem("a:b.yaml", 3, 7, "unknown key 'stage'", "did you mean 'stages'?"), Problem("x", 1, 1, "empty"))
    _, request = details(WorkflowInvalid(problems))
    assert isinstance(request, error_details_pb2.BadRequest)
    assert [v.field for v in request.field_violations] == ["a:b.yaml:3:7", "x:1:1"]
    again = there_and_back(WorkflowInvalid(problems))
    assert isinstance(again, WorkflowInvalid)
    assert [str(p) for p in again.problems] == [str(p) for p in problems]


def test_trailers_stay_below_what_grpc_promises_to_carry() -> None:
    failure = Failure(Code.INTERNAL, "K" * 9000, "ü" * 90_000, "s" * 9000, 1, "x" * 90_000 + "the last line")
    problems = tuple(Problem("workflow.yaml", n, 1, "wrong " * 20) for n in range(1000))
    for error in (InvocationFailed(failure), WorkflowInvalid(problems)):
        _, message, metadata = to_status(error)
        # gRPC sends the message percent-encoded and binary metadata in base64
        size = 3 * len(message.encode()) + sum(len(value) * 4 // 3 for _, value in metadata)
        assert size < 8192
    again = there_and_back(InvocationFailed(failure))
    assert isinstance(again, InvocationFailed)
    assert again.failure.traceback.endswith("the last line")
    cut = there_and_back(WorkflowInvalid(problems))
    assert isinstance(cut, WorkflowInvalid)
    assert cut.problems[-1].message == f"... and {1000 - (len(cut.problems) - 1)} more problems"


def test_statuses_of_others_become_errors_of_their_code() -> None:
    assert from_status(grpc.StatusCode.UNKNOWN, "?", ()).code is Code.INTERNAL
    assert type(from_status(grpc.StatusCode.NOT_FOUND, "gone", ())) is NotFound
