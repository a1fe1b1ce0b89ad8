"""The one place where errors become HTTP statuses and bodies (docs/reference/status.md)."""

from __future__ import annotations

import math
import re
from typing import Any

from dataflower.errors import Code, DataflowerError, InvocationFailed, ResourceExhausted, WorkflowInvalid
from dataflower.gateway.answer_size import AnswerTooLarge

STATUS: dict[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.FAILED_PRECONDITION: 409,
    Code.ALREADY_EXISTS: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
    Code.CANCELLED: 499,
    Code.ABORTED: 409,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    501: "invalid_request_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""HTTP status -> `type` of an error, in the words of OpenAI's API as far as it has them."""
RETRY_AFTER_S = 1
"""Said with 429 and 503 where the error itself does not know."""


class BodyTooLarge(ResourceExhausted):
    """A request body beyond the limit: 413, not 429, for coming back later would not help."""


class BadField(DataflowerError):
    """A field of a request is not what it should be; `param` names it."""

    code = Code.INVALID_ARGUMENT

    def __init__(self, message: str, param: str, *, code: Code | None = None, reason: str = "") -> None:
        """`reason`: what a program may look for (`code` of OpenAI's errors); the status's name if empty."""
        super().__init__(message, code=code)
        self.param = param
        self.reason = reason


def http_status(error: DataflowerError) -> int:
    """The status of an error."""
    return 413 if isinstance(error, BodyTooLarge | AnswerTooLarge) else STATUS[error.code]


def headers_of(error: DataflowerError) -> dict[str, str]:
    """Headers that go with an error."""
    status = http_status(error)
    if status in (429, 503):
        wait_s = RETRY_AFTER_S if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s))
        return {"retry-after": str(wait_s)}
    if status == 401:
        return {"www-authenticate": "Bearer"}
    return {"connection": "close"} if isinstance(error, BodyTooLarge) else {}


def error_object(error: DataflowerError, *, traceback: bool = False) -> dict[str, Any]:
    """What stands under `error` in the body; the first four keys are those of OpenAI's API.

    `traceback`: show that of the user's function too.
    """
    said: dict[str, Any] = {
        "message": error.message,
        "type": _TYPES.get(http_status(error), "server_error"),
        "param": getattr(error, "param", None),
        "code": getattr(error, "reason", "") or error.code.value.lower(),
    }
    if isinstance(error, InvocationFailed):
        failure = error.failure
        said["failure"] = {
            "kind": failure.kind,
            "message": failure.message,
            "stage": failure.stage or None,
            "attempt": failure.attempt,
        }
        if traceback:
            said["failure"]["traceback"] = failure.traceback or None
    if isinstance(error, WorkflowInvalid):
        said["problems"] = [str(problem) for problem in error.problems]
    return said


_TOO_LONG = "context_length_exceeded"
_REASONS = {
    "PromptTooLong": _TOO_LONG,
    "TextTooLong": _TOO_LONG,
    "AdapterNotFound": "model_not_found",
}
"""Kinds of failure -> what clients of OpenAI's API look for in `code`."""


_PROMPTS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}
"""Where a request of OpenAI's API says what the model is to read."""


_FIELD = re.compile(r"request: (\w[\w.\[\]]*): ")
"""How a chat stage says which field of a request it can't take."""


def openai_object(error: DataflowerError, path: str) -> dict[str, Any]:
    """The same for OpenAI's API: what the caller did wrong is said in the stage's own words.

    `path`: what was asked for.
    """
    said = error_object(error)
    if isinstance(error, InvocationFailed):
        failure = error.failure
        said["code"] = _REASONS.get(failure.kind, said["code"])
        if failure.code is not Code.INTERNAL:
            said["message"] = failure.message
        if named := _FIELD.match(failure.message):
            said["param"] = named[1]
        elif said["code"] == _TOO_LONG:
            said["param"] = _PROMPTS.get(path)
    return said
