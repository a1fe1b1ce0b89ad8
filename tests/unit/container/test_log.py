"""What a container prints where the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dataflower.container.log import LogFile, line_writer


def test_lines_are_written_as_they_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        writer = line_writer(file.fileno())
        print("one", file=writer)
        writer.write("half a line")
        assert (tmp_path / "log").read_text() == "one\n"
        writer.write(", \udcff\n")
    assert (tmp_path / "log").read_text() == "one\nhalf a line, \\udcff\n"


def test_a_full_disk_fails_nobody_who_prints() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        writer = line_writer(full.fileno())
        print("a remark", file=writer)
        print("x" * 1_000_000, file=writer)
        writer.flush()
        raw = writer.buffer.raw  # type: ignore[attr-defined]
        assert raw.dropped_bytes == len("a remark\n") + 1_000_001


def test_what_is_missing_is_said_once_there_is_room_again(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, open("/dev/full", "w", encoding="utf-8") as full:
        there = os.dup(file.fileno())
        log = LogFile(os.dup(full.fileno()), "w")
        assert log.write(b"lost\n") == 5
        os.dup2(there, log.fileno())
        assert log.write(b"kept\n") == 5
        assert log.write(b"too\n") == 4
        log.close()
        os.close(there)
    assert (tmp_path / "log").read_text() == "(5 bytes are missing here: the disk was full)\nkept\ntoo\n"


def test_other_failures_are_not_hidden() -> None:
    read, write = os.pipe()
    os.close(read)
    with LogFile(write, "w") as log, pytest.raises(BrokenPipeError) as broken:
        log.write(b"nobody reads this")
    assert broken.value.errno == errno.EPIPE
