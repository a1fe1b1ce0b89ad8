"""What fills a long line stops with whoever measures it, and the other way round."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bench import long_line


class Host:
    """Of which only the bytes that it has sent are asked for."""

    def __init__(self) -> None:
        self.sent = 0

    def peers(self) -> list[Any]:
        return [SimpleNamespace(bytes_out=self.sent)]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of each tensor: the first ten arrive, others are on their way until they are stopped."""
    ends: list[str] = []

    async def call(host: Host, *_: Any) -> None:
        host.sent += long_line.NBYTES
        try:
            await asyncio.sleep(0 if len(ends) < 10 else 3600)
            ends.append("sent")
        except asyncio.CancelledError:
            ends.append("stopped")
            raise

    monkeypatch.setattr(long_line, "call", call)
    return ends


async def test_an_error_of_the_measurement_stops_the_loads(loads: list[str]) -> None:
    async def measure() -> None:
        async with long_line.full(Host()):  # type: ignore[arg-type]
            while len(loads) < 10:
                await asyncio.sleep(0)
            raise ValueError("no figure")

    with pytest.raises(ExceptionGroup) as failed:
        await measure()
    assert failed.group_contains(ValueError, match="no figure")
    assert loads.count("stopped") == long_line.UNDER_WAY
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_of_a_load_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(*_: Any) -> None:
        raise ConnectionError("the line is gone")

    monkeypatch.setattr(long_line, "call", call)
    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.timeout(10), long_line.full(Host()):  # type: ignore[arg-type]
            await asyncio.sleep(3600)
    assert failed.group_contains(ConnectionError, match="the line is gone")
