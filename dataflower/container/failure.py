"""From an exception of user code to the record that the host gets."""

from __future__ import annotations

import errno
import os
import socket
import traceback
from pathlib import Path

import dataflower
from dataflower.errors import Code, DataflowerError, DataLost
from dataflower.wire import ErrorRecord

_MESSAGE_CHARS = 4096
_TRACEBACK_CHARS = 16384
_OWN = (str(Path(dataflower.__file__).parent) + "/", "dataflower/")
"""How file names of our own begin: in compiled modules they are those of the build."""


in_sandbox = False
"""Set once, at the start of a sandboxed container: errors say what to do about it."""

_NO_WRITE = "functions run in a sandbox: write below /tmp, or name the directory in the server's writable_paths"
_NO_READ = "functions run in a sandbox: if the server has this file, name it in the server's readable_paths"
_NO_NETWORK = "functions run in a sandbox without a network: say `network: true` in the stage"


class Cancelled(BaseException):
    """Raised inside user code when the host has cancelled its task. `finally` blocks run; don't swallow it."""


class DeadlineExceeded(DataflowerError):
    """The task's time was up before it started."""

    code = Code.DEADLINE_EXCEEDED


class TypeMismatch(DataflowerError):
    """What a function handed out, or was given, does not fit the types of its ports."""


def error_record(error: BaseException, code: Code = Code.INTERNAL) -> ErrorRecord:
    """Describe `error` with the user's frames only. A DataflowerError brings its own code; else it is `code`."""
    if isinstance(error, DataflowerError):
        code = error.code
    elif isinstance(error, Cancelled):
        code = Code.CANCELLED
    lost = (error.slot,) if isinstance(error, DataLost) else ()
    message, text = _sendable(_message(error)), _sendable(user_traceback(error))
    return ErrorRecord(code, type(error).__name__, message, text, lost)


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of this package and of the import system; shortened in the middle.

    Empty if that leaves only what kind and message say already.
    """
    try:
        description = traceback.TracebackException.from_exception(error)
        _cut(description, set())
        if not _has_frames(description) and not isinstance(error, SyntaxError):  # the text of that shows the line
            return ""
        text = "".join(description.format())
    except Exception as broken:  # a user exception's own __str__, for one, may raise
        return f"{type(error).__name__} (its traceback can't be shown: {type(broken).__name__})"
    if len(text) > _TRACEBACK_CHARS:
        half = _TRACEBACK_CHARS // 2
        text = f"{text[:half]}\n  ...\n{text[-half:]}"
    return text


def forget_frames(error: BaseException) -> None:
    """Drop the local variables that the error's frames keep alive: they hold views of the task's inputs."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        BaseException.with_traceback(current, None)  # a frozen dataclass refuses to have it assigned
        pending += (current.__cause__, current.__context__)


def _hint(error: BaseException) -> str:
    """What an error may have to do with the sandbox."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:  # `raise error from error` makes a ring
        seen.add(id(current))
        if isinstance(current, socket.gaierror) or (
            isinstance(current, OSError) and current.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL)
        ):
            return _NO_NETWORK
        if isinstance(current, OSError) and current.errno == errno.EROFS:
            return _NO_WRITE
        if isinstance(current, FileNotFoundError) and os.path.isabs(str(current.filename or "")):
            return _NO_READ
        current = current.__cause__ or current.__context__
    return ""


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as broken:  # user code: __str__ of the user's own exception
        text = f"(its message can't be shown: {type(broken).__name__})"
    if not text and isinstance(error, SystemExit):
        text = "the function called sys.exit"
    if in_sandbox and (hint := _hint(error)):
        text = f"{text} ({hint})"
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + "..."


def _sendable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 lacks, as escapes: names of files may have them, for one."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(description: traceback.TracebackException, seen: set[int]) -> None:
    if id(description) in seen:
        return
    seen.add(id(description))
    kept = [
        frame
        for frame in description.stack
        if not frame.filename.startswith((*_OWN, "<frozen importlib")) and "/importlib/" not in frame.filename
    ]
    description.stack[:] = kept
    for other in (description.__cause__, description.__context__, *(description.exceptions or ())):
        if other is not None:
            _cut(other, seen)


def _has_frames(description: traceback.TracebackException) -> bool:
    context = None if description.__suppress_context__ else description.__context__
    others = (description.__cause__, context, *(description.exceptions or ()))
    return bool(description.stack) or any(other is not None and _has_frames(other) for other in others)
