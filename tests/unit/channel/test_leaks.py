"""The leak check sees what it is there for."""

import mmap
import os

import pytest

from dataflower.channel import seals
from dataflower.testing import leaks


def test_leaks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 0.0)
    fd = -1
    with pytest.raises(AssertionError, match=r"descriptor \d+: /memfd:dataflower-left"), leaks.watch():
        fd = seals.make("dataflower-left", 4096)
    os.close(fd)


def test_a_zombie_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 0.0)
    with pytest.raises(AssertionError, match="child process"), leaks.watch():
        pid = os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])
    os.waitpid(pid, 0)


def test_what_is_closed_in_time_is_none() -> None:
    before = leaks.snapshot()
    with leaks.watch():
        fd = seals.make("dataflower-closed", 4096)
        os.close(fd)
    assert leaks.snapshot().leaked_since(before) == ()


def test_memory_that_stays_mapped_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 0.0)
    memory = seals.make("dataflower-arena-test", 4096)
    with pytest.raises(AssertionError, match="1 mappings of memfds"), leaks.watch():
        mapped = mmap.mmap(memory, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    mapped.close()
    os.close(memory)
