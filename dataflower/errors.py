"""Every way in which dataflower says no.

Two families. `DataflowerError` is what a user may see: it carries a status code that the gateway translates once
(docs/reference/status.md). The link outcomes at the end are states of the world between two processes; they never
leave the process that met them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Code(enum.Enum):
    """Status of a failed call; the names are gRPC's, so that one table serves every front door."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ABORTED = "ABORTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an invocation or a task failed, as data: it crosses processes, the journal and the public API.

    `kind` is the error's type name (a user exception's class, or `Timeout`, `ContainerCrashed`, ...), which
    `retry.errors` and `catch.errors` are matched against. `stage` is empty when no stage is to blame.
    """

    code: Code
    kind: str
    message: str
    stage: str = ""
    attempt: int = 0
    traceback: str = ""
    retry_after_s: float | None = None


class DataflowerError(Exception):
    """A refusal or failure with a status code."""

    code: Code = Code.INTERNAL

    def __init__(self, message: str, *, code: Code | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


class InvalidArgument(DataflowerError):
    """The caller's data does not fit: wrong dtype, shape, name or size."""

    code = Code.INVALID_ARGUMENT


class NotFound(DataflowerError):
    """No such workflow, invocation or function."""

    code = Code.NOT_FOUND


class FailedPrecondition(DataflowerError):
    """Right request, wrong state: not loaded, draining, not importable."""

    code = Code.FAILED_PRECONDITION


class DataLost(DataflowerError, ValueError):
    """Bytes that a message named are not there any more: the file in which they lay was cut, or can't be read.

    `slot`: (arena, slot) of them.
    """

    code = Code.INTERNAL

    def __init__(self, message: str, slot: tuple[int, int]) -> None:
        super().__init__(message)
        self.slot = slot


class ResourceExhausted(DataflowerError):
    """A quota, queue or arena is full; `retry_after_s` says when to come back."""

    code = Code.RESOURCE_EXHAUSTED


class WeightsInvalid(FailedPrecondition):
    """A file of weights is cut off, damaged, or not of the format that it claims to be."""


class Unavailable(DataflowerError):
    """A part that the call needs is down or starting."""

    code = Code.UNAVAILABLE


class InvocationFailed(DataflowerError):
    """An invocation ended in failure; `failure` says which stage, which attempt and why."""

    def __init__(self, failure: Failure) -> None:
        where = f" in stage {failure.stage!r} (attempt {failure.attempt})" if failure.stage else ""
        super().__init__(
            f"{failure.kind}{where}: {failure.message}", code=failure.code, retry_after_s=failure.retry_after_s
        )
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about a file, in the form every compiler uses: `file:line:col: message (hint)`."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.message}{tail}"


class WorkflowInvalid(InvalidArgument):
    """A workflow file that does not hold together; `problems` lists everything wrong with it at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


class WouldBlock(Exception):
    """The link can't take or give a message right now."""


class Crowded(WouldBlock):
    """Too many descriptors of this user are under way: the link may be writable all the while, so ask again later."""


class EndOfStream(Exception):
    """The peer closed its end in good order; nothing more will come."""


class Closed(Exception):
    """This end was closed by its own side."""


class PeerGone(Exception):
    """The peer died, or broke the protocol so that it is treated as dead."""
