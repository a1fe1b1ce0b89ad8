"""Files past the page cache, and what happens where a file system does not do that."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dataflower.checkpoint.layout import PAGE_BYTES, pages
from dataflower.checkpoint.reader import File
from dataflower.checkpoint.region import Owned

SIZE = 3 * 2**20 + 777


def read(path: Path) -> bytes:
    owned = Owned(SIZE)
    file = File(path)
    try:
        half = 2**20
        assert file.read_into(owned.views(0, half), 0) == half
        assert file.read_into(owned.views(half, pages(SIZE) - half), half) == SIZE - half
        return b"".join(owned.views(0, SIZE))
    finally:
        file.close()
        owned.close()


@pytest.mark.parametrize("refused", ["nothing", "opening", "reading", "reading on"])
def test_the_page_cache_serves_where_direct_reads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(wanted := os.urandom(SIZE))
    opened, read_at, direct = os.open, os.preadv, set[int]()
    seen = {"direct": 0, "cached": 0}

    def open_one(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT and refused == "opening":
            raise OSError(errno.EINVAL, "no direct reads here")
        fd = opened(name, flags, *rest, **more)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def read_some(fd: int, views: Sequence[memoryview], offset: int) -> int:
        if fd in direct:
            if refused == "reading" or (refused == "reading on" and offset):
                raise OSError(errno.EINVAL, "not like this")
            assert offset % PAGE_BYTES == 0
        seen["direct" if fd in direct else "cached"] += 1
        return read_at(fd, views, offset)

    monkeypatch.setattr(os, "open", open_one)
    monkeypatch.setattr(os, "preadv", read_some)
    assert read(path) == wanted
    assert (seen["direct"] > 0) is (refused in ("nothing", "reading on"))


def test_other_errors_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        File(tmp_path / "nothing")
