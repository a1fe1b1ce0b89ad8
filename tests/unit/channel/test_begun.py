"""The page on which a container notes what it begins."""

from __future__ import annotations

import fcntl
import os

import pytest

from dataflower.channel import seals
from dataflower.channel.begun import BegunMarks, BegunPage


def test_the_last_task_of_each_thread_is_seen() -> None:
    page = BegunPage(3)
    marks = BegunMarks(os.dup(page.descriptor), 3)
    assert page.read() == frozenset()
    marks.note(11, 1)
    marks.note(12, 2)
    marks.note(11, 1 << 40)
    assert page.read() == {2, 1 << 40}
    page.close()
    page.close()


def test_nobody_can_resize_it() -> None:
    page = BegunPage(1)
    assert fcntl.fcntl(page.descriptor, fcntl.F_GET_SEALS) == seals.RESIZE
    with pytest.raises(PermissionError):
        os.ftruncate(page.descriptor, 1)
    page.close()
