"""Where the output of containers goes: one file for each stage of each workflow, and one for each zygote."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

ROTATE_BYTES = 16 * 1024 * 1024
"""A longer file is moved to `NAME.1` when the next container starts."""
ZYGOTES = "_zygotes"
"""Folder of the zygotes' own files; no workflow can have this name."""


def stage_log(root: Path, workflow: str, stage: str) -> Path:
    """The file that a stage's containers write to (it need not exist yet)."""
    return root / _file_name(workflow) / f"{_file_name(stage)}.log"


def zygote_log(root: Path, name: str) -> Path:
    """The file that a zygote writes to, which holds the errors of a failed fork or preload."""
    return root / ZYGOTES / f"{_file_name(name)[:100]}.log"


def open_log(path: Path) -> int:
    """Open a file for appending and return its descriptor, which the caller owns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o640)
    if os.fstat(descriptor).st_size > ROTATE_BYTES:
        os.close(descriptor)
        path.replace(path.with_name(path.name + ".1"))
        descriptor = os.open(path, flags, 0o640)
    return descriptor


def logged_stages(root: Path, workflow: str) -> tuple[str, ...]:
    """Stages of a workflow that have written something, by name."""
    folder = root / _file_name(workflow)
    return tuple(sorted(unquote(path.name.removesuffix(".log")) for path in folder.glob("*.log")))


def tail(root: Path, workflow: str, stage: str, lines: int = 100) -> list[str]:
    """The last lines of a stage's log, oldest first; empty if there is none."""
    try:
        with stage_log(root, workflow, stage).open("rb") as file:
            return [line.decode(errors="replace") for line in _last_lines(file.fileno(), lines)]
    except FileNotFoundError:
        return []


def _last_lines(descriptor: int, lines: int) -> Iterator[bytes]:
    """Read backwards in blocks, so that a long file costs no more than a short one."""
    position = os.fstat(descriptor).st_size
    blocks: deque[bytes] = deque()
    newlines = 0
    while position > 0 and newlines <= lines:
        size = min(position, 65536)
        position -= size
        block = os.pread(descriptor, size, position)
        newlines += block.count(b"\n")
        blocks.appendleft(block)
    yield from b"".join(blocks).splitlines()[-lines:] if lines > 0 else ()


def _file_name(name: str) -> str:
    """A name that is safe in a path: the `/` of inlined stages and a leading dot are escaped."""
    escaped = quote(name, safe="")
    return "%2E" + escaped[1:] if escaped.startswith(".") else escaped
