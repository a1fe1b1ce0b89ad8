"""New lines of files, by the kernel's notice rather than by looking again and again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_IN_MODIFY, _IN_CREATE, _IN_MOVED_TO = 0x2, 0x100, 0x80


def appended(paths: Iterable[Path]) -> Generator[tuple[Path, str], None, None]:
    """Each line added to one of the files from now on, for ever; a file that is replaced is read from its start.

    Raises:
        OSError: the kernel has no inotify to give.
    """
    watch = _watch({path.parent for path in paths})
    files = {path: _Tail(path) for path in paths}
    try:
        while True:
            os.read(watch, 65536)  # blocks until something has happened to one of the folders
            for path, tail in files.items():
                for line in tail.lines():
                    yield path, line
    finally:
        os.close(watch)
        for tail in files.values():
            tail.close()


def _watch(folders: set[Path]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "inotify")
    for folder in folders:
        if libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO) < 0:
            error = ctypes.get_errno()
            os.close(descriptor)
            raise OSError(error, os.strerror(error), str(folder))
    return descriptor


class _Tail:
    """Reads a file from where it stood; begins again when another file has taken its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._file: BinaryIO | None = self._open()
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)

    def _open(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None

    def lines(self) -> Iterator[str]:
        yield from self._read()
        if self._replaced():
            self.close()
            self._file, self._rest = self._open(), b""
            yield from self._read()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> Iterator[str]:
        if self._file is not None:
            *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")

    def _replaced(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        return self._file is None or os.fstat(self._file.fileno()).st_ino != now.st_ino
