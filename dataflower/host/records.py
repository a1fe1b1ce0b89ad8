"""What is told about invocations: records for the public API, counts, and refusals."""

from __future__ import annotations

import re

import msgspec

from dataflower.core.host import CoreStatistics
from dataflower.errors import Code, DataflowerError, Failure, InvalidArgument
from dataflower.host.api import InvocationRecord, State
from dataflower.host.engine import EngineStatistics
from dataflower.host.journal import Entry
from dataflower.host.values import read_blob

_ID = re.compile(r"[\x21-\x7e]{1,128}")


class HostStatistics(msgspec.Struct, frozen=True):
    """What a host has done since its start, and what it holds now."""

    accepted: int
    succeeded: int
    failed: int
    cancelled: int
    running: int
    core: CoreStatistics
    engine: EngineStatistics


def failure_of(error: DataflowerError) -> Failure:
    """An error as data."""
    return Failure(error.code, type(error).__name__, error.message, retry_after_s=error.retry_after_s)


def already_exists(ident: str) -> DataflowerError:
    """The error for an id that another call has."""
    return DataflowerError(f"invocation {ident!r} exists already", code=Code.ALREADY_EXISTS)


def check_id(ident: str) -> None:
    """Refuse an invocation id that would be trouble in a log or a URL (InvalidArgument)."""
    if not _ID.fullmatch(ident):
        raise InvalidArgument(f"invocation id {ident!r} must be 1 to 128 printable ASCII characters without spaces")


def record_of(entry: Entry) -> InvocationRecord:
    """A journal entry as the public API shows it."""
    return InvocationRecord(
        id=entry.id,
        workflow=entry.workflow,
        version=entry.version,
        state=entry.state,
        accepted_at=entry.accepted_at,
        finished_at=entry.finished_at,
        failure=entry.failure,
        outputs=None if entry.outputs is None else read_blob(entry.outputs),
        trace=entry.trace,
    )


def state_of(failure: Failure | None) -> State:
    """How an invocation that ended with this is called."""
    if failure is None:
        return State.SUCCEEDED
    return State.CANCELLED if failure.code is Code.CANCELLED else State.FAILED
