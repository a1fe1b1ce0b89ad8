"""Files that people write, as text: every verb reads them here, so that every verb says the same of a bad one."""

from __future__ import annotations

from pathlib import Path

from dataflower.errors import NotFound, Problem, WorkflowInvalid


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        NotFound: there is no such file, or it can't be read.
        WorkflowInvalid: it is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no file {str(path)!r}") from None
    except IsADirectoryError:
        raise NotFound(f"no file {str(path)!r} (it is a directory)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotFound(f"no file {str(path)!r} that can be read ({reason})") from None
    return decoded(data, str(path))


def decoded(data: bytes, file: str) -> str:
    """The text that the bytes of `file` are, without a byte-order mark.

    Raises:
        WorkflowInvalid: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = 1, 1
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "it looks like UTF-16: save it as UTF-8"
        else:
            hint = f"byte {data[error.start]:#04x}: save it as UTF-8"
            before = data[: error.start].decode()
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise WorkflowInvalid((Problem(file, line, column, "not UTF-8 text", hint),)) from None
