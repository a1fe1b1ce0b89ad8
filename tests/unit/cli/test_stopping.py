"""What Ctrl-C and its like do to a command that has a host in its process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from dataflower.cli.local import run_loop

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of pytest, back in their place afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_what_runs(number: int) -> None:
    async def wait() -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        run_loop(wait())


def test_signals_mean_afterwards_what_they_meant_before() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    run_loop(asyncio.sleep(0))
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
