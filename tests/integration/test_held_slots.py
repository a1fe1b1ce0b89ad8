"""The check that every test with a host ends with sees what it is there for."""

import pytest

from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.testing import leaks


async def test_slots_that_an_idle_host_holds_are_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 0.0)
    with pytest.raises(AssertionError, match=r"an idle host held: \{'slots of its own memory': 1\}"):
        async with Runtime(HostConfig()) as host:
            host._engine.arenas.of("flow").allocate(4096)
